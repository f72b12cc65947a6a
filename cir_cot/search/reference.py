"""Tell which pictures of a gallery are the reference of a query itself, by the content of its file.

Whoever asks for "the same in red" has the reference already; as a hit it would take the place of another picture.
"""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageFile

from cir_cot.digests import digest_file

from .gallery_index import GalleryIndex


def digest_of(image: Image.Image | str | Path) -> str:
    """Return the digest of a picture's file, as indexes store it; "" for a picture without a file.

    Args:
        image: a file's path, or a picture as `PIL.Image.open` returns it. One that was cropped or converted since has
            no file: it may show something else.
    """
    if isinstance(image, Image.Image):
        name = image.filename if isinstance(image, ImageFile.ImageFile) else ""
        if not name or not isinstance(name, str | Path):
            return ""
        image = name
    try:
        return digest_file(Path(image))
    except OSError:
        return ""


def copies_of(index: GalleryIndex, references: Sequence[str]) -> list[set[str]]:
    """Return for each reference, a digest or "", the ids of the pictures in the gallery with the same content."""
    known: dict[str, set[str]] = {"": set()}
    for digest in references:
        if digest not in known:
            known[digest] = set(index.ids_of(digest))
    return [known[digest] for digest in references]
