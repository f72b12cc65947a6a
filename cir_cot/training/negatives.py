"""Give training rows the hard negatives that `cir-cot mine` found."""

from cir_cot.data.negative_files import read_negatives
from cir_cot.errors import InputError

from .dataset import CirDataset, Pictures


def with_negatives(rows: CirDataset, path: str, per_row: int) -> CirDataset:
    """Return the rows, each with `per_row` hard negatives of a file.

    A negative that is a correct answer or the reference of its query is left out.

    Raises:
        InputError: the file is damaged or of other queries, or one of its pictures is not in the dataset.
    """
    if per_row < 1:
        raise InputError(f"negatives_per_row {per_row} is not at least 1")
    assert isinstance(rows.images, Pictures), "rows that were loaded from datasets"
    mined = read_negatives(path)
    stores = dict(rows.images)
    kept: dict[str, list[str]] = {}
    for record in rows.records:
        if record.id not in mined:
            continue
        known = {record.reference, *record.targets}
        kept[record.id] = [name for name in mined[record.id] if name not in known]
        # A query's negatives are pictures of its own dataset.
        store = rows.images[record.reference]
        for name in kept[record.id]:
            if name not in stores:
                store.path(name)  # raises: it names the files that it looked for
                stores[name] = store
    if not any(kept.values()):
        raise InputError(
            f"{path}: holds no negatives of these {len(rows)} queries; mine this split"
        )
    pictures = Pictures(stores)
    return CirDataset(rows.records, pictures, rows.captions, pictures, rows.shares, kept, per_row)
