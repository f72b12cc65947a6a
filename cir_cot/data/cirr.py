"""TODO."""

from functools import partial
from pathlib import Path

from cir_cot.errors import InputError, shown
from cir_cot.files import read_json
from cir_cot.images import ImageStore
from cir_cot.records import Record

from . import layouts
from .benchmark import Benchmark, protocol_of
from .layouts import (
    _no_category,
    _unique_ids,
    around,
    choose,
    find,
    open_images,
    read_entries,
    strings,
)


def cirr(
    root: str | Path,
    split: str,
    category: str | None = None,
    reference: str = "remove",
    labels: str = "hard",
) -> list[Benchmark]:
    """CIRR rc2; ids are pairids, `Record.subset` the image set (with the reference). labels "soft": graded targets."""
    _no_category("cirr", category)
    split = choose("split", {"dev": "val", "test": "test1"}.get(split, split), layouts.CIRR_FOLDERS)
    choose("reference", reference, ("keep", "remove"))
    choose("labels", labels, ("hard", "soft"))
    root = Path(root)
    names = [
        f"{base}/{at}cap.rc2.{split}.json"
        for base in layouts.CIRR_BASES
        for at in ("captions/", "")
    ]
    path = find(root, names, f"captions of CIRR {split}")
    base = path.parent.parent if path.parent.name == "captions" else path.parent
    records, weights = _cirr_records(path, split)
    name = f"split.rc2.{split}.json"
    split_path = find(
        base,
        [f"{at}{name}" for at in ("image_splits/", "images_splits/", "")],
        f"image split {name}",
    )
    files = read_json(split_path)
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise InputError(f"{split_path}: an object {{image name: file}} is expected")
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
            images=partial(_cirr_images, root, base, layouts.CIRR_FOLDERS[split], files),
            weights=weights if labels == "soft" else None,
        )
    ]


def _cirr_records(path: Path, split: str) -> tuple[list[Record], dict[str, dict[str, float]]]:
    keys = {"pairid": int, "reference": str, "caption": str, "img_set": dict}
    keys |= {} if split == "test1" else {"target_hard": str, "target_soft": dict}
    records, weights = [], {}
    for index, entry in enumerate(read_entries(path, keys)):
        where = f"{path}: entry {index}"
        members = strings(entry["img_set"].get("members"), f"{where}: 'members' of 'img_set'")
        soft = entry.get("target_soft", {})
        if not all(isinstance(weight, (int, float)) for weight in soft.values()):
            raise InputError(
                f"{where}: 'target_soft' must map images to numbers, got {shown(soft)}"
            )
        targets = (entry["target_hard"],) if "target_hard" in keys else ()
        pair, text = str(entry["pairid"]), entry["caption"]
        records.append(
            Record(pair, entry["reference"], text, targets, subset=members, source=f"cirr/{split}")
        )
        weights[pair] = soft
    return _unique_ids(records, path), weights


def _cirr_images(root: Path, base: Path, folder: str, files: dict[str, str]) -> ImageStore:
    """The store's root is the split's own folder, so that it may be a link to a copy of NLVR2."""
    inside = {
        name: file.removeprefix("./").removeprefix(f"{folder}/") for name, file in files.items()
    }
    return open_images(
        root, around(root, base, [f"{at}/{folder}" for at in layouts.CIRR_IMAGES]), "CIRR", inside
    )
