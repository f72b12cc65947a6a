"""CLIP4Cir's second stage: a Combiner of frozen CLIP features, dense or a mixture of experts, faithful or improved.

`dense` is CLIP4Cir's Combiner (Baldrati et al., TOMM 2023), `faithful` the mixture-of-experts variant CLIP4Cir-MoE,
whose authors publish no result, `improved` ours: a shared expert that every row passes, a router in float32, balance
and z losses, and last layers that start at zero, so that training starts at the sum of stage 1. There is no capacity
limit: no row is ever dropped. docs/moe.md has the formulas.

Letters: B batch, d CLIP's width, P projection, H hidden, E experts, K experts a row.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from cir_cot.errors import InputError
from cir_cot.losses import load_balance, router_z
from cir_cot.models.clip import ClipEncoder

from .clip import ClipRetriever

COMBINERS = ("dense", "faithful", "improved")
ROUTINGS = ("learned", "random")
HEADS = 4  # of the attention between the two tokens


@dataclass(frozen=True)
class Route:
    """Experts (B, K) of each row, their weights (B, K), which sum to 1, and the logits (B, E) of a learned router."""

    chosen: Tensor
    weights: Tensor
    logits: Tensor | None

    def shares(self, experts: int) -> Tensor:
        """Return each row's weights by expert (B, E), 0 where it was not chosen."""
        return self.weights.new_zeros(len(self.weights), experts).scatter(
            1, self.chosen, self.weights
        )


def dispatch(z: Tensor, route: Route, experts: nn.ModuleList) -> Tensor:
    """Pass rows (B, W) through their experts -> weighted sums (B, H).

    Rows are sorted by expert, so each expert is called once, on all its rows; an idle one on none, with gradient 0.
    """
    count = route.chosen.shape[1]
    order = route.chosen.flatten().argsort(stable=True)  # (B * K,)
    sizes = torch.bincount(route.chosen.flatten(), minlength=len(experts)).tolist()
    parts = z[order // count].split(sizes)  # E of (n, W)
    passed = torch.cat(
        [expert(part) for expert, part in zip(experts, parts, strict=True)]
    )  # (B * K, H)
    back = passed[order.argsort()].unflatten(0, (-1, count))  # (B, K, H)
    return (back * route.weights[..., None].to(back.dtype)).sum(dim=1)


class SparseMoe(nn.Module):
    """Mixture of E experts Linear + GELU + Dropout (W -> H), K of them for a row."""

    def __init__(
        self, width: int, hidden: int, experts: int, top_k: int, improved: bool, routing: str
    ):
        super().__init__()

        def expert() -> nn.Sequential:
            return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0.1))

        self.experts = nn.ModuleList(expert() for _ in range(experts))
        self.shared = expert() if improved else None
        self.router = nn.Linear(width, experts) if routing == "learned" else None
        self.top_k, self.improved = top_k, improved

    def forward(self, z: Tensor) -> tuple[Tensor, Route]:
        """Pass rows (B, W) -> (B, H), and the way they took."""
        route = self.route(z)
        out = dispatch(z, route, self.experts)
        return (out if self.shared is None else out + self.shared(z)), route

    def route(self, z: Tensor) -> Route:
        """Choose K experts a row. At random: any K in training, then all alike, which is what that was on average."""
        if self.router is None:
            rows, experts = len(z), len(self.experts)
            count, draw = (self.top_k, torch.rand) if self.training else (experts, torch.zeros)
            chosen = draw(rows, experts, device=z.device).topk(count, dim=1).indices
            return Route(chosen, z.new_full((rows, count), 1 / count), None)
        if self.improved:
            with torch.autocast(z.device.type, enabled=False):
                logits = functional.linear(
                    z.float(), self.router.weight.float(), self.router.bias.float()
                )  # (B, E)
        else:
            logits = self.router(z)
        top, chosen = logits.topk(self.top_k, dim=1)
        return Route(chosen, top.softmax(dim=1), logits)


def mlp(width: int, hidden: int, out: int) -> nn.Sequential:
    """Return CLIP4Cir's two layers: Linear, ReLU, Dropout .5, Linear."""
    return nn.Sequential(
        nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(0.5), nn.Linear(hidden, out)
    )


class DenseCombiner(nn.Module):
    """CLIP4Cir's Combiner: features (B, d) of picture and text -> (B, d), the weight of the text (B, 1), no route."""

    def __init__(self, dim: int, projection: int, hidden: int):
        super().__init__()
        self.text, self.image = (
            nn.Sequential(nn.Linear(dim, projection), nn.ReLU(), nn.Dropout(0.5)) for _ in range(2)
        )
        self.mix, self.gate = mlp(2 * projection, hidden, dim), mlp(2 * projection, hidden, 1)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, None]:
        z = torch.cat([self.text(text), self.image(image)], dim=-1)  # (B, 2P)
        weight = self.gate(z).sigmoid()  # (B, 1)
        return self.mix(z) + weight * text + (1 - weight) * image, weight, None


class MoeCombiner(nn.Module):
    """CLIP4Cir-MoE's Combiner: features (B, d) -> (B, d), the weight of the text in each dimension, the route."""

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
        self.text, self.image = (
            nn.Sequential(
                nn.Linear(dim, projection), nn.LayerNorm(projection), nn.ReLU(), nn.Dropout(0.5)
            )
            for _ in range(2)
        )
        self.attention = nn.MultiheadAttention(projection, HEADS, batch_first=True)
        self.norm = nn.LayerNorm(projection)
        self.moe = SparseMoe(2 * projection, hidden, experts, top_k, improved, routing)
        self.mix = nn.Sequential(nn.ReLU(), nn.Dropout(0.5), nn.Linear(hidden, dim))
        self.gate = mlp(2 * projection, hidden, dim)
        if improved:  # the query starts at (text + image) / 2, the direction of stage 1's sum
            for layer in (self.mix[-1], self.gate[-1]):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Route]:
        tokens = torch.stack([self.text(text), self.image(image)], dim=1)  # (B, 2, P)
        attended = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        z = self.norm(tokens + attended).flatten(1)  # (B, 2P)
        mixed, route = self.moe(z)  # (B, H)
        weight = self.gate(z).sigmoid()  # (B, d)
        return self.mix(mixed) + weight * text + (1 - weight) * image, weight, route


class MoeRetriever(ClipRetriever):
    """Combiner on frozen CLIP features; embeddings are (B, D), float32 and unit.

    `projection` and `hidden` are P and H, by default CLIP4Cir's 4d and 8d. `routing` random is a control.
    """

    kind = "moe"

    def __init__(
        self,
        backbone: ClipEncoder,
        base: str,
        combiner: str = "improved",
        experts: int = 4,
        top_k: int = 2,
        routing: str = "learned",
        projection: int | None = None,
        hidden: int | None = None,
        temperature: float = 0.01,
    ):
        super().__init__(backbone, base, temperature)
        for value, known in {combiner: COMBINERS, routing: ROUTINGS}.items():
            if value not in known:
                raise InputError(
                    f"combiner and routing: {value!r} is not one of {', '.join(known)}"
                )
        if not 1 <= top_k <= experts:
            raise InputError(f"top_k {top_k}: a row passes 1 to {experts} of {experts} experts")
        self.name, self.experts, self.top_k, self.routing = combiner, experts, top_k, routing
        self.projection, self.hidden = projection or 4 * self.dim, hidden or 8 * self.dim
        if self.projection % HEADS and combiner != "dense":
            raise InputError(
                f"projection {self.projection} does not split into {HEADS} attention heads"
            )
        sizes = self.dim, self.projection, self.hidden
        if combiner == "dense":
            self.combiner = DenseCombiner(*sizes)
        else:
            self.combiner = MoeCombiner(*sizes, experts, top_k, combiner == "improved", routing)

    def settings(self) -> dict:
        """Return the keyword arguments that build this head and its encoder again."""
        names = ("experts", "top_k", "routing", "projection", "hidden")
        return (
            super().settings()
            | {"combiner": self.name}
            | {name: getattr(self, name) for name in names}
        )

    def combine(self, image: Tensor, text: Tensor) -> tuple[Tensor, dict]:
        """Combine features (B, d) -> (B, d); in training the report holds the router's losses and loads."""
        combined, weight, route = self.combiner(image, text)
        report = {"weight": weight.mean(dim=1), "stats": {"text_weight": weight.mean()}}
        if route is None:
            return combined, report
        report["shares"] = shares = route.shares(self.experts)  # (B, E)
        report["stats"] |= {
            f"expert_{number}": share.mean() for number, share in enumerate(shares.unbind(dim=1))
        }
        if self.training and route.logits is not None:
            report["aux"] = {"router_z": router_z(route.logits)}
            report["rows"] = {"logits": route.logits.float(), "chosen": route.chosen}
        return combined, report

    def batch_losses(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Balance of the loads over a whole batch; a mean of its parts' balances would be another number."""
        return {"balance": load_balance(rows["logits"].softmax(dim=1), rows["chosen"])}

    def explain(self, report: dict, rows: int) -> tuple[list[str], list[dict[str, float]]]:
        """Name each row's experts with their weights, the heaviest first, and how much its words weigh."""
        words = [f"the words weigh {value:.2f}" for value in report["weight"].tolist()]
        if "shares" not in report:
            return words, []
        choices = [
            {f"expert {e}": share for e, share in enumerate(row)}
            for row in report["shares"].tolist()
        ]
        chosen = [
            sorted(((s, name) for name, s in row.items() if s), reverse=True) for row in choices
        ]
        named = [", ".join(f"{name} ({share:.2f})" for share, name in row) for row in chosen]
        return [
            f"{experts}; {weight}" for experts, weight in zip(named, words, strict=True)
        ], choices


def hidden_for(parameters: int, dim: int, projection: int) -> int:
    """Return H for which a dense Combiner of width `projection` has about so many parameters."""
    fixed = 2 * (dim + 1) * projection + dim + 1
    return max(1, round((parameters - fixed) / (2 * (2 * projection + 1) + dim + 1)))


def count_parameters(build: Callable[[], nn.Module]) -> int:
    """Count the parameters of what `build` makes, without making it: on the meta device."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build().parameters())
