"""Compute a picture's sides as Qwen's processors choose them, by Qwen's own package.

The package takes torch and torchvision, seconds and hundreds of megabytes: it is imported where a picture needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cir_cot.images import MAX_RATIO

if TYPE_CHECKING:
    # An image processor of transformers. Its classes set patch_size, merge_size and size from their settings, so that
    # no type of theirs declares them; getattr below tells Qwen's from others.
    ImageProcessor = Any

TOKEN = 28  # side of a visual token in pixels with Qwen2-VL and Qwen2.5-VL; 32 with Qwen3-VL


def token_side(images: ImageProcessor) -> int:
    """Return the side of a visual token in pixels; TOKEN for an image processor that is not Qwen's."""
    merge = getattr(images, "merge_size", None)
    return images.patch_size * merge if merge else TOKEN


def picture_bounds(images: ImageProcessor) -> dict[str, int]:
    """Return an image processor's bounds in the keys of qwen-vl-utils' messages, {} where it is not Qwen's.

    The upper bound is at least MAX_RATIO visual tokens: below it, qwen-vl-utils would give a thin picture a side of 0,
    and the processor would not.
    """
    if not getattr(images, "merge_size", None):
        return {}
    low = images.size["shortest_edge"]
    high = images.size["longest_edge"]
    return {"min_pixels": low, "max_pixels": max(high, MAX_RATIO * token_side(images) ** 2)}


def smart_size(
    height: int,
    width: int,
    side: int = TOKEN,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> tuple[int, int]:
    """Choose a resized picture's height and width: multiples of `side`, nearly the same shape, within the bounds.

    The default bounds are those of qwen-vl-utils, 4 and 16,384 visual tokens. The processors of transformers choose the
    same sides for any picture longer than half a visual token on both sides. Like them, and unlike qwen-vl-utils, this
    keeps at least one visual token on the short side, however small `max_pixels` is.

    Example:
        smart_size(480, 640, max_pixels=401_408)  # (476, 644)
    """
    from cir_cot import compat  # noqa: F401  # isort: skip
    from qwen_vl_utils import vision_process

    # A small upper bound alone lowers the package's own lower bound.
    if max_pixels is not None and min_pixels is None:
        min_pixels = min(max_pixels, vision_process.IMAGE_MIN_TOKEN_NUM * side**2)
    # A small upper bound would bring the short side to 0.
    found = vision_process.smart_resize(height, width, side, min_pixels, max_pixels)
    return max(side, found[0]), max(side, found[1])


def is_shrunk(height: int, width: int, side: int, max_pixels: int) -> bool:
    """Tell whether the bound `max_pixels` makes a picture smaller than it would be without a bound."""
    bounded = smart_size(height, width, side, 1, max_pixels)
    return bounded != smart_size(height, width, side, 1, 2**62)
