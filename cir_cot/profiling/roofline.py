"""Floating-point operations and memory bytes of a Qwen-VL's passes, and the seconds that a card needs at least.

A token costs 2 operations a weight of the language model's blocks in a forward pass, 4 forward and backward under a
frozen base with adapters, and 2 more for each further forward pass (recomputed activations, gradient caching). A patch
costs 2 a weight of the vision tower. Attention's own products are left out: at these lengths they are a few per cent.
"""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Card:
    """What a card does: operations a second of large matrix products, bytes a second of large copies."""

    flops: float
    bandwidth: float

    def seconds(self, flops: float, moved: float) -> float:
        """Return the least seconds for so many operations and bytes: whichever takes longer."""
        return max(flops / self.flops, moved / self.bandwidth)


@dataclass(frozen=True)
class Costs:
    """Weights that a token (`blocks`), a written or supervised token (`words`) and a patch (`tower`) are multiplied by.

    `width` is the bytes of a weight, `cached` the bytes that a token keeps in the key-value cache.
    """

    blocks: int
    words: int
    tower: float
    width: int
    cached: int

    def training(
        self, tokens: float, supervised: float, patches: float, chunks: int, recompute: bool
    ) -> tuple[float, float]:
        """Return operations and bytes of a step: a frozen tower runs once, several chunks are encoded twice.

        Logits are made again in the backward pass. Of the bytes only the weights, read once a pass, are counted.
        """
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
        """Return operations and bytes of one decoding step of rows that hold `length` tokens each."""
        weights = self.blocks + self.words
        return 2 * weights * rows, self.width * weights + self.cached * rows * length


def costs(model: nn.Module) -> Costs:
    """Return the costs of a Qwen2.5-VL transformers model without an adapter's."""
    text, tower = model.config.get_text_config(), model.model.visual
    size = {
        name: sum(value.numel() for key, value in part.named_parameters() if "lora_" not in key)
        for name, part in (
            ("blocks", model.model.language_model.layers),
            ("tower", tower),
            ("merger", tower.merger),
        )
    }
    merged = tower.spatial_merge_size**2  # patches that the merger reads as one token
    width = next(tower.parameters()).element_size()
    head = text.hidden_size // text.num_attention_heads
    return Costs(
        blocks=size["blocks"],
        words=text.vocab_size * text.hidden_size,
        tower=size["tower"] - size["merger"] + size["merger"] / merged,
        width=width,
        cached=2 * width * text.num_hidden_layers * text.num_key_value_heads * head,
    )
