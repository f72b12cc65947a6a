"""Sizes of pictures: qwen-vl-utils' numbers are those of the processors that the models read through."""

import random
from types import SimpleNamespace

import pytest
from PIL import Image

from cir_cot import compat  # noqa: F401  # isort: skip
import transformers
from qwen_vl_utils import process_vision_info

from cir_cot.images import MAX_RATIO
from cir_cot.models.resizing import is_shrunk, picture_bounds, smart_size, token_side

BOUNDS = ((1, 9), (4, 1280), (4, 16384), (256, 1280))  # of a picture's area, in visual tokens


def sizes(side: int, count: int) -> list[tuple[int, int]]:
    """Heights and widths of all shapes, all sides longer than half a visual token."""
    generator = random.Random(0)
    edges = (
        side // 2 + 1,
        side - 1,
        side,
        3 * side // 2,
        2 * side,
        5 * side // 2,
    )  # where rounding turns
    found = [(height, width) for height in edges for width in edges]
    while len(found) < count:
        height, width = (int((side // 2 + 1) * 2 ** generator.uniform(0, 6)) for _ in range(2))
        if max(height, width) <= MAX_RATIO * min(height, width):
            found.append((height, width))
    return found


def processor(patch: int, bounds: tuple[int, int]) -> transformers.Qwen2VLImageProcessor:
    area = (2 * patch) ** 2
    size = {"shortest_edge": bounds[0] * area, "longest_edge": bounds[1] * area}
    return transformers.Qwen2VLImageProcessor(patch_size=patch, merge_size=2, size=size)


@pytest.mark.parametrize("patch", [14, 16])
@pytest.mark.parametrize("bounds", BOUNDS)
def test_a_size_is_the_grid_of_the_processor(patch, bounds):
    images = processor(patch, bounds)
    side = token_side(images)
    assert side == 2 * patch
    for height, width in sizes(side, 80):
        (grid,) = images(images=[Image.new("RGB", (width, height))], return_tensors="pt")[
            "image_grid_thw"
        ].tolist()
        chosen = smart_size(height, width, side, *(bound * side**2 for bound in bounds))
        assert grid == [1, *(edge // patch for edge in chosen)], (height, width)


@pytest.mark.parametrize("patch", [14, 16])
@pytest.mark.parametrize("bounds", BOUNDS[1:])
def test_a_picture_of_a_message_has_the_sides_that_the_processor_gives_it(patch, bounds):
    images = processor(patch, bounds)
    for height, width in sizes(2 * patch, 60):
        picture = Image.new("RGB", (width, height))
        chat = [
            {
                "role": "user",
                "content": [{"type": "image", "image": picture, **picture_bounds(images)}],
            }
        ]
        (prepared,) = process_vision_info(chat, image_patch_size=patch)[0]
        for one in (picture, prepared):
            (grid,) = images(images=[one], return_tensors="pt")["image_grid_thw"].tolist()
            assert grid == [1, prepared.height // patch, prepared.width // patch], (height, width)


def test_the_thinnest_picture_keeps_a_visual_token_on_its_short_side():
    part = {
        "type": "image",
        "image": Image.new("RGB", (20, 20 * MAX_RATIO)),
        **picture_bounds(processor(14, (1, 9))),
    }
    assert process_vision_info([{"role": "user", "content": [part]}])[0][0].width == 28
    assert smart_size(20, 20 * MAX_RATIO, max_pixels=9 * 28 * 28)[0] == 28
    assert smart_size(20 * MAX_RATIO, 20, max_pixels=9 * 28 * 28)[1] == 28


@pytest.mark.parametrize(
    ("size", "options", "chosen"),
    [
        ((100, 200), {}, (112, 196)),
        ((10, 10), {}, (56, 56)),  # four visual tokens at least
        ((8000, 8000), {}, (3584, 3584)),  # 16,384 at most
        ((100, 200), {"side": 32}, (96, 192)),
        ((100, 200), {"max_pixels": 784}, (28, 28)),  # a bound below the least that is usual
    ],
)
def test_the_sides_are_whole_visual_tokens_within_the_bounds(size, options, chosen):
    assert smart_size(*size, **options) == chosen


def test_a_picture_is_shrunk_only_where_the_bound_makes_it_smaller():
    assert is_shrunk(57, 57, 28, 56 * 56 - 1)
    assert not is_shrunk(57, 57, 28, 56 * 56)  # rounded down to 56 x 56, with or without a bound
    assert is_shrunk(43, 43, 28, 56 * 56 - 1)  # rounded up beyond the bound
    assert not is_shrunk(4000, 5000, 28, 2**26)


def test_an_image_processor_that_is_not_qwens_has_no_bounds_of_its_own():
    foreign = SimpleNamespace(size={"height": 224, "width": 224}, patch_size=16)
    assert picture_bounds(foreign) == {}
    assert token_side(foreign) == 28
