"""TODO."""

from functools import partial
from pathlib import Path

from cir_cot.records import Record

from . import layouts
from .benchmark import Benchmark, protocol_of
from .layouts import _no_category, choose, find, read_entries, read_names


def shoes(
    root: str | Path, split: str, category: str | None = None, reference: str = "remove"
) -> list[Benchmark]:
    """Shoes; the gallery is the split's list of names, the queries the triplets with both pictures in it."""
    _no_category("shoes", category)
    split = choose("split", {"val": "eval", "test": "eval"}.get(split, split), ("train", "eval"))
    choose("reference", reference, ("keep", "remove"))
    root = Path(root)
    names = [f"{base}/relative_captions_shoes.json" for base in layouts.SHOES_BASES]
    path = find(root, names, "relative captions of Shoes")
    gallery = read_names(
        find(path.parent, [f"{split}_im_names.txt"], f"image names of Shoes {split}")
    )
    keys = {"ImageName": str, "ReferenceImageName": str, "RelativeCaption": str}
    listed, records = set(gallery), []
    for entry in read_entries(path, keys):
        target, start, text = (entry[key] for key in keys)
        if target in listed and start in listed:
            records.append(
                Record(str(len(records)), start, text, (target,), source=f"shoes/{split}")
            )
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
                layouts.open_images_by_name, path.parent, layouts.SHOES_IMAGES, "Shoes", gallery
            ),
        )
    ]
