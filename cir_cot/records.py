"""The one schema of the project: a record is one composed query, a chain is what a model says on its way to the answer.

Every dataset is turned into these records, every annotation is written as them, and errors name `file:line`.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from .errors import InputError, shown
from .files import check_keys, read_jsonl, write_text_atomic


@dataclass(frozen=True)
class Cot:
    """A chain of thought: what the reference shows, what to change, and one sentence about the wanted image."""

    caption: str
    reasoning: str
    conclusion: str


@dataclass(frozen=True)
class Record:
    """One composed query: reference image id + text -> target image ids; `subset` is CIRR's group of look-alikes."""

    id: str
    reference: str
    text: str
    targets: tuple[str, ...]
    cot: Cot | None = None
    subset: tuple[str, ...] = ()
    source: str = ""
    teacher: dict | None = None


COT_KEYS = tuple(field.name for field in fields(Cot))
MAX_TEXT = 4_000  # characters of a text, whose encoding takes time with their square; public datasets have up to 302
MAX_PART = 10_000  # characters of a part of a chain; a teacher's answer may have 8,192
RECORD_KEYS = tuple(field.name for field in fields(Record))
PAIR_KEYS = ("reference", "target", "captions", *COT_KEYS)
REQUIRED_KEYS = ("id", "reference", "text", "targets")


def read_records(path: str | Path) -> list[Record]:
    """Records of a JSONL file, in file order; the first bad line raises InputError as `file:line: what`."""
    records, lines = [], {}
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
    """Write records as JSONL, atomically: the file is whole or not there; what `read_records` reads back is equal."""
    lines = (
        json.dumps(record_to_dict(record), ensure_ascii=False, allow_nan=False) + "\n"
        for record in records
    )
    write_text_atomic(path, "".join(lines))


def record_to_dict(record: Record) -> dict:
    """The JSON form of a record; empty `subset`, `source` and `teacher` are left out, `cot` is always there."""
    obj = asdict(record)
    obj["targets"], obj["subset"] = list(record.targets), list(record.subset)
    return {
        key: value for key, value in obj.items() if value or key == "cot" or key in REQUIRED_KEYS
    }


def record_from_dict(obj: object, where: str) -> Record:
    """A record from its JSON form; anything missing, unknown or of the wrong type raises InputError at `where`."""
    if not isinstance(obj, dict):
        raise InputError(f"{where}: a record is a JSON object, got {type(obj).__name__}")
    check_keys(obj, where, required=REQUIRED_KEYS, allowed=RECORD_KEYS)
    cot, teacher = obj.get("cot"), obj.get("teacher")
    if teacher is not None and not isinstance(teacher, dict):
        raise InputError(f"{where}: 'teacher' must be an object or null, got {shown(teacher)}")
    return Record(
        id=_string(obj, "id", where, blank=False),
        reference=_string(obj, "reference", where, blank=False),
        text=_string(obj, "text", where),
        targets=_strings(obj, "targets", where),
        cot=None if cot is None else cot_from_dict(cot, where),
        subset=_strings(obj, "subset", where),
        source=_string(obj, "source", where),
        teacher=teacher,
    )


def cot_from_dict(obj: object, where: str) -> Cot:
    """A chain from its JSON form: exactly the string keys caption, reasoning and conclusion."""
    if not isinstance(obj, dict):
        raise InputError(f"{where}: 'cot' must be an object or null, got {type(obj).__name__}")
    check_keys(obj, f"{where}: 'cot'", required=COT_KEYS, allowed=COT_KEYS)
    return check_chain(Cot(*(obj[key] for key in COT_KEYS)), where)


def check_chain(cot: Cot, where: str) -> Cot:
    """Return a chain, if its parts are texts of at most MAX_PART characters; InputError at `where`."""
    for key in COT_KEYS:
        check_text(getattr(cot, key), f"{where}: {key!r}", MAX_PART)
    return cot


def check_text(text: object, where: str, longest: int = MAX_TEXT) -> str:
    """Return `text`, if it is a string that can be encoded, not too long and without a NUL; InputError at `where`."""
    if not isinstance(text, str):
        raise InputError(f"{where} must be a string, got {shown(text)}")
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


def _string(obj: dict, key: str, where: str, blank: bool = True) -> str:
    value = check_text(obj.get(key, ""), f"{where}: {key!r}")
    if not blank and not value.strip():
        raise InputError(f"{where}: {key!r} is blank")
    return value


def _strings(obj: dict, key: str, where: str) -> tuple[str, ...]:
    value = obj.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise InputError(f"{where}: {key!r} must be a list of image ids, got {shown(value)}")
    if len(set(value)) != len(value):
        raise InputError(f"{where}: {key!r} holds an image twice: {shown(value)}")
    return tuple(check_text(item, f"{where}: {key!r}") for item in value)


def attach_chains(records: Sequence[Record], path: str | Path) -> list[Record]:
    """The records with the chains of a JSONL file as `cot`, in the same order; a record without a line stays as it is.

    A line is a record with its `cot` (as `cir-cot annotate` writes it; matched by id and reference) or
    {"reference", "target", "caption", "reasoning", "conclusion"} (matched by reference and target). InputError: a line
    that matches no record or several, a second chain for a record.
    """
    by_id: dict[tuple, list[int]] = {}
    by_pair: dict[tuple, list[int]] = {}
    for index, record in enumerate(records):
        by_id.setdefault((record.id, record.reference), []).append(index)
        for target in record.targets:
            by_pair.setdefault((record.reference, target), []).append(index)
    attached = list(records)
    lines: dict[int, int] = {}
    for number, obj in read_jsonl(path):
        where = f"{path}:{number}"
        chained, key = _chain_line(obj, where)
        found = (by_pair if chained.id == "" else by_id).get(key, [])
        if len(found) != 1:
            raise InputError(
                f"{where}: {len(found) or 'no'} records have {shown(key)}; is it the chain file of this split?"
            )
        index = found[0]
        if index in lines:
            raise InputError(
                f"{where}: record {records[index].id!r} already has the chain of line {lines[index]}"
            )
        lines[index] = number
        attached[index] = replace(records[index], cot=chained.cot, teacher=chained.teacher)
    return attached


def _chain_line(obj: object, where: str) -> tuple[Record, tuple[str, str]]:
    """(a record with its chain, the key it is matched by); id "" says that the key is (reference, target)."""
    if isinstance(obj, dict) and "target" in obj:
        check_keys(obj, where, required=("reference", "target", *COT_KEYS), allowed=PAIR_KEYS)
        key = (
            _string(obj, "reference", where, blank=False),
            _string(obj, "target", where, blank=False),
        )
        cot = check_chain(Cot(*(obj[part] for part in COT_KEYS)), where)
        return Record("", key[0], "", (key[1],), cot), key
    record = record_from_dict(obj, where)
    if record.cot is None:
        raise InputError(f"{where}: a line of a chain file has a chain, but its 'cot' is null")
    return record, (record.id, record.reference)
