"""GeneCIS: four tasks, each query with its own 10 or 15 candidates, pictures that are boxes of larger ones.

The official code puts the target at index 0 and sorts stably, so that a model with constant scores gets R@1 = 100 %:
whoever ranks the candidates must decide ties against the target.
"""

from functools import partial
from pathlib import Path

from cir_cot.errors import InputError, shown
from cir_cot.images import Box
from cir_cot.records import Record

from . import layouts
from .benchmark import Benchmark, coco_id, protocol_of
from .layouts import around, check_entry, choose, find, open_images, read_entries

GENECIS_CATEGORIES = ("focus_attribute", "change_attribute", "focus_object", "change_object")


def genecis(root: str | Path, split: str, category: str | None = None) -> list[Benchmark]:
    """GeneCIS, one benchmark a task; each query ranks its own candidates. A candidate listed twice counts once, as in
    the official code, where the target stands first; "val" and "test" name the same files."""
    choose("split", split, ("val", "test"))
    names = (
        GENECIS_CATEGORIES
        if category is None
        else (choose("category", category, GENECIS_CATEGORIES),)
    )
    return [_genecis(Path(root), split, name) for name in names]


def _genecis(root: Path, split: str, category: str) -> Benchmark:
    path = find(
        root,
        [name.format(c=category) for name in layouts.GENECIS_FILES],
        f"task file of GeneCIS {category}",
    )
    records, candidates, files, boxes = [], {}, {}, {}

    def image(entry: object, where: str) -> str:
        name, file, box = _genecis_image(entry, where)
        files[name] = file
        if box:
            boxes[name] = box
        return name

    keys = {"condition": str, "reference": dict, "target": dict, "gallery": list}
    for index, entry in enumerate(read_entries(path, keys)):
        where, query = f"{path}: entry {index}", str(index)
        target = image(entry["target"], where)
        start = image(entry["reference"], where)
        candidates[query] = list(
            dict.fromkeys([target, *(image(item, where) for item in entry["gallery"])])
        )
        records.append(
            Record(
                query, start, entry["condition"], (target,), source=f"genecis/{category}/{split}"
            )
        )
    gallery = list(dict.fromkeys(name for names in candidates.values() for name in names))
    folders = layouts.GENECIS_IMAGES[category.rpartition("_")[2]]
    return Benchmark(
        name="genecis",
        split=split,
        category=category,
        records=records,
        gallery=gallery,
        ks=(1, 2, 3),
        remove_reference=False,
        protocol=protocol_of(
            "genecis", split, records, gallery, None, category=category, gallery="per query"
        ),
        images=partial(
            open_images,
            root,
            around(root, path.parent, folders),
            f"GeneCIS {category}",
            files,
            boxes,
        ),
        candidates=candidates,
    )


def _genecis_image(entry: object, where: str) -> tuple[str, str, Box | None]:
    """(image id, file, box): a whole COCO picture, or one box of a Visual Genome picture; the box is part of the id."""
    if isinstance(entry, dict) and "val_image_id" in entry:
        name = coco_id(entry["val_image_id"], where)
        return name, f"{int(name):012d}.jpg", None
    check_entry(entry, {"image_id": str, "instance_bbox": list}, where)
    box = entry["instance_bbox"]
    if (
        len(box) != 4
        or not all(isinstance(number, (int, float)) for number in box)
        or min(box[2:]) <= 0
    ):
        raise InputError(
            f"{where}: 'instance_bbox' must be x, y, width, height in pixels, got {shown(box)}"
        )
    return "_".join([entry["image_id"], *map(str, box)]), f"{entry['image_id']}.jpg", tuple(box)
