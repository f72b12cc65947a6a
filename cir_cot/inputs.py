"""Take pictures and texts as people give them: a file's path or a picture in any mode, one or many."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from .errors import InputError, shown
from .images import ImageStore, check_ratio, to_rgb

Picture = Image.Image | str | Path


def open_picture(path: str | Path) -> Image.Image:
    """Open a picture file safely, in RGB; InputError names what is wrong with it."""
    try:
        path = Path(path).resolve()
        found = path.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        # The name is too long, is a circle of links, or holds a NUL.
        raise InputError(
            f"{shown(str(path))}: cannot be opened ({getattr(error, 'strerror', error)})"
        ) from error
    if not found:
        raise InputError(f"{path}: no such file")
    # An image store checks size and format before it decodes.
    return ImageStore(path.parent, {path.name: path.name}).load(path.name)


def as_list(images: Picture | Sequence[Picture]) -> list[Picture]:
    """Return one or many pictures as a list."""
    return [images] if isinstance(images, Picture) else list(images)


def as_pictures(images: Picture | Sequence[Picture]) -> list[Image.Image]:
    """Return pictures in RGB, from one or many pictures of any mode or paths of files.

    Raises:
        InputError: a file is no readable picture, or a picture is too narrow for Qwen-VL.

    Example:
        as_pictures("shirt.jpg")  # [a picture]
        as_pictures([Image.open("logo.png"), "shirt.jpg"])  # transparent pixels are white
    """
    found = []
    for number, image in enumerate(as_list(images)):
        if not isinstance(image, Image.Image):
            image = open_picture(image)
        check_ratio(*image.size, f"picture {number}")
        plain = image.mode == "RGB" and "transparency" not in image.info
        found.append(image if plain else to_rgb(image))
    return found


def as_queries(
    images: Picture | Sequence[Picture], texts: str | Sequence[str]
) -> tuple[list[Image.Image], list[str]]:
    """Return the reference pictures and texts of B queries; InputError unless there are equally many."""
    pictures = as_pictures(images)
    words = [texts] if isinstance(texts, str) else list(texts)
    check_pairs(pictures, words)
    return pictures, words


def check_pairs(images: Sequence, texts: Sequence) -> None:
    """Raise InputError unless there is a text for each picture."""
    if len(images) != len(texts):
        raise InputError(
            f"{len(images)} pictures and {len(texts)} texts: give one text for each picture"
        )
