"""TODO."""

from functools import partial
from pathlib import Path

from cir_cot.errors import InputError
from cir_cot.records import read_records

from .benchmark import Benchmark, protocol_of
from .layouts import _no_category, choose, find, open_images, read_names


def folder(
    root: str | Path, split: str, category: str | None = None, reference: str = "remove"
) -> list[Benchmark]:
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
