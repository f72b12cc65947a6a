"""Take training rows as people have them in Python: records, dicts, or a `datasets.Dataset` with its pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from cir_cot.digests import digest_bytes
from cir_cot.errors import InputError, shown
from cir_cot.images import MAX_BYTES, ImageStore, check_size, decode, list_pictures
from cir_cot.inputs import as_pictures, open_picture
from cir_cot.records import COT_KEYS, Record, record_from_dict

PICTURE_KEYS = ("reference", "target")
ROW_KEYS = {"id", "text", *PICTURE_KEYS, "targets", "cot", *COT_KEYS}


class GivenPictures:
    """Hold pictures that rows brought along, by ids that equal pictures share.

    A picture in memory stays there; encoded bytes and files are decoded when they are loaded, within the limits of
    every picture file.
    """

    def __init__(self) -> None:
        self.found: dict[str, Image.Image | bytes | Path] = {}

    def add(self, picture: object, where: str) -> str:
        """Take a picture in, and return its id.

        Args:
            picture: a picture, a file's path, or `{"bytes": …, "path": …}` as `datasets` has it undecoded.
            where: names the row and its column.

        Raises:
            InputError: it is none of these, too large, too narrow, or a file that is not there.
        """
        encoded = picture.get("bytes") if isinstance(picture, Mapping) else None
        if isinstance(picture, Mapping) and encoded is None:
            picture = picture.get("path")
        # By content: two rows that show one picture must not be each other's negatives.
        if isinstance(picture, Image.Image):
            check_size(*picture.size, where)
            content = picture.tobytes() + repr((picture.mode, picture.size)).encode()
            return self._keep(f"memory/{digest_bytes(content)}", picture)
        if isinstance(encoded, bytes):
            if len(encoded) > MAX_BYTES:
                raise InputError(
                    f"{where}: {len(encoded)} bytes, more than the {MAX_BYTES} allowed"
                )
            return self._keep(f"bytes/{digest_bytes(encoded)}", encoded)
        if isinstance(picture, str | Path):
            path = Path(picture)
            if not path.is_file():
                raise InputError(f"{where}: no file {shown(str(picture))}")
            return self._keep(str(path.resolve()), path.resolve())
        raise InputError(f"{where}: neither a picture nor a file's path: {shown(picture)}")

    def _keep(self, name: str, picture: Image.Image | bytes | Path) -> str:
        self.found.setdefault(name, picture)
        return name

    def __contains__(self, name: str) -> bool:
        return name in self.found

    def load(self, name: str) -> Image.Image:
        """Return a picture in RGB."""
        picture = self.found[name]
        if isinstance(picture, bytes):
            return decode(picture, name)
        if isinstance(picture, Path):
            return open_picture(picture)
        return as_pictures(picture)[0]

    def fingerprint(self, name: str) -> str:
        """Return a digest of a picture's content."""
        picture = self.found[name]
        if isinstance(picture, Path):
            return ImageStore(picture.parent, {name: picture.name}).fingerprint(name)
        return name.rpartition("/")[2]


Rows = Iterable[Record | Mapping[str, Any]]  # a `datasets.Dataset` is one


def given_rows(
    rows: Rows, images: ImageStore | str | Path | None = None
) -> tuple[list[Record], ImageStore | GivenPictures]:
    """Read rows of queries with their targets, and find their pictures.

    Args:
        rows: records, or mappings with `text`, `reference`, and `target` or `targets`; optionally `id`, and a chain
            as `cot` or in the columns caption, reasoning and conclusion. A `datasets.Dataset` is such a sequence.
        images: folder or store in which references and targets are image ids; None: they are pictures, files' paths,
            or undecoded pictures of `datasets`. Records need one.

    Returns:
        Records and what loads their pictures.

    Raises:
        InputError: names the row and what is wrong with it.
    """
    store = list_pictures(images) if isinstance(images, str | Path) else images
    pictures = GivenPictures()
    records = []
    places: dict[str, int] = {}
    for number, row in enumerate(_undecoded(rows)):
        where = f"row {number}"
        if isinstance(row, Record):
            if store is None:
                raise InputError(
                    f"{where}: a record names pictures by their ids; give their folder as images"
                )
            record = row
        else:
            record = _record(row, number, where, pictures if store is None else None)
        if record.id in places:
            raise InputError(f"{where}: id {record.id!r} is that of row {places[record.id]}, too")
        if not record.targets:
            raise InputError(f"{where}: no target; training needs one")
        if store is not None:
            for name in (record.reference, record.targets[0]):
                store.path(name)  # raises: it names the files that it looked for
        places[record.id] = number
        records.append(record)
    if not records:
        raise InputError("no rows to train on")
    return records, pictures if store is None else store


def _undecoded(rows: Rows) -> Iterator[Record | Mapping[str, Any]]:
    """Yield rows; those of a `datasets.Dataset` with its pictures as they are stored, not decoded."""
    features = getattr(rows, "features", None)
    if features:
        from datasets import Image as Column

        held: Any = rows
        for name, feature in features.items():
            if isinstance(feature, Column):
                held = held.cast_column(name, Column(decode=False))
        rows = held
    yield from rows


def _record(row: object, number: int, where: str, pictures: GivenPictures | None) -> Record:
    """Read a mapping as a record.

    Args:
        row: the mapping.
        number: of the row, its id where it has none.
        where: names the row.
        pictures: takes its pictures in; None where they are ids.
    """
    if not isinstance(row, Mapping):
        raise InputError(f"{where}: neither a record nor a mapping: {shown(row)}")
    if unknown := sorted(map(str, row.keys() - ROW_KEYS)):
        raise InputError(
            f"{where}: {unknown[0]!r} is no column of training rows; they are {', '.join(sorted(ROW_KEYS))}"
        )
    targets = row.get("targets", row.get("target"))
    if "reference" not in row or targets is None:
        missing = "reference" if "reference" not in row else "target"
        raise InputError(f"{where}: no {missing}")
    if not isinstance(targets, Sequence) or isinstance(targets, str | bytes):
        targets = [targets]
    # Columns of a chain stand for `cot`.
    cot = row.get("cot")
    if cot is None and all(row.get(key) for key in COT_KEYS):
        cot = {key: row[key] for key in COT_KEYS}
    if cot is not None and not isinstance(cot, dict):
        cot = {key: getattr(cot, key, None) for key in COT_KEYS}

    def name_of(picture: object, column: str) -> Any:
        return picture if pictures is None else pictures.add(picture, f"{where}: {column}")

    facts = {
        "id": str(row.get("id", number)),
        "reference": name_of(row["reference"], "reference"),
        "text": row.get("text"),
        "targets": [name_of(picture, "target") for picture in targets],
        "cot": cot,
    }
    return record_from_dict(facts, where)
