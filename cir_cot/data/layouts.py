"""Where the public datasets lie on people's disks: probing, and strict reading of annotation lists.

Users have the layout of whatever repository they came from; each is tried, and a failure lists what was looked for.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from cir_cot.errors import InputError, UnavailableError, shown
from cir_cot.files import first_repeated, read_bytes, read_json
from cir_cot.images import Box, ImageStore
from cir_cot.records import Record, check_text

FASHIONIQ_BASES = (
    ".",
    "fashionIQ_dataset",
    "fashionIQ",
    "fashion-iq",
    "fashion_iq",
    "fashioniq",
    "FashionIQ",
    "fiq",
)
FASHIONIQ_CAPTIONS = ("captions", "json")
FASHIONIQ_IMAGES = (
    "images",
    "img",
    "resized_images/{c}",
    "image_data/{c}",
    "all_imgs",
    "data/resized_images/{c}",
)
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
CIRR_IMAGES = (".", "img_raw", "images", "CIRR/images", "datasets/CIRR/images")
CIRR_FOLDERS = {"train": "train", "val": "dev", "test1": "test1"}
CIRCO_BASES = (".", "CIRCO", "circo")
CIRCO_IMAGES = ("COCO2017_unlabeled/unlabeled2017", "unlabeled2017")
CIRCO_INFO = (
    "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json",
    "annotations/image_info_unlabeled2017.json",
)
CIRCO_IDS = ("coco2017_unlabeled_ids.txt", "coco2017_unlabeled_ids.txt.gz")
SHOES_BASES = (".", "shoes", "Shoes", "shoes_dataset")
SHOES_IMAGES = ("attributedata", "images", ".")
GENECIS_FILES = ("genecis/{c}.json", "{c}.json", "genecis/genecis/{c}.json")
GENECIS_IMAGES = {
    "attribute": ("VG_100K_all", "genecis/VG_100K_all", "vg/VG_100K_all"),
    "object": ("val2017", "genecis/val2017", "coco/val2017"),
}


def find(root: str | Path, names: Sequence[str], what: str) -> Path:
    """The first of `names` that exists below `root`; InputError lists all that were looked for."""
    root = Path(root)
    if not root.is_dir():
        raise UnavailableError(f"{root}: no such folder; --root is the folder of the dataset")
    for name in names:
        if (root / name).exists():
            return root / name
    raise UnavailableError(
        f"no {what} in {root}; looked for {', '.join(dict.fromkeys(map(os.path.normpath, names)))}"
    )


def around(root: Path, base: Path, names: Sequence[str]) -> list[str]:
    """`names` in the folder of the annotations, `base`, and in those above it up to `root`, as paths from `root`."""
    places = [place for place in (base, *base.parents) if place.is_relative_to(root)]
    return [str((place / name).relative_to(root)) for place in places for name in names]


def choose(option: str, value: object, allowed: Collection[str]) -> str:
    """`value`, if it is one of `allowed`."""
    if value not in allowed:
        raise UnavailableError(f"{option} {value!r} is unknown; choose from {', '.join(allowed)}")
    return value


def open_images(
    root: Path,
    folders: Sequence[str],
    what: str,
    files: Mapping[str, str] | None = None,
    boxes: Mapping[str, Box] | None = None,
) -> ImageStore:
    """The pictures in the first of `folders` that exists below `root`."""
    return ImageStore(find(root, folders, f"pictures of {what}"), files, boxes)


def open_images_by_name(
    root: Path, folders: Sequence[str], what: str, names: Collection[str]
) -> ImageStore:
    """Pictures that lie somewhere below a folder under their own names (Shoes): the folder is walked once."""
    folder, wanted, files = find(root, folders, f"pictures of {what}"), set(names), {}
    for path, _, found in os.walk(folder):
        for name in sorted(wanted.intersection(found)):
            files.setdefault(name, os.path.relpath(os.path.join(path, name), folder))
    if not files:
        raise UnavailableError(
            f"no pictures of {what} in {folder}; looked below it for {len(wanted)} names"
        )
    return ImageStore(folder, files)


def read_entries(path: Path, keys: Mapping[str, type]) -> list[dict]:
    """A JSON list of objects, each with `keys` of the given types; the first bad one is named by its index."""
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise InputError(
            f"{path}: a list of annotations is expected, got {type(entries).__name__} without entries"
        )
    for index, entry in enumerate(entries):
        check_entry(entry, keys, f"{path}: entry {index}")
    return entries


def check_entry(entry: object, keys: Mapping[str, type], where: str) -> None:
    """`entry` is an object with `keys` of the given types (a bool is no int)."""
    if not isinstance(entry, dict):
        raise InputError(f"{where} is no object but {type(entry).__name__}")
    for key, kind in keys.items():
        if key not in entry:
            raise InputError(f"{where}: key {key!r} is missing")
        value = entry[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InputError(f"{where}: {key!r} must be {kind.__name__}, got {shown(value)}")
        if kind is str:
            check_text(value, f"{where}: {key!r}")


def strings(value: object, where: str) -> tuple[str, ...]:
    """A JSON list of strings as a tuple."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InputError(f"{where} must be a list of strings, got {shown(value)}")
    return tuple(check_text(item, where) for item in value)


def read_names(path: Path) -> list[str]:
    """Image ids of a JSON list or of a text file with one a line; each occurs once."""
    if ".json" in path.suffixes:
        names = list(strings(read_json(path), f"{path}: the image ids"))
    else:
        try:
            names = [
                line.strip()
                for line in read_bytes(path).decode("utf-8-sig").splitlines()
                if line.strip()
            ]
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 text ({error})") from error
    if not names:
        raise InputError(f"{path}: no image ids in it")
    twice = first_repeated(names)
    if twice is not None:
        raise InputError(f"{path}: image {shown(twice)} is listed twice")
    return names


def _unique_ids(records: list[Record], path: Path) -> list[Record]:
    seen = set()
    for record in records:
        if record.id in seen:
            raise InputError(f"{path}: query id {record.id!r} occurs twice")
        seen.add(record.id)
    return records


def _no_category(name: str, category: str | None) -> None:
    if category is not None:
        raise UnavailableError(
            f"{name} has no categories, got {category!r}; leave the category out"
        )
