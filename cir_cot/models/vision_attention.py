"""Attend within the windows of a vision tower with one call a window length instead of one call a window.

Qwen2.5-VL's tower attends within windows of 112 x 112 pixels, and in a few layers within each picture; Qwen2-VL and
Qwen3-VL attend within each picture. Under sdpa transformers calls attention once for every window: 27,036 times for 32
photographs. A batch of pictures has few different window lengths, though, and windows of one length are a batch for one
call. The features are the same up to rounding.

transformers passes the boundaries of windows only to attentions with "flash" in their names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.weak import WeakIdKeyDictionary

from cir_cot import compat  # noqa: F401  # isort: skip
from transformers import AttentionInterface
from transformers.utils import generic

if TYPE_CHECKING:
    from .architectures import QwenVL

BY_LENGTH = "windows_by_length_flash"

# The layers of a tower share the boundaries, so that windows are grouped once a batch.
_groups: WeakIdKeyDictionary = WeakIdKeyDictionary()


def attend_by_length(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    cu_seq_lens_q: Tensor,
    dropout: float = 0.0,
    **_: object,
) -> tuple[Tensor, None]:
    """Attend within windows, with the signature that transformers calls.

    Args:
        query: States (1, heads, P, D) of the patches of all pictures, window by window.
        key: States of the same shape.
        value: States of the same shape.
        scaling: Factor on the products of query and key.
        cu_seq_lens_q: Boundaries (W + 1,) of the windows in P.
        dropout: Share of attention weights that are dropped.

    Returns:
        Attended values (1, P, heads, D), and None for the weights.
    """
    groups, inverse = window_groups(cu_seq_lens_q)
    parts = []
    for rows in groups:  # (W, n): the patches of W windows of n patches
        attended = functional.scaled_dot_product_attention(
            _by_window(query, rows, inverse is None),
            _by_window(key, rows, inverse is None),
            _by_window(value, rows, inverse is None),
            dropout_p=dropout,
            scale=scaling,
        )  # (W, heads, n, D)
        parts.append(attended.transpose(1, 2).flatten(0, 1))  # (W * n, heads, D)
    whole = torch.cat(parts) if inverse is None else torch.cat(parts)[inverse]
    return whole[None], None  # (1, P, heads, D)


def _by_window(states: Tensor, rows: Tensor, whole: bool) -> Tensor:
    """Make windows (W, n) of patches a batch: (1, heads, P, D) -> (W, heads, n, D); `whole`: they are all in order."""
    chosen = states[0] if whole else states[0][:, rows.flatten()]
    return chosen.unflatten(1, rows.shape).transpose(0, 1)


def window_groups(boundaries: Tensor) -> tuple[list[Tensor], Tensor | None]:
    """Group windows by their length.

    Args:
        boundaries: (W + 1,), from 0 to the number of patches.

    Returns:
        For each length the patches (windows of it, length), and the place (P,) of each patch among them; None where
        all windows have one length.
    """
    if boundaries not in _groups:
        bounds = boundaries.tolist()
        by_length: dict[int, list[int]] = {}
        for start, end in zip(bounds, bounds[1:], strict=False):
            by_length.setdefault(end - start, []).append(start)
        groups = []
        for length, starts in by_length.items():
            first = torch.tensor(starts)[:, None]  # (windows, 1)
            groups.append((first + torch.arange(length)).to(boundaries.device))
        order = torch.cat([rows.flatten() for rows in groups])
        _groups[boundaries] = (groups, order.argsort() if len(groups) > 1 else None)
    return _groups[boundaries]


def tower_options(model: QwenVL) -> dict[str, int]:
    """Return arguments of a model's forward pass with pictures that save the host two waits for each window layout.

    For attentions with "flash" in their names transformers reads the longest window from the device, unless it is
    given. `attend_by_length` does not use it.
    """
    vision = model.config.vision_config
    if vision._attn_implementation != BY_LENGTH or not hasattr(
        generic, "accepts_precomputed_kwargs"
    ):
        return {}
    names = ["image_max_seqlen"]
    if hasattr(vision, "fullatt_block_indexes"):
        names.append("image_max_window_seqlen")
    return dict.fromkeys(names, 0)


def use_attention_by_length(model: QwenVL) -> None:
    """Route the attention of a model's vision tower through `attend_by_length`."""
    AttentionInterface.register(BY_LENGTH, attend_by_length)
    model.model.visual.config._attn_implementation = BY_LENGTH
