"""Read annotation files of public datasets strictly; errors name the first bad entry."""

from collections.abc import Mapping
from pathlib import Path

from cir_cot.errors import InputError, shown
from cir_cot.files import first_repeated, read_bytes, read_json
from cir_cot.records import Record, check_text


def read_entries(path: Path, keys: Mapping[str, type]) -> list[dict]:
    """Return a JSON list of objects that each have `keys` of the given types."""
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise InputError(
            f"{path}: a list of annotations is expected, got {type(entries).__name__} without entries"
        )
    # check every entry before the first one is used
    for index, entry in enumerate(entries):
        check_entry(entry, keys, f"{path}: entry {index}")
    return entries


def check_entry(entry: object, keys: Mapping[str, type], where: str) -> dict:
    """Return `entry` if it is an object with `keys` of the given types; a bool is not an int."""
    if not isinstance(entry, dict):
        raise InputError(f"{where} must be an object, got {type(entry).__name__}")
    # keys that are not listed are ignored
    for key, kind in keys.items():
        if key not in entry:
            raise InputError(f"{where}: key {key!r} is missing")
        value = entry[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InputError(f"{where}: {key!r} must be {kind.__name__}, got {shown(value)}")
        # long and invalid texts are refused here, not in the middle of training
        if kind is str:
            check_text(value, f"{where}: {key!r}")
    return entry


def strings(value: object, where: str) -> tuple[str, ...]:
    """Return a JSON list of strings as a tuple."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InputError(f"{where} must be a list of strings, got {shown(value)}")
    return tuple(check_text(item, where) for item in value)


def read_names(path: Path) -> list[str]:
    """Return the distinct image ids of a JSON list, or of a text file with one id a line."""
    # ".json.gz" is JSON, too
    in_json = ".json" in path.suffixes
    names = _read_list(path) if in_json else _read_lines(path)
    if not names:
        raise InputError(f"{path}: no image ids in it")
    # a duplicate would take two places of a ranking
    twice = first_repeated(names)
    if twice is not None:
        raise InputError(f"{path}: image {shown(twice)} is listed twice")
    return names


def _read_list(path: Path) -> list[str]:
    """Return a JSON list of strings."""
    return list(strings(read_json(path), f"{path}: the image ids"))


def _read_lines(path: Path) -> list[str]:
    """Return the stripped lines of a UTF-8 file, without blank ones."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error})") from error
    stripped = [line.strip() for line in text.splitlines()]
    return [line for line in stripped if line]


def check_unique_ids(records: list[Record], path: Path) -> list[Record]:
    """Return the queries of an annotation file if no two of them have the same id."""
    seen: set[str] = set()
    for record in records:
        if record.id in seen:
            raise InputError(f"{path}: query id {record.id!r} occurs twice")
        seen.add(record.id)
    return records
