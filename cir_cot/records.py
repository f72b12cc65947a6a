"""The one schema of the project: a record is one composed query, a chain is what a model says on its way to the answer.

Every dataset is turned into these records, every annotation is written as them, and errors name `file:line`.
"""

import gzip
import json
import os
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
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
MAX_BYTES = 2**29  # of one annotation or rankings file once unpacked: CIRR's full rankings of val are 190 MB
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
            raise InputError(f"{where}: id {record.id!r} is already used on line {lines[record.id]}; make it unique")
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
    rows = []
    for number, line in enumerate(read_bytes(path).split(b"\n"), 1):
        if line.strip():
            rows.append((number, parse_json(line, f"{path}:{number}")))
    return rows


def read_json(path: str | Path) -> object:
    """The value of a JSON file (`.gz` is unpacked), read strictly: see `parse_json`."""
    return parse_json(read_bytes(path), str(path))


def read_bytes(path: str | Path) -> bytes:
    """Content of a file, unpacked where its name ends in `.gz`; at most MAX_BYTES, so no archive fills the memory."""
    opened = gzip.open if str(path).endswith(".gz") else open
    try:
        with opened(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a whole gzip file ({error})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if len(raw) > MAX_BYTES:
        raise InputError(f"{path}: more than {MAX_BYTES} bytes once unpacked; split the file")
    return raw


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
    write_bytes_atomic(path, text.encode())


def write_bytes_atomic(path: str | Path, content: bytes) -> None:
    """Write bytes so that a reader sees the old file or the whole new one, even after a crash."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
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
            raise InputError(f"{where}: {len(found) or 'no'} records have {key!r}; is it the chain file of this split?")
        index = found[0]
        if index in lines:
            raise InputError(f"{where}: record {records[index].id!r} already has the chain of line {lines[index]}")
        lines[index] = number
        attached[index] = replace(records[index], cot=chained.cot, teacher=chained.teacher)
    return attached


def _chain_line(obj: object, where: str) -> tuple[Record, tuple[str, str]]:
    """(a record with its chain, the key it is matched by); id "" says that the key is (reference, target)."""
    if isinstance(obj, dict) and "target" in obj:
        check_keys(obj, where, required=("reference", "target", *COT_KEYS), allowed=PAIR_KEYS)
        key = (_string(obj, "reference", where, blank=False), _string(obj, "target", where, blank=False))
        return Record("", key[0], "", (key[1],), Cot(*(_string(obj, part, where) for part in COT_KEYS))), key
    record = record_from_dict(obj, where)
    if record.cot is None:
        raise InputError(f"{where}: a line of a chain file has a chain, but its 'cot' is null")
    return record, (record.id, record.reference)
