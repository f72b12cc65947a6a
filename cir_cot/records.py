"""The one schema of the project: a record is one composed query, a chain is what a model says on its way to the answer.

Every dataset is turned into these records, every annotation is written as them, and errors name `file:line`.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path


class InputError(ValueError):
    """Unusable input of the user: the message says what, where and the cure; the command line exits with 2."""


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
RECORD_KEYS = tuple(field.name for field in fields(Record))
REQUIRED_KEYS = ("id", "reference", "text", "targets")


def read_records(path: str | Path) -> list[Record]:
    """Records of a JSONL file, in file order; the first bad line raises InputError as `file:line: what`."""
    records, lines = [], {}
    for number, obj in read_jsonl(path):
        where = f"{path}:{number}"
        record = record_from_dict(obj, where)
        if record.id in lines:
            raise InputError(f"{where}: id {record.id!r} is already used on line {lines[record.id]}; ids must be unique")
        lines[record.id] = number
        records.append(record)
    return records


def write_records(path: str | Path, records: Iterable[Record]) -> None:
    """Write records as JSONL, atomically: the file is whole or not there; what `read_records` reads back is equal."""
    lines = (json.dumps(record_to_dict(record), ensure_ascii=False, allow_nan=False) + "\n" for record in records)
    write_text_atomic(path, "".join(lines))


def record_to_dict(record: Record) -> dict:
    """The JSON form of a record; empty `subset`, `source` and `teacher` are left out, `cot` is always there."""
    obj = asdict(record)
    obj["targets"], obj["subset"] = list(record.targets), list(record.subset)
    return {key: value for key, value in obj.items() if value or key == "cot" or key in REQUIRED_KEYS}


def record_from_dict(obj: object, where: str) -> Record:
    """A record from its JSON form; anything missing, unknown or of the wrong type raises InputError at `where`."""
    if not isinstance(obj, dict):
        raise InputError(f"{where}: a record is a JSON object, got {type(obj).__name__}")
    check_keys(obj, where, required=REQUIRED_KEYS, allowed=RECORD_KEYS)
    cot, teacher = obj.get("cot"), obj.get("teacher")
    if teacher is not None and not isinstance(teacher, dict):
        raise InputError(f"{where}: 'teacher' must be an object or null, got {teacher!r}")
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
    return Cot(*(_string(obj, key, where) for key in COT_KEYS))


def check_keys(obj: dict, where: str, required: Sequence[str], allowed: Sequence[str]) -> None:
    """Refuse a missing or an unknown key; the message names the first one and lists what is expected."""
    for key in required:
        if key not in obj:
            raise InputError(f"{where}: key {key!r} is missing; expected {', '.join(required)}")
    for key in obj:
        if key not in allowed:
            raise InputError(f"{where}: unknown key {key!r}; allowed are {', '.join(allowed)}")


def read_jsonl(path: str | Path) -> list[tuple[int, object]]:
    """(line number, value) of each non-empty line of a JSONL file."""
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    rows = []
    for number, line in enumerate(raw.split(b"\n"), 1):
        if line.strip():
            rows.append((number, parse_json(line, f"{path}:{number}")))
    return rows


def parse_json(raw: bytes | str, where: str) -> object:
    """Strict JSON: duplicate keys, NaN, infinities, bad UTF-8 and bad syntax all raise InputError at `where`."""

    def unique(pairs: list[tuple[str, object]]) -> dict:
        obj = dict(pairs)
        if len(obj) != len(pairs):
            names = [key for key, _ in pairs]
            twice = next(key for key in names if names.count(key) > 1)
            raise InputError(f"{where}: key {twice!r} occurs twice in one object")
        return obj

    def refuse(constant: str) -> None:
        raise InputError(f"{where}: {constant} is not JSON")

    try:
        text = raw.decode("utf-8-sig") if isinstance(raw, bytes) else raw
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({error})") from error


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write UTF-8 text so that a reader sees the old file or the whole new one, even after a crash."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _string(obj: dict, key: str, where: str, blank: bool = True) -> str:
    value = obj.get(key, "")
    if not isinstance(value, str):
        raise InputError(f"{where}: {key!r} must be a string, got {value!r}")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise InputError(f"{where}: {key!r} holds half a surrogate pair, which is not text: {value!r}")
    if not blank and not value.strip():
        raise InputError(f"{where}: {key!r} is blank")
    return value


def _strings(obj: dict, key: str, where: str) -> tuple[str, ...]:
    value = obj.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise InputError(f"{where}: {key!r} must be a list of image ids, got {value!r}")
    if len(set(value)) != len(value):
        raise InputError(f"{where}: {key!r} holds an image twice: {value!r}")
    return tuple(value)
