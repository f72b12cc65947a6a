"""Encode pictures of one size fast: positions and windows are computed once for all batches.

For training the tiny base that the package ships, a Qwen2.5-VL, on drawn scenes of 84 x 84 pixels. transformers' vision
tower computes positions and windows anew for each batch, picture by picture. Guaranteed are the same features, up to
rounding, and the same gradients. Pictures of other sizes need the tower itself.
"""

from functools import cache

import torch
from torch import Tensor

from cir_cot import compat  # noqa: F401  # isort: skip
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from .backbone import Backbone
from .vision_attention import use_attention_by_length

GRID = (1, 6, 6)  # patches of a picture of 84 x 84 pixels
VISUAL_TOKENS = 9


def picture_grid(count: int) -> Tensor:
    """Return the grids (B, 3) of `count` pictures: frames, rows and columns of patches."""
    return torch.tensor([GRID]).expand(count, -1)


@cache
def tower_inputs(
    count: int, window: int, merge: int, patch: int, device: torch.device
) -> dict[str, Tensor]:
    """Compute positions, window order and boundaries for `count` pictures, once for each batch size.

    Args:
        count: Pictures of a batch, B.
        window: Side of a window in pixels.
        merge: Patches along the side of a visual token.
        patch: Side of a patch in pixels.
        device: Where the tower is.

    Returns:
        Keyword arguments of the tower's forward.
    """
    grid = picture_grid(count)
    index, boundaries = get_vision_window_index(
        grid, spatial_merge_size=merge, window_size=window, patch_size=patch
    )
    patches = GRID[1] * GRID[2]
    layout = {
        "grid_thw": grid,
        "position_ids": get_vision_position_ids(grid, merge),
        # Layers without windows attend within each picture.
        "cu_seqlens": torch.arange(0, (count + 1) * patches, patches, dtype=torch.int32),
        "window_index": index,
        "cu_window_seqlens": boundaries,
    }
    return {name: value.to(device) for name, value in layout.items()}


def picture_features(base: Backbone, pictures: Tensor) -> Tensor:
    """Compute the visual tokens (B * 9, H) of pictures (B, S, S, 3) uint8, on their device."""
    tower = base.plain.model.visual
    # One attention call a layer.
    use_attention_by_length(base.plain)
    config = tower.config
    # Cut pictures into patches, with the checkpoint's own normalisation.
    processed = base.processor.image_processor(
        images=list(pictures.permute(0, 3, 1, 2)), return_tensors="pt", device=pictures.device
    )
    # The tiny base's window is as large as its picture, so that both have equally many patches.
    layout = tower_inputs(
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
        **layout,
    ).pooler_output
