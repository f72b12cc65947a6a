"""Find files of the public datasets in any of the folder layouts that users have.

Users have the layout of whichever repository they downloaded a dataset for. The tables list those
layouts. They are tried in order, and a failure lists all that was tried.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from cir_cot.errors import UnavailableError
from cir_cot.images import Box, ImageStore

# fmt: off
# The rows of each table are tried from top to bottom. {c} stands for the category.

# FashionIQ: below --root, the folder of the annotations; in it, captions; near it, images
FASHIONIQ_BASES = (
    ".",
    "fashionIQ_dataset",                    # CLIP4Cir, SPRC
    "fashionIQ",
    "fashion-iq",
    "fashion_iq",
    "fashioniq",
    "FashionIQ",
    "fiq",
)
FASHIONIQ_CAPTIONS = (
    "captions",                             # the official repository
    "json",
)
FASHIONIQ_IMAGES = (
    "images",
    "img",
    "resized_images/{c}",
    "image_data/{c}",
    "all_imgs",
    "data/resized_images/{c}",
)

# CIRR: below --root, the folder of the annotations; near it, the parent of the split's own folder
# of images
CIRR_BASES = (
    "cirr",
    ".",
    "cirr_dataset/cirr",
    "data/cirr",
    "CIRR",
    "CIRR/cirr",
    "annotation/cirr",
    "cirr_dataset",
)
CIRR_IMAGES = (
    ".",
    "img_raw",
    "images",
    "CIRR/images",
    "datasets/CIRR/images",
)
CIRR_FOLDERS = {                            # split: its folder of images
    "train": "train",
    "val":   "dev",
    "test1": "test1",
}

# CIRCO: below --root, the folder of the annotations; in it, images and one of two lists of the
# gallery
CIRCO_BASES = (
    ".",
    "CIRCO",
    "circo",
)
CIRCO_IMAGES = (
    "COCO2017_unlabeled/unlabeled2017",     # the official repository
    "unlabeled2017",
)
CIRCO_INFO = (                              # COCO's image info: ids and file names
    "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json",
    "annotations/image_info_unlabeled2017.json",
)
CIRCO_IDS = (                               # a plain list of ids, one a line
    "coco2017_unlabeled_ids.txt",
    "coco2017_unlabeled_ids.txt.gz",
)

# Shoes: below --root, the folder of the annotations; in it, images at any depth
SHOES_BASES = (
    ".",
    "shoes",
    "Shoes",
    "shoes_dataset",
)
SHOES_IMAGES = (
    "attributedata",
    "images",
    ".",
)

# GeneCIS: below --root, the task files; near them, images by the kind of task
GENECIS_FILES = (
    "genecis/{c}.json",
    "{c}.json",
    "genecis/genecis/{c}.json",
)
GENECIS_IMAGES = {
    "attribute": ("VG_100K_all", "genecis/VG_100K_all", "vg/VG_100K_all"),  # Visual Genome
    "object":    ("val2017",     "genecis/val2017",     "coco/val2017"),    # COCO 2017 val
}
# fmt: on


def find(root: str | Path, names: Sequence[str], what: str) -> Path:
    """Return the first of `names` that exists below `root`; an error lists all that were tried."""
    root = Path(root)
    if not root.is_dir():
        raise UnavailableError(f"{root}: no such folder; --root is the folder of the dataset")
    for name in names:
        if (root / name).exists():
            return root / name
    tried = dict.fromkeys(map(os.path.normpath, names))
    raise UnavailableError(f"no {what} in {root}; looked for {', '.join(tried)}")


def around(root: Path, base: Path, names: Sequence[str]) -> list[str]:
    """Return `names` in the annotations' folder, `base`, and in each folder above it up to `root`.

    The result is paths relative to `root`, those in `base` first.
    """
    places = [place for place in (base, *base.parents) if place.is_relative_to(root)]
    return [str((place / name).relative_to(root)) for place in places for name in names]


def open_images(
    root: Path,
    folders: Sequence[str],
    what: str,
    files: Mapping[str, str] | None = None,
    boxes: Mapping[str, Box] | None = None,
) -> ImageStore:
    """Return a store of the images in the first of `folders` that exists below `root`."""
    return ImageStore(find(root, folders, f"pictures of {what}"), files, boxes)


def open_images_by_name(
    root: Path, folders: Sequence[str], what: str, names: Collection[str]
) -> ImageStore:
    """Return a store of images that lie at any depth of a folder under their own names (Shoes).

    The folder is walked once; of a name that occurs twice the first file counts.
    """
    folder = find(root, folders, f"pictures of {what}")
    wanted = set(names)
    files: dict[str, str] = {}
    for path, _, found in os.walk(folder):
        for name in sorted(wanted.intersection(found)):
            files.setdefault(name, os.path.relpath(os.path.join(path, name), folder))
    if not files:
        raise UnavailableError(
            f"no pictures of {what} in {folder}; looked below it for {len(wanted)} names"
        )
    return ImageStore(folder, files)
