"""Load a user's own dataset: `records.<split>.jsonl`, `gallery.<split>.txt` and `images/`."""

from functools import partial
from pathlib import Path

from cir_cot.errors import InputError
from cir_cot.records import read_records

from .annotation_files import read_names
from .benchmark import Benchmark, choose, protocol_of, refuse_category
from .layouts import find, open_images


def folder(
    root: str | Path, split: str, category: str | None = None, reference: str = "remove"
) -> list[Benchmark]:
    """Load a folder dataset; a ranking that finds any of a record's targets counts as right."""
    refuse_category("folder", category)
    choose("reference", reference, ("keep", "remove"))
    root = Path(root)

    # the queries
    records = read_records(find(root, [f"records.{split}.jsonl"], f"records of split {split!r}"))
    if not records:
        raise InputError(f"{root / f'records.{split}.jsonl'}: no records in it")

    # the images that are ranked
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
