"""Combiners of an image's and a text's features: two layers with a gate, or a mixture of experts.

Letters: B batch, d width of CLIP, P projection, W width of an expert's input, H hidden, E experts, K experts a row.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

# Heads of the attention between the tokens of text and image.
ATTENTION_HEADS = 4


@dataclass(frozen=True)
class Route:
    """Experts that B rows pass.

    Attributes:
        chosen: (B, K) numbers of the experts.
        weights: (B, K) their weights, which sum to 1.
        logits: (B, E) of a learned router, or None.
    """

    chosen: Tensor
    weights: Tensor
    logits: Tensor | None

    def shares(self, experts: int) -> Tensor:
        """Return each row's weights by expert (B, E), 0 where it was not chosen."""
        empty = self.weights.new_zeros(len(self.weights), experts)  # (B, E)
        return empty.scatter(1, self.chosen, self.weights)


def dispatch(z: Tensor, route: Route, experts: nn.ModuleList) -> Tensor:
    """Pass rows (B, W) through their experts -> weighted sums (B, H).

    Rows are sorted by expert, so each expert is called once, on all its rows; an idle one on none, with gradient 0.
    """
    count = route.chosen.shape[1]
    # Sort the B * K pairs of row and expert by expert, and cut them there.
    order = route.chosen.flatten().argsort(stable=True)  # (B * K,)
    sizes = torch.bincount(route.chosen.flatten(), minlength=len(experts)).tolist()
    chunks = z[order // count].split(sizes)  # E of (n, W)
    passed = []
    for expert, chunk in zip(experts, chunks, strict=True):
        passed.append(expert(chunk))
    # Sort them back and sum up each row's.
    back = torch.cat(passed)[order.argsort()].unflatten(0, (-1, count))  # (B, K, H)
    return (back * route.weights[..., None].to(back.dtype)).sum(dim=1)


class SparseMoe(nn.Module):
    """Mixture of E experts, Linear + GELU + Dropout (W -> H), of which each row passes K.

    Args:
        width: W, dimensions of a row.
        hidden: H, output dimensions of an expert.
        experts: E, number of experts.
        top_k: K, experts that a row passes.
        improved: adds a shared expert that every row passes, and routes in float32.
        routing: "learned", or "random" as a control.
    """

    def __init__(
        self, width: int, hidden: int, experts: int, top_k: int, improved: bool, routing: str
    ):
        super().__init__()
        self.experts = nn.ModuleList(_expert(width, hidden) for _ in range(experts))
        self.shared = _expert(width, hidden) if improved else None
        self.router = nn.Linear(width, experts) if routing == "learned" else None
        self.top_k = top_k
        self.improved = improved

    def forward(self, z: Tensor) -> tuple[Tensor, Route]:
        """Pass rows (B, W) -> (B, H), and their route."""
        route = self.route(z)
        out = dispatch(z, route, self.experts)
        return (out if self.shared is None else out + self.shared(z)), route

    def route(self, z: Tensor) -> Route:
        """Choose the experts of rows (B, W)."""
        if self.router is None:
            return self._random_route(z)
        if self.improved:
            with torch.autocast(z.device.type, enabled=False):
                weight = self.router.weight.float()
                logits = functional.linear(z.float(), weight, self.router.bias.float())  # (B, E)
        else:
            logits = self.router(z)  # (B, E)
        top, chosen = logits.topk(self.top_k, dim=1)
        return Route(chosen, top.softmax(dim=1), logits)

    def _random_route(self, z: Tensor) -> Route:
        """Choose any K experts in training; then all with equal weights, which is the average of that."""
        rows = len(z)
        experts = len(self.experts)
        if self.training:
            count = self.top_k
            scores = torch.rand(rows, experts, device=z.device)
        else:
            count = experts
            scores = torch.zeros(rows, experts, device=z.device)
        chosen = scores.topk(count, dim=1).indices  # (B, count)
        return Route(chosen, z.new_full((rows, count), 1 / count), None)


def _expert(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0.1))


def mlp(width: int, hidden: int, out: int) -> nn.Sequential:
    """Return CLIP4Cir's two layers: Linear, ReLU, Dropout .5, Linear."""
    return nn.Sequential(
        nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(0.5), nn.Linear(hidden, out)
    )


class DenseCombiner(nn.Module):
    """CLIP4Cir's Combiner of features (B, d) of image and text."""

    def __init__(self, dim: int, projection: int, hidden: int):
        super().__init__()
        self.text = nn.Sequential(nn.Linear(dim, projection), nn.ReLU(), nn.Dropout(0.5))
        self.image = nn.Sequential(nn.Linear(dim, projection), nn.ReLU(), nn.Dropout(0.5))
        self.mix = mlp(2 * projection, hidden, dim)
        self.gate = mlp(2 * projection, hidden, 1)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return combined features (B, d), the weight of the text (B, 1), and no route."""
        z = torch.cat([self.text(text), self.image(image)], dim=-1)  # (B, 2P)
        weight = self.gate(z).sigmoid()  # (B, 1)
        return self.mix(z) + weight * text + (1 - weight) * image, weight, None


class MoeCombiner(nn.Module):
    """CLIP4Cir-MoE's Combiner of features (B, d) of image and text."""

    def __init__(
        self,
        dim: int,
        projection: int,
        hidden: int,
        experts: int,
        top_k: int,
        improved: bool,
        routing: str,
    ):
        super().__init__()
        self.text = _normed_projection(dim, projection)
        self.image = _normed_projection(dim, projection)
        self.attention = nn.MultiheadAttention(projection, ATTENTION_HEADS, batch_first=True)
        self.norm = nn.LayerNorm(projection)
        self.moe = SparseMoe(2 * projection, hidden, experts, top_k, improved, routing)
        self.mix = nn.Sequential(nn.ReLU(), nn.Dropout(0.5), nn.Linear(hidden, dim))
        self.gate = mlp(2 * projection, hidden, dim)
        # The query starts at (text + image) / 2, the direction of stage 1's sum.
        if improved:
            for layer in (self.mix[-1], self.gate[-1]):
                assert isinstance(layer, nn.Linear)
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Route]:
        """Return combined features (B, d), the weight of the text in each dimension (B, d), and the route."""
        # The two projected tokens attend to each other.
        tokens = torch.stack([self.text(text), self.image(image)], dim=1)  # (B, 2, P)
        attended = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        z = self.norm(tokens + attended).flatten(1)  # (B, 2P)
        # Experts mix them, and a gate weighs text against image.
        mixed, route = self.moe(z)  # (B, H)
        weight = self.gate(z).sigmoid()  # (B, d)
        return self.mix(mixed) + weight * text + (1 - weight) * image, weight, route


def _normed_projection(dim: int, projection: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(dim, projection), nn.LayerNorm(projection), nn.ReLU(), nn.Dropout(0.5)
    )


def hidden_for(parameters: int, dim: int, projection: int) -> int:
    """Return H for which a dense Combiner of width `projection` has about `parameters` parameters."""
    fixed = 2 * (dim + 1) * projection + dim + 1
    return max(1, round((parameters - fixed) / (2 * (2 * projection + 1) + dim + 1)))


def count_parameters(build: Callable[[], nn.Module]) -> int:
    """Count the parameters of the module that `build` returns, on the meta device: no memory is allocated.

    Example:
        count_parameters(lambda: DenseCombiner(640, 2560, 5120))  # 59 million
    """
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build().parameters())
