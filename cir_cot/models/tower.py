"""Run the vision tower on pictures of one size: positions and windows once, one attention call a layer.

transformers' Qwen2.5-VL tower attends to each window in a call of its own, and finds windows picture by picture. Where
every picture has the same grid, both repeat: one batched call over equal windows computes the same features.
"""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from cir_cot import compat  # noqa: F401  # isort: skip
from transformers import AttentionInterface
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from .backbone import Backbone

GRID = (1, 6, 6)  # patches of a picture of 84 x 84 pixels
VISUAL_TOKENS = 9
EQUAL_WINDOWS = (
    "equal_windows_flash"  # transformers passes window boundaries to attention named "...flash..."
)


def attend_to_equal_windows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    max_length_q: int = 0,
    **_: object,
) -> tuple[Tensor, None]:
    """Attend within windows of `max_length_q` patches each: query, key, value (1, heads, P, D) -> (1, P, heads, D)."""
    length = int(max_length_q)
    windows = [
        x[0].unflatten(1, (-1, length)).transpose(0, 1) for x in (query, key, value)
    ]  # (W, heads, length, D)
    found = functional.scaled_dot_product_attention(*windows, dropout_p=dropout, scale=scaling)
    return found.transpose(1, 2).flatten(0, 1)[None], None


AttentionInterface.register(EQUAL_WINDOWS, attend_to_equal_windows)


def picture_grid(count: int) -> Tensor:
    """Return the grids (B, 3) of `count` pictures."""
    return torch.tensor([GRID]).expand(count, -1)


@cache
def tower_inputs(
    count: int, window: int, merge: int, patch: int, device: torch.device
) -> dict[str, Tensor]:
    """Compute what the tower needs to know of `count` pictures, once."""
    grid = picture_grid(count)
    index, boundaries = get_vision_window_index(
        grid, spatial_merge_size=merge, window_size=window, patch_size=patch
    )
    patches = GRID[1] * GRID[2]
    places = {
        "grid_thw": grid,
        "position_ids": get_vision_position_ids(grid, merge),
        "cu_seqlens": torch.arange(0, (count + 1) * patches, patches, dtype=torch.int32),
        "window_index": index,
        "cu_window_seqlens": boundaries,
    }
    return {name: value.to(device) for name, value in places.items()}


def picture_features(base: Backbone, pictures: Tensor) -> Tensor:
    """Compute the visual tokens (B * 9, H) of pictures (B, S, S, 3) uint8, on their device."""
    tower = base.plain.model.visual
    config = tower.config
    config._attn_implementation = EQUAL_WINDOWS
    processed = base.processor.image_processor(
        images=list(pictures.permute(0, 3, 1, 2)), return_tensors="pt", device=pictures.device
    )
    known = tower_inputs(
        len(pictures),
        config.window_size,
        config.spatial_merge_size,
        config.patch_size,
        pictures.device,
    )
    patches = GRID[1] * GRID[2]
    return tower(
        processed["pixel_values"].to(tower.dtype),
        max_seqlen=patches,
        max_window_seqlen=patches,
        **known,
    ).pooler_output
