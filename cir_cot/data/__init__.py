"""The benchmarks: functions (root, split, category, protocol options) -> list[Benchmark], primary options as defaults.

Annotation files alone are enough: pictures are looked for when `benchmark.images()` is called. Record ids are the
query ids of rankings files. Sources of every rule: the official repositories' code.
"""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path

from . import layouts
from .errors import InputError, shown
from .fashioniq import fashioniq
from .files import read_json
from .genecis import genecis
from .images import ImageStore
from .layouts import UnavailableError, around, check_entry, choose, find, open_images, read_entries, read_names, strings
from .protocols import Benchmark, coco_id, protocol_of
from .protocols import score_rankings as score_rankings
from .records import Record, read_records
from .records import attach_chains as attach_chains

CIRCO_TEXTS = {
    "plain": "{relative_caption}",  # SEARLE, LinCIR, CIReVL
    "magiclens": "find {shared_concept} but {relative_caption}",  # the shared concept is an advantage to be disclosed
    "megapairs": "Find a picture that also {shared_concept}, but {relative_caption}.",
}


def cirr(
    root: str | Path, split: str, category: str | None = None, reference: str = "remove", labels: str = "hard"
) -> list[Benchmark]:
    """CIRR rc2; ids are pairids, `Record.subset` the image set (with the reference). labels "soft": graded targets."""
    _no_category("cirr", category)
    split = choose("split", {"dev": "val", "test": "test1"}.get(split, split), layouts.CIRR_FOLDERS)
    choose("reference", reference, ("keep", "remove"))
    choose("labels", labels, ("hard", "soft"))
    root = Path(root)
    names = [f"{base}/{at}cap.rc2.{split}.json" for base in layouts.CIRR_BASES for at in ("captions/", "")]
    path = find(root, names, f"captions of CIRR {split}")
    base = path.parent.parent if path.parent.name == "captions" else path.parent
    records, weights = _cirr_records(path, split)
    name = f"split.rc2.{split}.json"
    split_path = find(base, [f"{at}{name}" for at in ("image_splits/", "images_splits/", "")], f"image split {name}")
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
            raise InputError(f"{where}: 'target_soft' must map images to numbers, got {shown(soft)}")
        targets = (entry["target_hard"],) if "target_hard" in keys else ()
        pair, text = str(entry["pairid"]), entry["caption"]
        records.append(Record(pair, entry["reference"], text, targets, subset=members, source=f"cirr/{split}"))
        weights[pair] = soft
    return _unique_ids(records, path), weights


def _cirr_images(root: Path, base: Path, folder: str, files: dict[str, str]) -> ImageStore:
    """The store's root is the split's own folder, so that it may be a link to a copy of NLVR2."""
    inside = {name: file.removeprefix("./").removeprefix(f"{folder}/") for name, file in files.items()}
    return open_images(root, around(root, base, [f"{at}/{folder}" for at in layouts.CIRR_IMAGES]), "CIRR", inside)


def circo(
    root: str | Path, split: str, category: str | None = None, reference: str = "keep", text: str = "plain"
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


def _circo_records(path: Path, split: str, style: str) -> tuple[list[Record], dict[str, tuple[str, ...]]]:
    keys = {"id": int, "reference_img_id": int, "relative_caption": str, "shared_concept": str}
    keys |= {} if split == "test" else {"target_img_id": int, "gt_img_ids": list, "semantic_aspects": list}
    records, aspects = [], {}
    for index, entry in enumerate(read_entries(path, keys)):
        where = f"{path}: entry {index}"
        name, text = str(entry["id"]), CIRCO_TEXTS[style].format_map(entry)
        images = [entry["target_img_id"], *entry["gt_img_ids"]] if "gt_img_ids" in keys else []
        targets = tuple(dict.fromkeys(coco_id(image, where) for image in images))
        records.append(Record(name, str(entry["reference_img_id"]), text, targets, source=f"circo/{split}"))
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
            return {coco_id(image, where): f"{int(image):012d}.jpg" for image in read_names(base / name)}
    return {}


def _circo_images(base: Path, files: dict[str, str]) -> ImageStore:
    if not files:
        find(base, layouts.CIRCO_INFO, "list of CIRCO's gallery")
    return open_images(base, layouts.CIRCO_IMAGES, "CIRCO", files)


def shoes(root: str | Path, split: str, category: str | None = None, reference: str = "remove") -> list[Benchmark]:
    """Shoes; the gallery is the split's list of names, the queries the triplets with both pictures in it."""
    _no_category("shoes", category)
    split = choose("split", {"val": "eval", "test": "eval"}.get(split, split), ("train", "eval"))
    choose("reference", reference, ("keep", "remove"))
    root = Path(root)
    names = [f"{base}/relative_captions_shoes.json" for base in layouts.SHOES_BASES]
    path = find(root, names, "relative captions of Shoes")
    gallery = read_names(find(path.parent, [f"{split}_im_names.txt"], f"image names of Shoes {split}"))
    keys = {"ImageName": str, "ReferenceImageName": str, "RelativeCaption": str}
    listed, records = set(gallery), []
    for entry in read_entries(path, keys):
        target, start, text = (entry[key] for key in keys)
        if target in listed and start in listed:
            records.append(Record(str(len(records)), start, text, (target,), source=f"shoes/{split}"))
    return [
        Benchmark(
            name="shoes",
            split=split,
            category=None,
            records=records,
            gallery=gallery,
            ks=(1, 10, 50),
            remove_reference=reference == "remove",
            protocol=protocol_of("shoes", split, records, gallery, reference),
            images=partial(layouts.open_images_by_name, path.parent, layouts.SHOES_IMAGES, "Shoes", gallery),
        )
    ]


def folder(root: str | Path, split: str, category: str | None = None, reference: str = "remove") -> list[Benchmark]:
    """A user's own data: `records.<split>.jsonl`, `gallery.<split>.txt`, `images/`; any of the targets counts."""
    _no_category("folder", category)
    choose("reference", reference, ("keep", "remove"))
    root = Path(root)
    records = read_records(find(root, [f"records.{split}.jsonl"], f"records of split {split!r}"))
    if not records:
        raise InputError(f"{root / f'records.{split}.jsonl'}: no records in it")
    gallery = read_names(find(root, [f"gallery.{split}.txt"], f"gallery of split {split!r}"))
    return [
        Benchmark(
            name="folder",
            split=split,
            category=None,
            records=records,
            gallery=gallery,
            ks=(1, 5, 10, 50),
            remove_reference=reference == "remove",
            protocol=protocol_of("folder", split, records, gallery, reference),
            images=partial(open_images, root, ["images"], "the folder dataset"),
        )
    ]


BENCHMARKS: dict[str, Callable[..., list[Benchmark]]] = {
    "fashioniq": fashioniq,
    "cirr": cirr,
    "circo": circo,
    "shoes": shoes,
    "genecis": genecis,
    "folder": folder,
}


def load_benchmark(name: str, root: str | Path, split: str, category: str | None = None, **options) -> list[Benchmark]:
    """`BENCHMARKS[name](root, split, category, **options)`; an option that the benchmark does not have is refused."""
    load = BENCHMARKS[choose("benchmark", name, BENCHMARKS)]
    known = list(inspect.signature(load).parameters)[3:]
    for option in options:
        if option not in known:
            raise UnavailableError(f"{name} has no option {option!r}; it has {', '.join(known) or 'none'}")
    return load(root, split, category, **options)


def _unique_ids(records: list[Record], path: Path) -> list[Record]:
    seen = set()
    for record in records:
        if record.id in seen:
            raise InputError(f"{path}: query id {record.id!r} occurs twice")
        seen.add(record.id)
    return records


def _no_category(name: str, category: str | None) -> None:
    if category is not None:
        raise UnavailableError(f"{name} has no categories, got {category!r}; leave the category out")
