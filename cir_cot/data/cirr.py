"""Load CIRR (Liu et al. 2021): queries over NLVR2 images, each with a set of six similar images."""

from functools import partial
from pathlib import Path

from cir_cot.errors import InputError, shown
from cir_cot.files import read_json
from cir_cot.images import ImageStore
from cir_cot.records import Record

from . import layouts
from .annotation_files import check_unique_ids, read_entries, strings
from .benchmark import Benchmark, choose, protocol_of, refuse_category
from .layouts import around, find, open_images

# Papers call some splits by other names.
SPLIT_NAMES = {"dev": "val", "test": "test1"}
# Keys of an entry.
KEYS = {"pairid": int, "reference": str, "caption": str, "img_set": dict}
TARGET_KEYS = {"target_hard": str, "target_soft": dict}  # not published for test1


def cirr(
    root: str | Path,
    split: str,
    category: str | None = None,
    reference: str = "remove",
    labels: str = "hard",
) -> list[Benchmark]:
    """Load CIRR rc2; a query's id is its pair id, its `subset` the image set with the reference.

    Args:
        root: a folder that holds CIRR in any layout of `layouts.CIRR_BASES`.
        split: "train", "val" or "test1", which has no published targets.
        category: must be None.
        reference: "remove" (official) or "keep" the reference image in the rankings.
        labels: "hard" (official, one target a query) or "soft" (graded targets).
    """
    refuse_category("cirr", category)
    split = choose("split", SPLIT_NAMES.get(split, split), layouts.CIRR_FOLDERS)
    choose("reference", reference, ("keep", "remove"))
    choose("labels", labels, ("hard", "soft"))
    root = Path(root)

    # the captions, in a folder of their own or beside the rest
    names = [
        f"{base}/{at}cap.rc2.{split}.json"
        for base in layouts.CIRR_BASES
        for at in ("captions/", "")
    ]
    path = find(root, names, f"captions of CIRR {split}")
    base = path.parent.parent if path.parent.name == "captions" else path.parent
    records, weights = _read_queries(path, split)

    # the gallery is the split's list of images
    files = _read_gallery(base, split)
    return [
        Benchmark(
            name="cirr",
            split=split,
            category=None,
            records=records,
            gallery=list(files),
            ks=(1, 5, 10, 50),
            remove_reference=reference == "remove",
            protocol=protocol_of("cirr", split, records, list(files), reference, labels=labels),
            images=partial(_open_images, root, base, layouts.CIRR_FOLDERS[split], files),
            weights=weights if labels == "soft" else None,
        )
    ]


def _read_queries(path: Path, split: str) -> tuple[list[Record], dict[str, dict[str, float]]]:
    """Return the queries and, by query id, the graded labels {image id: weight}."""
    labelled = split != "test1"
    keys: dict[str, type] = KEYS | (TARGET_KEYS if labelled else {})
    records = []
    weights = {}
    for index, entry in enumerate(read_entries(path, keys)):
        where = f"{path}: entry {index}"
        # the image set
        members = strings(entry["img_set"].get("members"), f"{where}: 'members' of 'img_set'")
        # graded labels, which test1 lacks
        soft = entry.get("target_soft", {})
        if not all(isinstance(weight, (int, float)) for weight in soft.values()):
            raise InputError(
                f"{where}: 'target_soft' must map images to numbers, got {shown(soft)}"
            )
        # the one official target
        targets = (entry["target_hard"],) if labelled else ()
        pair = str(entry["pairid"])
        start = entry["reference"]
        record = Record(
            pair, start, entry["caption"], targets, subset=members, source=f"cirr/{split}"
        )
        records.append(record)
        weights[pair] = soft
    return check_unique_ids(records, path), weights


def _read_gallery(base: Path, split: str) -> dict[str, str]:
    """Return {image name: file} of a split, in official order."""
    name = f"split.rc2.{split}.json"
    # some copies misspell the folder
    names = [f"{folder}{name}" for folder in ("image_splits/", "images_splits/", "")]
    path = find(base, names, f"image split {name}")
    files = read_json(path)
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise InputError(f"{path}: an object {{image name: file}} is expected")
    return files


def _open_images(root: Path, base: Path, folder: str, files: dict[str, str]) -> ImageStore:
    """Return a store below the split's own folder, which may be a link to a copy of NLVR2."""
    # paths relative to the folder of the split
    inside = {}
    for name, file in files.items():
        inside[name] = file.removeprefix("./").removeprefix(f"{folder}/")
    folders = around(root, base, [f"{place}/{folder}" for place in layouts.CIRR_IMAGES])
    return open_images(root, folders, "CIRR", inside)
