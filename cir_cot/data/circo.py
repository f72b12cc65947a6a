"""TODO."""

from functools import partial
from pathlib import Path

from cir_cot.errors import InputError
from cir_cot.files import read_json
from cir_cot.images import ImageStore
from cir_cot.records import Record

from . import layouts
from .benchmark import Benchmark, coco_id, protocol_of
from .layouts import (
    _no_category,
    _unique_ids,
    check_entry,
    choose,
    find,
    open_images,
    read_entries,
    read_names,
    strings,
)

CIRCO_TEXTS = {
    "plain": "{relative_caption}",  # SEARLE, LinCIR, CIReVL
    "magiclens": "find {shared_concept} but {relative_caption}",  # the shared concept is an advantage to be disclosed
    "megapairs": "Find a picture that also {shared_concept}, but {relative_caption}.",
}


def circo(
    root: str | Path,
    split: str,
    category: str | None = None,
    reference: str = "keep",
    text: str = "plain",
) -> list[Benchmark]:
    """CIRCO over COCO 2017 unlabeled; image ids are COCO's numbers, targets[0] is the one that R@k counts."""
    _no_category("circo", category)
    choose("split", split, ("val", "test"))
    choose("reference", reference, ("keep", "remove"))
    choose("text", text, CIRCO_TEXTS)
    root = Path(root)
    names = [f"{base}/annotations/{split}.json" for base in layouts.CIRCO_BASES]
    path = find(root, names, f"annotations of CIRCO {split}")
    base = path.parent.parent
    records, aspects = _circo_records(path, split, text)
    files = _circo_gallery(base)
    return [
        Benchmark(
            name="circo",
            split=split,
            category=None,
            records=records,
            gallery=list(files),
            ks=(5, 10, 25, 50),
            remove_reference=reference == "remove",
            protocol=protocol_of("circo", split, records, list(files), reference, text=text),
            images=partial(_circo_images, base, files),
            aspects=aspects,
        )
    ]


def _circo_records(
    path: Path, split: str, style: str
) -> tuple[list[Record], dict[str, tuple[str, ...]]]:
    keys = {"id": int, "reference_img_id": int, "relative_caption": str, "shared_concept": str}
    keys |= (
        {}
        if split == "test"
        else {"target_img_id": int, "gt_img_ids": list, "semantic_aspects": list}
    )
    records, aspects = [], {}
    for index, entry in enumerate(read_entries(path, keys)):
        where = f"{path}: entry {index}"
        name, text = str(entry["id"]), CIRCO_TEXTS[style].format_map(entry)
        images = [entry["target_img_id"], *entry["gt_img_ids"]] if "gt_img_ids" in keys else []
        targets = tuple(dict.fromkeys(coco_id(image, where) for image in images))
        records.append(
            Record(name, str(entry["reference_img_id"]), text, targets, source=f"circo/{split}")
        )
        aspects[name] = strings(entry.get("semantic_aspects", []), f"{where}: 'semantic_aspects'")
    return _unique_ids(records, path), aspects


def _circo_gallery(base: Path) -> dict[str, str]:
    """{image id: file name} in official order, from COCO's image info or a plain list of ids; {} without either."""
    for name in layouts.CIRCO_INFO:
        if (base / name).exists():
            info = read_json(base / name)
            images = info.get("images") if isinstance(info, dict) else None
            if not isinstance(images, list) or not images:
                raise InputError(f"{base / name}: an object with a list 'images' is expected")
            for index, image in enumerate(images):
                check_entry(image, {"id": int, "file_name": str}, f"{base / name}: image {index}")
            return {str(image["id"]): image["file_name"] for image in images}
    for name in layouts.CIRCO_IDS:
        if (base / name).exists():
            where = str(base / name)
            return {
                coco_id(image, where): f"{int(image):012d}.jpg" for image in read_names(base / name)
            }
    return {}


def _circo_images(base: Path, files: dict[str, str]) -> ImageStore:
    if not files:
        find(base, layouts.CIRCO_INFO, "list of CIRCO's gallery")
    return open_images(base, layouts.CIRCO_IMAGES, "CIRCO", files)
