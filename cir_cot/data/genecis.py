"""Load GeneCIS (Vaze et al. 2023): four tasks whose queries rank 10 or 15 candidates each.

The official code puts the target at index 0 and sorts stably, so that a model with constant scores
gets R@1 = 100 %: whoever ranks the candidates must decide ties against the target.
"""

from functools import partial
from pathlib import Path

from cir_cot.errors import InputError, shown
from cir_cot.images import Box
from cir_cot.records import Record

from . import layouts
from .annotation_files import check_entry, read_entries
from .benchmark import Benchmark, choose, coco_id, protocol_of
from .layouts import around, find, open_images

GENECIS_CATEGORIES = ("focus_attribute", "change_attribute", "focus_object", "change_object")
KEYS = {"condition": str, "reference": dict, "target": dict, "gallery": list}
Images = dict[str, tuple[str, Box | None]]  # {image id: (file, box of it or None)}


def genecis(root: str | Path, split: str, category: str | None = None) -> list[Benchmark]:
    """Load GeneCIS, one benchmark a task; each query ranks its own candidates.

    A candidate that is listed twice counts once, as in the official code. The splits "val" and
    "test" name the same files.

    Args:
        root: a folder that holds GeneCIS in any layout of `layouts.GENECIS_FILES`.
        split: "val" or "test".
        category: the task, one of GENECIS_CATEGORIES; None for all four.
    """
    choose("split", split, ("val", "test"))
    names: tuple[str, ...] = GENECIS_CATEGORIES
    if category is not None:
        names = (choose("category", category, GENECIS_CATEGORIES),)
    return [_load(Path(root), split, name) for name in names]


def _load(root: Path, split: str, category: str) -> Benchmark:
    """Load one task."""
    # the queries with their candidates
    files = [name.format(c=category) for name in layouts.GENECIS_FILES]
    path = find(root, files, f"task file of GeneCIS {category}")
    records, candidates, images = _read_queries(path, f"genecis/{category}/{split}")

    # all candidates together, each once; a ranking of one query holds its own only
    gallery: dict[str, None] = {}
    for names in candidates.values():
        gallery |= dict.fromkeys(names)
    members = list(gallery)

    # images of Visual Genome are cropped
    boxes = {name: box for name, (_, box) in images.items() if box is not None}
    kind = category.rpartition("_")[2]  # "attribute" or "object"
    folders = around(root, path.parent, layouts.GENECIS_IMAGES[kind])
    protocol = protocol_of(
        "genecis", split, records, members, None, category=category, gallery="per query"
    )
    return Benchmark(
        name="genecis",
        split=split,
        category=category,
        records=records,
        gallery=members,
        ks=(1, 2, 3),
        remove_reference=False,
        protocol=protocol,
        images=partial(
            open_images,
            root,
            folders,
            f"GeneCIS {category}",
            {name: file for name, (file, _) in images.items()},
            boxes,
        ),
        candidates=candidates,
    )


def _read_queries(path: Path, source: str) -> tuple[list[Record], dict[str, list[str]], Images]:
    """Return the queries, their candidates by query id (the target first), and all images."""
    records = []
    candidates = {}
    images: Images = {}
    for index, entry in enumerate(read_entries(path, KEYS)):
        where = f"{path}: entry {index}"
        query = str(index)
        target = _add_image(images, entry["target"], where)
        start = _add_image(images, entry["reference"], where)
        # the target is one of the candidates, and comes first
        listed = [_add_image(images, item, where) for item in entry["gallery"]]
        candidates[query] = list(dict.fromkeys([target, *listed]))
        records.append(Record(query, start, entry["condition"], (target,), source=source))
    return records, candidates, images


def _add_image(images: Images, entry: object, where: str) -> str:
    """Return the id of an image and add its file and box to `images`.

    An image is a complete COCO picture, or one box of a Visual Genome picture; the box is part of
    the id.
    """
    # a COCO picture
    if isinstance(entry, dict) and "val_image_id" in entry:
        name = coco_id(entry["val_image_id"], where)
        images[name] = (f"{int(name):012d}.jpg", None)
        return name
    # a box of a Visual Genome picture
    found = check_entry(entry, {"image_id": str, "instance_bbox": list}, where)
    box = _box_of(found["instance_bbox"], where)
    name = "_".join([found["image_id"], *map(str, box)])
    images[name] = (f"{found['image_id']}.jpg", box)
    return name


def _box_of(numbers: list, where: str) -> Box:
    """Return a box (x, y, width, height in pixels)."""
    valid = len(numbers) == 4 and all(isinstance(number, (int, float)) for number in numbers)
    if not valid or min(numbers[2:]) <= 0:
        raise InputError(
            f"{where}: 'instance_bbox' must be x, y, width, height in pixels, got {shown(numbers)}"
        )
    x, y, width, height = numbers
    return (x, y, width, height)
