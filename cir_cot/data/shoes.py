"""Load Shoes (Guo et al. 2018): relative captions between pictures of shoes."""

from functools import partial
from pathlib import Path

from cir_cot.records import Record

from . import layouts
from .annotation_files import read_entries, read_names
from .benchmark import Benchmark, choose, protocol_of, refuse_category
from .layouts import find, open_images_by_name

# Papers call the evaluation split by several names.
SPLIT_NAMES = {"val": "eval", "test": "eval"}
KEYS = {"ImageName": str, "ReferenceImageName": str, "RelativeCaption": str}


def shoes(
    root: str | Path, split: str, category: str | None = None, reference: str = "remove"
) -> list[Benchmark]:
    """Load Shoes; its queries are those whose two images are in the split's list of names."""
    refuse_category("shoes", category)
    split = choose("split", SPLIT_NAMES.get(split, split), ("train", "eval"))
    choose("reference", reference, ("keep", "remove"))
    root = Path(root)

    # the captions of all splits, and the images of this one
    names = [f"{base}/relative_captions_shoes.json" for base in layouts.SHOES_BASES]
    path = find(root, names, "relative captions of Shoes")
    gallery = read_names(
        find(path.parent, [f"{split}_im_names.txt"], f"image names of Shoes {split}")
    )
    records = _read_queries(path, frozenset(gallery), split)

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
            images=partial(
                open_images_by_name, path.parent, layouts.SHOES_IMAGES, "Shoes", gallery
            ),
        )
    ]


def _read_queries(path: Path, listed: frozenset[str], split: str) -> list[Record]:
    """Return the queries whose images are both listed; ids count those queries from 0."""
    records: list[Record] = []
    for entry in read_entries(path, KEYS):
        target = entry["ImageName"]
        start = entry["ReferenceImageName"]
        # the file holds the queries of all splits
        if target in listed and start in listed:
            query = str(len(records))
            text = entry["RelativeCaption"]
            records.append(Record(query, start, text, (target,), source=f"shoes/{split}"))
    return records
