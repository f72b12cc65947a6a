"""Sides of a picture as Qwen's processors choose them, computed by Qwen's own package.

Importing that takes torch and torchvision, seconds and hundreds of megabytes, so it is done where a picture needs it.
"""

from cir_cot.images import MAX_RATIO

TOKEN = 28  # side of a visual token in pixels with Qwen2-VL and Qwen2.5-VL; 32 with Qwen3-VL


def token_side(images: object) -> int:
    """Side of a visual token in pixels; TOKEN for an image processor that is not Qwen's."""
    merge = getattr(images, "merge_size", None)
    return images.patch_size * merge if merge else TOKEN


def picture_bounds(images: object) -> dict[str, int]:
    """Bounds of a picture in a message, in qwen-vl-utils' words: an image processor's, {} where it is not Qwen's.

    The upper one is raised to MAX_RATIO visual tokens: below it a thin picture would get a side of 0 from the package,
    and not from the processor.
    """
    if not getattr(images, "merge_size", None):
        return {}
    low, high = images.size["shortest_edge"], images.size["longest_edge"]
    return {"min_pixels": low, "max_pixels": max(high, MAX_RATIO * token_side(images) ** 2)}


def smart_size(
    height: int,
    width: int,
    side: int = TOKEN,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> tuple[int, int]:
    """Choose (height, width): multiples of `side`, an area within the bounds, nearly the same shape.

    The default bounds are qwen-vl-utils', 4 and 16,384 visual tokens. Transformers' processors choose the same for any
    picture whose sides are longer than half a visual token. Like them and unlike qwen-vl-utils, which comes to 0 there,
    it keeps one visual token on the short side where a small `max_pixels` leaves less.
    """
    from cir_cot import compat  # noqa: F401  # isort: skip
    from qwen_vl_utils import vision_process

    if max_pixels is not None and min_pixels is None:
        min_pixels = min(max_pixels, vision_process.IMAGE_MIN_TOKEN_NUM * side**2)
    found = vision_process.smart_resize(height, width, side, min_pixels, max_pixels)
    return max(side, found[0]), max(side, found[1])


def is_shrunk(height: int, width: int, side: int, max_pixels: int) -> bool:
    """Tell whether the bound `max_pixels` makes a picture smaller than it would be without."""
    return smart_size(height, width, side, 1, max_pixels) != smart_size(
        height, width, side, 1, 2**62
    )
