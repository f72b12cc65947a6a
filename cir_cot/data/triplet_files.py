"""Write a folder dataset of triplets from a folder of pictures and a CSV file about them."""

import csv
import hashlib
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cir_cot.errors import InputError
from cir_cot.files import write_text_atomic
from cir_cot.ownership import writing
from cir_cot.picture_files import unique_pictures
from cir_cot.records import Record, write_records

from .edit_sentences import Wording, read_templates
from .triplets import CAPTION, triplets


class Written(NamedTuple):
    """Count what `write_triplets` wrote."""

    queries: dict[str, int]  # by split, only those that have queries
    pictures: dict[str, int]  # the same splits
    unused: int  # pictures without a row in the CSV file
    skipped: str  # files that are no pictures, counted by kind; "" where there are none


def write_triplets(
    root: Path,
    labels: Path,
    val: float,
    edits: int,
    seed: int,
    chains: bool,
    overwrite: bool = False,
    natural: bool = True,
    texts: int = 1,
    templates: Path | None = None,
) -> Written:
    """Write records and galleries of train and val beside the pictures.

    Args:
        root: a folder with `images/` in it.
        labels: CSV; see `read_descriptions`.
        val: share of the pictures in val, from 0 to below 1.
        edits: queries on each picture, at most.
        seed: chooses among the possible edits.
        chains: whether to write chains, too.
        overwrite: replace files that this function did not write, too.
        natural: word changes of labels as people would, instead of stating column and values.
        texts: differently worded queries for the same edit, at most.
        templates: JSON file of own sentences; see `read_templates`.
    """
    # what there is
    found = unique_pictures(root / "images")
    names = sorted(found.files)
    described = read_descriptions(labels, names)
    splits = split(list(described), val)
    wording = wording_of(described, templates) if natural else None

    # all queries, before anything is written
    queries: dict[str, list[Record]] = {}
    for name, images in splits.items():
        some = {image: described[image] for image in images}
        source = f"{root.name}/{name}"  # of its records
        draw = random.Random(seed)
        records = list(triplets(some, edits, draw, chains, source, wording, texts))
        if records:
            queries[name] = records
        elif images:
            raise _too_different(labels, name, len(images))

    # list all files before the first one is written
    files = []
    for name in queries:
        files += [f"records.{name}.jsonl", f"gallery.{name}.txt"]
    with writing(root, "triplets", files, overwrite):
        for name, records in queries.items():
            gallery = "".join(f"{image}\n" for image in splits[name])
            write_records(root / f"records.{name}.jsonl", records)
            write_text_atomic(root / f"gallery.{name}.txt", gallery)
    return Written(
        queries={name: len(records) for name, records in queries.items()},
        pictures={name: len(splits[name]) for name in queries},
        unused=len(names) - len(described),
        skipped=found.skipped_line(),
    )


def wording_of(described: Mapping[str, Mapping[str, str]], templates: Path | None) -> Wording:
    """Return the wording of labels' changes, with a user's own templates if there is a file of them."""
    columns = dict.fromkeys(name for labels in described.values() for name in labels)
    own = None if templates is None else read_templates(templates, columns)
    return Wording(described.values(), own)


# ---- reading


def _too_different(labels: Path, split: str, count: int) -> InputError:
    """Return the error of a split without a single query."""
    cure = "" if split == "train" else ", or --val 0"
    return InputError(
        f"{labels}: no two of the {count} pictures of {split} are alike enough for an edit; give "
        f"more pictures, or labels that several pictures share{cure}"
    )


def read_descriptions(path: Path, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return {image id: {column: value}} of a CSV file, in its order; blank values are left out.

    Args:
        path: CSV with the header `image` and names of labels, or `image` and `caption`.
        names: ids of the images that exist.

    Raises:
        InputError: names the row of an image that does not exist or has a row already, or of a
            wrong length.
    """
    known = set(names)
    rows = _read_csv(path)
    header = [name.strip() for name in rows[0]] if rows else []
    _check_header(path, header)
    described: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows[1:], 2):
        # blank lines
        if not any(row):
            continue
        where = f"{path}: row {number}"
        if len(row) != len(header):
            raise InputError(f"{where}: {len(row)} values under {len(header)} names")

        # white space within a value counts as one space
        image, *values = [" ".join(value.split()) for value in row]
        if image not in known:
            raise InputError(
                f"{where}: no picture {image!r}; it is the path in images/ without the extension"
            )
        if image in described:
            raise InputError(f"{where}: image {image!r} has a line already")
        columns = zip(header[1:], values, strict=True)
        described[image] = {name: value for name, value in columns if value}
    return described


def _read_csv(path: Path) -> list[list[str]]:
    """Return the rows of a CSV file in UTF-8."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(csv.reader(file, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a CSV file in UTF-8 ({error})") from error


def _check_header(path: Path, header: list[str]) -> None:
    """Refuse a header other than `image` and distinct labels, or `image` and `caption`."""
    # names of labels must be distinct, because they are keys
    distinct = len(set(header)) == len(header) and all(header)
    if header[:1] != ["image"] or len(header) < 2 or not distinct:
        raise InputError(
            f"{path}:1: the header must be 'image' and different names of labels or 'caption', got {header}"
        )
    if CAPTION in header and len(header) > 2:
        raise InputError(
            f"{path}:1: 'caption' stands alone beside 'image'; leave {header[1:]} or the captions out"
        )


def split(images: Sequence[str], share: float) -> dict[str, list[str]]:
    """Divide images into "train" and "val" by a hash of their ids.

    An image never changes its split, whatever is added to the folder.

    Args:
        images: image ids.
        share: of val, from 0 to below 1.
    """
    splits: dict[str, list[str]] = {"train": [], "val": []}
    for image in images:
        number = int.from_bytes(hashlib.sha256(image.encode()).digest()[:8], "big")  # 64 bits
        splits["val" if number < share * 2**64 else "train"].append(image)
    return splits
