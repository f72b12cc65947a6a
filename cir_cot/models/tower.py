"""Encode pictures of one size fast: positions and windows once for all batches, one attention call a layer.

For training the tiny base that the package ships, a Qwen2.5-VL, on drawn scenes of 84 x 84 pixels. transformers' vision
tower computes positions and windows anew for each batch, picture by picture, and attends to each window in a call of
its own. Where every picture has the same grid, all windows are equally long: they are one batch for one call.
Guaranteed are the same features, up to rounding, and the same gradients. Pictures of other sizes need the tower itself.

`picture_features` sets the tower's attention to EQUAL_WINDOWS and leaves it so, since it is called in every step; set
`config._attn_implementation` to "sdpa" before the tower reads other pictures or is saved.
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
# transformers passes the lengths of windows only to an attention with "flash" in its name.
EQUAL_WINDOWS = "equal_windows_flash"


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
    """Attend within windows of `max_length_q` patches each, with the signature that transformers calls.

    Args:
        query: States (1, heads, P, D) of the patches of all pictures, window by window.
        key: States of the same shape.
        value: States of the same shape.
        scaling: Factor on the products of query and key.
        dropout: Share of attention weights that are dropped.
        max_length_q: Patches of a window.

    Returns:
        Attended values (1, P, heads, D), and None for the weights.
    """
    length = int(max_length_q)

    def by_window(states: Tensor) -> Tensor:
        """Make the windows a batch: (1, heads, P, D) -> (W, heads, length, D)."""
        return states[0].unflatten(1, (-1, length)).transpose(0, 1)

    attended = functional.scaled_dot_product_attention(
        by_window(query), by_window(key), by_window(value), dropout_p=dropout, scale=scaling
    )  # (W, heads, length, D)
    return attended.transpose(1, 2).flatten(0, 1)[None], None  # (1, P, heads, D)


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
    # Route the tower's attention through `attend_to_equal_windows`.
    AttentionInterface.register(EQUAL_WINDOWS, attend_to_equal_windows)
    config = tower.config
    config._attn_implementation = EQUAL_WINDOWS
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
