"""Define Record and Cot, the schema that every dataset and every annotation is converted to.

A record is one composed query, a Cot is a chain of thought of one. Errors name `file:line`.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from html import escape
from pathlib import Path

from .errors import InputError, shown
from .files import check_keys, read_jsonl, write_text_atomic


@dataclass(frozen=True)
class Cot:
    """Hold a chain of thought: what the reference shows, what to change, and the wanted image.

    Example:
        >>> Cot("a red dress", "The colour changes to blue.", "a blue dress")
    """

    caption: str  # the reference image
    reasoning: str  # what is kept, removed, changed and added
    conclusion: str  # the wanted image

    def _repr_html_(self) -> str:
        """Return the three parts below each other, as a notebook shows them."""
        parts = ""
        for name, text in asdict(self).items():
            parts += f"<dt>{name}</dt><dd>{escape(text)}</dd>"
        return f"<dl>{parts}</dl>"


@dataclass(frozen=True)
class Record:
    """Hold one composed query: a reference image and a text that ask for the target images.

    Example:
        >>> Record("0", "dress-17", "is blue and has no sleeves", ("dress-42",))
    """

    id: str  # unique in its file
    reference: str  # image id
    text: str  # the modification, as the user wrote it
    targets: tuple[str, ...]  # image ids of all right answers; empty if none are published
    cot: Cot | None = None  # the annotated chain
    subset: tuple[str, ...] = ()  # the six images that CIRR's Rsub@k ranks, with the reference
    source: str = ""  # dataset, category and split, e.g. "fashioniq/dress/val"
    teacher: dict | None = None  # the model that wrote the chain, and its settings


# Keys of the JSON forms.
COT_KEYS = tuple(field.name for field in fields(Cot))
RECORD_KEYS = tuple(field.name for field in fields(Record))
REQUIRED_KEYS = ("id", "reference", "text", "targets")

# Limits in characters. The time to tokenize a text grows with the square of its length; texts of
# public datasets have up to 302 characters, and a teacher's answer up to 8,192.
MAX_TEXT = 4_000
MAX_PART = 10_000  # of a section of a chain


# ---- files


def read_records(path: str | Path) -> list[Record]:
    """Return the records of a JSONL file, in its order.

    Raises:
        InputError: the first bad line, as `file:line: what`, or an id that occurs twice.
    """
    records = []
    lines: dict[str, int] = {}  # id -> line number
    for number, obj in read_jsonl(path):
        where = f"{path}:{number}"
        record = record_from_dict(obj, where)
        if record.id in lines:
            raise InputError(
                f"{where}: id {record.id!r} is already used on line {lines[record.id]}; make it unique"
            )
        lines[record.id] = number
        records.append(record)
    return records


def write_records(path: str | Path, records: Iterable[Record]) -> None:
    """Write records as JSONL, atomically; `read_records` returns equal ones."""
    lines = []
    for record in records:
        lines.append(json.dumps(record_to_dict(record), ensure_ascii=False, allow_nan=False) + "\n")
    write_text_atomic(path, "".join(lines))


# ---- JSON


def record_to_dict(record: Record) -> dict:
    """Return the JSON form of a record.

    `cot` is always there; `subset`, `source` and `teacher` are left out where they are empty.
    """
    obj = asdict(record)
    # JSON has lists only
    obj["targets"] = list(record.targets)
    obj["subset"] = list(record.subset)
    # optional keys are left out where they are empty
    always = (*REQUIRED_KEYS, "cot")
    return {key: value for key, value in obj.items() if value or key in always}


def record_from_dict(obj: object, where: str) -> Record:
    """Return a record of its JSON form.

    Raises:
        InputError: names `where` and a key that is missing, unknown or of the wrong type.
    """
    if not isinstance(obj, dict):
        raise InputError(f"{where}: a record is a JSON object, got {type(obj).__name__}")
    check_keys(obj, where, required=REQUIRED_KEYS, allowed=RECORD_KEYS)
    # null and absent are the same
    cot = obj.get("cot")
    teacher = obj.get("teacher")
    if teacher is not None and not isinstance(teacher, dict):
        raise InputError(f"{where}: 'teacher' must be an object or null, got {shown(teacher)}")
    # every value is checked, so that what is read can be written again
    return Record(
        id=string_of(obj, "id", where, blank=False),
        reference=string_of(obj, "reference", where, blank=False),
        text=string_of(obj, "text", where),
        targets=_image_ids(obj, "targets", where),
        cot=None if cot is None else cot_from_dict(cot, where),
        subset=_image_ids(obj, "subset", where),
        source=string_of(obj, "source", where),
        teacher=teacher,
    )


def cot_from_dict(obj: object, where: str) -> Cot:
    """Return a chain of its JSON form: an object with caption, reasoning and conclusion."""
    if not isinstance(obj, dict):
        raise InputError(f"{where}: 'cot' must be an object or null, got {type(obj).__name__}")
    check_keys(obj, f"{where}: 'cot'", required=COT_KEYS, allowed=COT_KEYS)
    return check_chain(Cot(*(obj[key] for key in COT_KEYS)), where)


# ---- checks of values


def check_chain(cot: Cot, where: str) -> Cot:
    """Return a chain if its sections are valid texts of at most MAX_PART characters."""
    for key in COT_KEYS:
        check_text(getattr(cot, key), f"{where}: {key!r}", MAX_PART)
    return cot


def check_text(text: object, where: str, longest: int = MAX_TEXT) -> str:
    """Return `text` if it is a string of at most `longest` characters without NUL, valid in UTF-8."""
    if not isinstance(text, str):
        raise InputError(f"{where} must be a string, got {shown(text)}")
    # refuse long texts before they are encoded
    if len(text) > longest:
        raise InputError(
            f"{where} has {len(text)} characters, more than the {longest} allowed; shorten it"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where} holds half a surrogate pair, which is not text: {shown(text)}"
        ) from error
    if "\0" in text:
        raise InputError(f"{where} holds a NUL character, which is not text: {shown(text)}")
    return text


def string_of(obj: dict, key: str, where: str, blank: bool = True) -> str:
    """Return the text under a key, "" without it; `blank` says whether it may be blank."""
    value = check_text(obj.get(key, ""), f"{where}: {key!r}")
    if not blank and not value.strip():
        raise InputError(f"{where}: {key!r} is blank")
    return value


def _image_ids(obj: dict, key: str, where: str) -> tuple[str, ...]:
    """Return the image ids under a key, () without it."""
    value = obj.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise InputError(f"{where}: {key!r} must be a list of image ids, got {shown(value)}")
    # an image that counts twice would change every metric
    if len(set(value)) != len(value):
        raise InputError(f"{where}: {key!r} holds an image twice: {shown(value)}")
    return tuple(check_text(item, f"{where}: {key!r}") for item in value)
