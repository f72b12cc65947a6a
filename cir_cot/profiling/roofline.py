"""Compute the operations and memory traffic of a Qwen-VL's passes, and the least seconds that a card needs for them.

A token costs 2 operations a weight of the language model's blocks in a forward pass, 4 in a forward and backward pass
under a frozen base with adapters, and 2 more for each further forward pass (recomputed activations, gradient caching).
A patch costs 2 operations a weight of the vision tower. The products within attention are left out: at these lengths
they are a few per cent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from cir_cot.models.architectures import QwenVL


@dataclass(frozen=True)
class Card:
    """Hold a card's rates: operations a second of large products, bytes a second of large copies."""

    flops: float
    bandwidth: float

    def seconds(self, flops: float, moved: float) -> float:
        """Return the least seconds for a number of operations and bytes: the longer of the two."""
        return max(flops / self.flops, moved / self.bandwidth)


@dataclass(frozen=True)
class Costs:
    """Hold the sizes that determine the cost of a pass."""

    blocks: int  # weights that every token is multiplied by
    words: int  # weights of the output head, for a generated or supervised token
    tower: float  # weights that a patch is multiplied by
    width: int  # bytes of a weight
    cached: int  # bytes that a token takes in the key-value cache

    def training(
        self, tokens: float, supervised: float, patches: float, chunks: int, recompute: bool
    ) -> tuple[float, float]:
        """Return operations and bytes of a training step under a frozen base with adapters.

        Args:
            tokens: Of all rows, both sides.
            supervised: Tokens with a label; their logits are computed again in the backward pass.
            patches: Of all pictures; the frozen tower runs once.
            chunks: Chunks of gradient caching; several are encoded twice.
            recompute: Whether activations are recomputed.

        Of the bytes only the weights, read once a pass, are counted.
        """
        # A forward pass costs one, the backward pass of activations another.
        passes = 2 + recompute + (chunks > 1)
        flops = (
            2 * self.blocks * tokens * passes
            + 6 * self.words * supervised
            + 2 * self.tower * patches
        )
        return flops, self.width * self.blocks * chunks * passes

    def encoding(self, tokens: float, patches: float) -> tuple[float, float]:
        """Return operations and bytes of one forward pass."""
        flops = 2 * self.blocks * tokens + 2 * self.tower * patches
        return flops, self.width * (self.blocks + self.tower)

    def writing(self, rows: float, length: float) -> tuple[float, float]:
        """Return operations and bytes of one decoding step of `rows` rows with `length` cached tokens each."""
        # All weights are read once, and every cached token of every row.
        weights = self.blocks + self.words
        return 2 * weights * rows, self.width * weights + self.cached * rows * length


def costs(model: QwenVL) -> Costs:
    """Return the costs of a Qwen2.5-VL model, not counting those of an adapter."""
    text = model.config.get_text_config()
    tower = model.model.visual
    # The merger's weights see one token for several patches.
    merger = _weights(tower.merger.named_parameters())
    patches = tower.spatial_merge_size**2  # of a token
    width = next(tower.parameters()).element_size()
    # Keys and values of every layer stay in the cache.
    head = text.hidden_size // text.num_attention_heads
    return Costs(
        blocks=_weights(model.model.language_model.layers.named_parameters()),
        words=text.vocab_size * text.hidden_size,
        tower=_weights(tower.named_parameters()) - merger + merger / patches,
        width=width,
        cached=2 * width * text.num_hidden_layers * text.num_key_value_heads * head,
    )


def _weights(parameters: Iterable[tuple[str, nn.Parameter]]) -> int:
    """Count the weights of named parameters without those of adapters."""
    return sum(value.numel() for name, value in parameters if "lora_" not in name)
