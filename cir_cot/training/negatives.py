"""Give training rows hard negatives: those that `cir-cot mine` found, or what the dataset itself offers."""

import random
from collections.abc import Mapping, Sequence

from cir_cot.data.negative_files import read_negatives
from cir_cot.errors import InputError

from .dataset import CirDataset, Pictures

LEAST = 4  # random negatives of a query that has few near ones


def with_negatives(rows: CirDataset, path: str, per_row: int) -> CirDataset:
    """Return the rows, each with `per_row` hard negatives of a file.

    A negative that is a correct answer or the reference of its query is left out.

    Raises:
        InputError: the file is damaged or of other queries, or one of its pictures is not in the dataset.
    """
    if per_row < 1:
        raise InputError(f"negatives_per_row {per_row} is not at least 1")
    return _with(rows, read_negatives(path), per_row, path)


def with_own_negatives(rows: CirDataset, seed: int) -> CirDataset:
    """Return the rows, each with a negative that the dataset offers, drawn anew each time.

    Half are near: the query's image set, the reference, and targets of other queries on the same reference. As many,
    and at least four, are targets of any query.
    """
    near: dict[str, list[str]] = {}
    for record in rows.records:
        near.setdefault(record.reference, [record.reference]).append(record.targets[0])
    everything = sorted({record.targets[0] for record in rows.records})
    draw = random.Random(seed)
    offered = {}
    for record in rows.records:
        close = dict.fromkeys([*record.subset, *near[record.reference]])
        count = min(max(len(close), LEAST), len(everything))
        # Correct answers among them are left out below.
        offered[record.id] = [*close, *draw.sample(everything, count)]
    return _with(rows, offered, 1, "the dataset", keep_reference=True)


def _with(
    rows: CirDataset,
    mined: Mapping[str, Sequence[str]],
    per_row: int,
    source: str,
    keep_reference: bool = False,
) -> CirDataset:
    """Return the rows with negatives by id that are no correct answer, of stores that hold their pictures."""
    assert isinstance(rows.images, Pictures), "rows that were loaded from datasets"
    stores = dict(rows.images)
    kept: dict[str, list[str]] = {}
    for record in rows.records:
        if record.id not in mined:
            continue
        known = {*record.targets} if keep_reference else {record.reference, *record.targets}
        kept[record.id] = [name for name in mined[record.id] if name not in known]
        # A query's negatives are pictures of its own dataset.
        store = rows.images[record.reference]
        for name in kept[record.id]:
            if name not in stores:
                store.path(name)  # raises: it names the files that it looked for
                stores[name] = store
    if not any(kept.values()):
        raise InputError(
            f"{source}: holds no negatives of these {len(rows)} queries; mine this split"
        )
    pictures = Pictures(stores)
    return CirDataset(rows.records, pictures, rows.captions, pictures, rows.shares, kept, per_row)
