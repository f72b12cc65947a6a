"""CLIP4Cir's second stage: a Combiner of frozen CLIP features, dense or a mixture of experts, faithful or improved.

`dense` is CLIP4Cir's Combiner (Baldrati et al., TOMM 2023), `faithful` the mixture-of-experts variant CLIP4Cir-MoE,
whose authors publish no result, `improved` ours: a shared expert that every row passes, a router in float32, balance
and z losses, and last layers that start at zero, so that training starts at the sum of stage 1. There is no capacity
limit: no row is ever dropped. docs/moe.md has the formulas.

Letters: B batch, d width of CLIP, P projection, H hidden, E experts, K experts a row.
"""

from torch import Tensor

from cir_cot.errors import InputError
from cir_cot.losses import load_balance, router_z
from cir_cot.models.clip import ClipEncoder

from .clip import ClipRetriever, Combination
from .combiners import ATTENTION_HEADS, DenseCombiner, MoeCombiner

COMBINERS = ("dense", "faithful", "improved")
ROUTINGS = ("learned", "random")


class MoeRetriever(ClipRetriever):
    """Combiner on frozen CLIP features; embeddings are (B, D), float32 and unit.

    Args:
        backbone: both towers of a CLIP.
        base: the checkpoint that they were loaded from.
        combiner: one of COMBINERS.
        experts: E, number of experts.
        top_k: K, experts that a row passes.
        routing: "learned", or "random" as a control.
        projection: P, by default CLIP4Cir's 4d.
        hidden: H, by default CLIP4Cir's 8d.
        temperature: fixed temperature of InfoNCE.
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
        # Check the settings.
        for value, known in ((combiner, COMBINERS), (routing, ROUTINGS)):
            if value not in known:
                raise InputError(
                    f"combiner and routing: {value!r} is not one of {', '.join(known)}"
                )
        if not 1 <= top_k <= experts:
            raise InputError(f"top_k {top_k}: a row passes 1 to {experts} of {experts} experts")
        # Keep them for `settings`; `combiner` is the name of the module.
        self.name = combiner
        self.experts = experts
        self.top_k = top_k
        self.routing = routing
        self.projection = projection or 4 * self.dim
        self.hidden = hidden or 8 * self.dim
        if self.projection % ATTENTION_HEADS and combiner != "dense":
            raise InputError(
                f"projection {self.projection} does not split into {ATTENTION_HEADS} attention heads"
            )
        # Build the Combiner.
        sizes = (self.dim, self.projection, self.hidden)
        self.combiner: DenseCombiner | MoeCombiner
        if combiner == "dense":
            self.combiner = DenseCombiner(*sizes)
        else:
            self.combiner = MoeCombiner(*sizes, experts, top_k, combiner == "improved", routing)

    def settings(self) -> dict:
        """Return the keyword arguments that build this head and its encoder again."""
        return super().settings() | {
            "combiner": self.name,
            "experts": self.experts,
            "top_k": self.top_k,
            "routing": self.routing,
            "projection": self.projection,
            "hidden": self.hidden,
        }

    def combine(self, image: Tensor, text: Tensor) -> Combination:
        """Combine features (B, d); in training the result has the losses of a learned router and its loads."""
        # DeepSpeed makes the Combiner's weights bfloat16; CLIP's features are float32.
        dtype = next(self.combiner.parameters()).dtype
        # A route of None is the dense Combiner's.
        features, weight, route = self.combiner(
            image.to(dtype), text.to(dtype)
        )  # (B, d), (B, 1 or d)
        combined = Combination(features, text_weight=weight.mean(dim=1))
        combined.stats["text_weight"] = weight.mean()
        if route is None:
            return combined
        # Loads of the experts.
        combined.shares = route.shares(self.experts)  # (B, E)
        for number, share in enumerate(combined.shares.unbind(dim=1)):
            combined.stats[f"expert_{number}"] = share.mean()
        # Losses of a learned router.
        if self.training and route.logits is not None:
            combined.aux["router_z"] = router_z(route.logits)
            combined.rows["logits"] = route.logits.float()
            combined.rows["chosen"] = route.chosen
        return combined

    def batch_losses(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the balance of the loads over all rows; a mean of balances of chunks would be another number."""
        return {"balance": load_balance(rows["logits"].softmax(dim=1), rows["chosen"])}

    def explain(self, combined: Combination) -> tuple[list[str], list[dict[str, float]]]:
        """Name each row's experts with their weights, largest first, and the weight of its text."""
        assert combined.text_weight is not None
        weights = [f"text weight {value:.2f}" for value in combined.text_weight.tolist()]
        if combined.shares is None:
            return weights, []
        # One text and one dict of shares a row.
        explanations = []
        routing = []
        for row, weight in zip(combined.shares.tolist(), weights, strict=True):
            shares = {f"expert {number}": share for number, share in enumerate(row)}
            # Experts with a share of 0 were not chosen.
            ordered = sorted(
                ((share, name) for name, share in shares.items() if share), reverse=True
            )
            named = ", ".join(f"{name} ({share:.2f})" for share, name in ordered)
            explanations.append(f"{named}; {weight}")
            routing.append(shares)
        return explanations, routing
