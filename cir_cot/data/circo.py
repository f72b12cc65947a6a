"""Load CIRCO (Baldrati et al. 2023): queries with several targets over COCO 2017 unlabeled."""

from functools import partial
from pathlib import Path

from cir_cot.errors import InputError
from cir_cot.files import read_json
from cir_cot.images import ImageStore
from cir_cot.records import Record

from . import layouts
from .annotation_files import (
    check_entry,
    check_unique_ids,
    read_entries,
    read_names,
    strings,
)
from .benchmark import Benchmark, choose, coco_id, protocol_of, refuse_category
from .layouts import find, open_images

# How papers turn a caption into the text of a query. The shared concept is an advantage that must
# be reported.
CIRCO_TEXTS = {
    "plain": "{relative_caption}",  # SEARLE, LinCIR, CIReVL
    "magiclens": "find {shared_concept} but {relative_caption}",
    "megapairs": "Find a picture that also {shared_concept}, but {relative_caption}.",
}
# Keys of an entry, and those that the test split lacks.
KEYS = {"id": int, "reference_img_id": int, "relative_caption": str, "shared_concept": str}
TARGET_KEYS = {"target_img_id": int, "gt_img_ids": list, "semantic_aspects": list}


def circo(
    root: str | Path,
    split: str,
    category: str | None = None,
    reference: str = "keep",
    text: str = "plain",
) -> list[Benchmark]:
    """Load CIRCO; mAP@k counts all targets of a query, R@k the first one alone.

    Args:
        root: a folder that holds CIRCO in any layout of `layouts.CIRCO_BASES`.
        split: "val" or "test", which has no published targets.
        category: must be None.
        reference: "keep" (official) or "remove" the reference image from the rankings.
        text: the text of a query, a key of CIRCO_TEXTS.
    """
    refuse_category("circo", category)
    choose("split", split, ("val", "test"))
    choose("reference", reference, ("keep", "remove"))
    choose("text", text, CIRCO_TEXTS)
    root = Path(root)

    # the queries, and the gallery where its list is available
    names = [f"{base}/annotations/{split}.json" for base in layouts.CIRCO_BASES]
    path = find(root, names, f"annotations of CIRCO {split}")
    base = path.parent.parent
    records, aspects = _read_queries(path, split, text)
    files = _read_gallery(base)

    return [
        Benchmark(
            name="circo",
            split=split,
            category=None,
            records=records,
            gallery=list(files),
            ks=(5, 10, 25, 50),
            remove_reference=reference == "remove",
            protocol=protocol_of("circo", split, records, list(files), reference, prompt=text),
            images=partial(_open_images, base, files),
            aspects=aspects,
        )
    ]


def _read_queries(
    path: Path, split: str, style: str
) -> tuple[list[Record], dict[str, tuple[str, ...]]]:
    """Return the queries and, by query id, their semantic aspects."""
    labelled = split != "test"
    keys: dict[str, type] = KEYS | (TARGET_KEYS if labelled else {})
    records = []
    aspects = {}
    for index, entry in enumerate(read_entries(path, keys)):
        where = f"{path}: entry {index}"
        name = str(entry["id"])
        start = str(entry["reference_img_id"])
        text = CIRCO_TEXTS[style].format_map(entry)

        # the target that R@k counts comes first
        images = [entry["target_img_id"], *entry["gt_img_ids"]] if labelled else []
        targets = tuple(dict.fromkeys(coco_id(image, where) for image in images))
        records.append(Record(name, start, text, targets, source=f"circo/{split}"))
        aspects[name] = strings(entry.get("semantic_aspects", []), f"{where}: 'semantic_aspects'")
    return check_unique_ids(records, path), aspects


def _read_gallery(base: Path) -> dict[str, str]:
    """Return {image id: file name} in official order; {} if no list of the gallery is there."""
    # COCO's image info has the official order of files
    for name in layouts.CIRCO_INFO:
        if (base / name).exists():
            return _read_image_info(base / name)
    # a plain list of ids has no file names, but COCO derives them from ids
    for name in layouts.CIRCO_IDS:
        path = base / name
        if path.exists():
            ids = read_names(path)
            return {coco_id(image, str(path)): f"{int(image):012d}.jpg" for image in ids}
    return {}


def _read_image_info(path: Path) -> dict[str, str]:
    """Return {image id: file name} of COCO's image info, in its order."""
    info = read_json(path)
    images = info.get("images") if isinstance(info, dict) else None
    if not isinstance(images, list) or not images:
        raise InputError(f"{path}: an object with a list 'images' is expected")
    # check all entries first
    for index, image in enumerate(images):
        check_entry(image, {"id": int, "file_name": str}, f"{path}: image {index}")
    return {str(image["id"]): image["file_name"] for image in images}


def _open_images(base: Path, files: dict[str, str]) -> ImageStore:
    """Return a store of the gallery's images; UnavailableError where its list is not there."""
    if not files:
        find(base, layouts.CIRCO_INFO, "list of CIRCO's gallery")
    return open_images(base, layouts.CIRCO_IMAGES, "CIRCO", files)
