"""Count what decoding chains and encoding a gallery need, on fake tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cir_cot.cards import GIB, Accelerator
from cir_cot.heads.cot import CotRetriever

from .fake_meter import FakeMeter
from .synthetic import SyntheticPairs

WORDS = 150  # of a chain
PIXELS = 640 * 480  # of a picture before it is resized
DECODED = 32  # rows of a decoding batch
ENCODED = 32  # pictures of an encoding batch


def picture_side(head: CotRetriever) -> int:
    """Return the side of a square picture that is as large as PIXELS, or as the head's bound."""
    bound = head.pixel_bounds()["max_pixels"]
    return int(min(PIXELS, bound) ** 0.5)


def decoding(head: CotRetriever, card: Accelerator, rows: int = DECODED, new: int = WORDS) -> dict:
    """Count what decoding chains of `new` tokens needs: the prompts' forward pass, and one step a token.

    The first and the last step are run; what a step needs grows evenly with the tokens before it, so their mean is
    that of all steps.
    """
    inputs = prompts(head, rows)
    width = inputs["input_ids"].shape[1]
    cache = head.backbone.new_cache()
    with torch.no_grad():
        with FakeMeter(card) as prompt:
            positions = head.backbone.positions(inputs)
            head.backbone(inputs, positions, cache)
        with FakeMeter(card) as first:
            _next_tokens(head, cache, positions, width)
        _next_tokens(head, cache, positions, width + 1, new - 2)
        with FakeMeter(card) as last:
            _next_tokens(head, cache, positions, width + new - 1)
    seconds = prompt.seconds + new * (first.seconds + last.seconds) / 2
    return {
        "rows": rows,
        "prompt_tokens": int(inputs["attention_mask"].sum()) // rows,
        "new_tokens": new,
        "operations": prompt.operations + new * (first.operations + last.operations) // 2,
        "kernels": prompt.kernels + new * first.kernels,
        "kernels_per_step": first.kernels,
        "synchronisations_per_step": first.synchronisations + 1,  # the chosen tokens
        "seconds": seconds,
        "tokens_per_second": rows * new / seconds,
        "peak_gib": (_all_bytes(head) + prompt.peak + new * _cached_bytes(head) * rows) / GIB,
    }


def _next_tokens(
    head: CotRetriever, cache: Any, positions: Tensor, before: int, count: int = 1
) -> None:
    """Run the forward pass of `count` more tokens a row, with `before` tokens in the cache."""
    rows = positions.shape[1]
    token = {
        "input_ids": torch.zeros(rows, count, dtype=torch.long),
        "attention_mask": torch.ones(rows, before + count, dtype=torch.long),
    }
    places = head.backbone.next_positions(positions).expand(-1, -1, count)
    hidden = head.backbone(token, places, cache)[:, -1]
    head.backbone.logits(hidden).float().topk(8)


def encoding(head: CotRetriever, card: Accelerator, pictures: int = ENCODED) -> dict:
    """Count what encoding a batch of gallery pictures needs."""
    pairs = SyntheticPairs(pictures, picture_side(head))
    shown: list[Any] = [pairs[index, 0].reference for index in range(pictures)]
    inputs = head.encoder().target(shown)
    with torch.no_grad(), FakeMeter(card) as meter:
        head.read(inputs)
    return {
        "pictures": pictures,
        "tokens": int(inputs["attention_mask"].sum()),
        "operations": meter.operations,
        "kernels": meter.kernels,
        "synchronisations": meter.synchronisations,
        "seconds": meter.seconds,
        "pictures_per_second": pictures / meter.seconds,
        "peak_gib": (_all_bytes(head) + meter.peak) / GIB,
    }


def prompts(head: CotRetriever, rows: int) -> dict[str, Any]:
    """Return the prompts of synthetic queries."""
    pairs = SyntheticPairs(rows, picture_side(head))
    asked = [pairs[index, 0] for index in range(rows)]
    pictures: list[Any] = [row.reference for row in asked]
    texts = [row.record.text for row in asked]
    return head.encoder("left").query(pictures, texts, [[]] * rows)[0]


def _all_bytes(head: CotRetriever) -> int:
    return sum(value.nbytes for value in (*head.parameters(), *head.buffers()))


def _cached_bytes(head: CotRetriever) -> int:
    """Return the bytes of a token in the key-value cache of a bfloat16 model."""
    text = head.backbone.config.get_text_config()
    size = text.hidden_size // text.num_attention_heads
    return 2 * 2 * text.num_hidden_layers * text.num_key_value_heads * size
