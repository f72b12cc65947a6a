"""Append-only JSONL files that survive a kill at any moment and never change a foreign file."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cir_cot.errors import InputError, shown
from cir_cot.files import parse_json, sync
from cir_cot.records import Record, record_from_dict
from cir_cot.storage import acquire, written

FILES = ("quarantine.jsonl", "summary.json")  # what a job writes beside its output
BEGIN = b'{"id": "'  # the first bytes of every line that a job writes
LONGEST = 2**22  # bytes: longer than any line that a job writes
SETTINGS = 2**12  # bytes: longer than any job's settings in the lock file


class Journal:
    """Append lines to a JSONL file; opening it drops an incomplete last line.

    Args:
        path: the file, created if needed.
        check: called as `check(obj, where)` on the first line before anything is dropped; raises
            InputError for a line of another kind of file, which is then left unchanged.

    Example:
        journal = Journal(Path("chains.jsonl"), chain_of)
        journal.append({"id": "1", ...})
        journal.close()
    """

    def __init__(self, path: Path, check: Callable[[object, str], object]):
        self.path = path
        self.dirty = False
        with written(path):
            new = not path.exists()
            self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            if new:
                sync(path.parent)  # the file's name must be on the disk before its rows are
        try:
            self.repair_tail(check)
        except BaseException:
            os.close(self.file)
            raise

    def repair_tail(self, check: Callable[[object, str], object]) -> None:
        """Repair the file after a crash: drop an incomplete last line.

        A last line that lacks only its newline gets it.
        """
        # The last line, if it has no newline.
        size = self.size()
        tail = os.pread(self.file, LONGEST, max(0, size - LONGEST)).rpartition(b"\n")[2]
        if not tail:
            return

        # Drop nothing from a file that does not begin as a job's file does.
        first, end, _ = os.pread(self.file, LONGEST, 0).partition(b"\n")
        if LONGEST in (len(first), len(tail)) or not (end or first.startswith(BEGIN[: len(first)])):
            raise InputError(
                f"{self.path}: holds something else than the lines of this command; give another "
                "--out"
            )
        if end:
            check(parse_json(first, f"{self.path}:1"), f"{self.path}:1")

        # A last line that parses lacks its newline only.
        try:
            json.loads(tail)
        except (ValueError, RecursionError):
            os.ftruncate(self.file, size - len(tail))
            return
        self.write(b"\n")

    def size(self) -> int:
        """Return the file's size in bytes."""
        return os.fstat(self.file).st_size

    def append(self, obj: Mapping) -> None:
        """Write one line, completely or not at all."""
        self.write((json.dumps(obj, ensure_ascii=False, allow_nan=False) + "\n").encode())

    def write(self, line: bytes) -> None:
        """Append bytes, all or none of them."""
        # An incomplete write is cut back to this size.
        before = self.size()
        self.dirty = True
        try:
            if os.write(self.file, line) < len(line):
                raise OSError(0, "the disk is full")
        except OSError as error:
            # Take back the bytes of an incomplete write.
            os.ftruncate(self.file, before)
            raise InputError(
                f"{self.path}: {error.strerror}; make room and run again, finished rows are kept"
            ) from error

    def sync(self) -> None:
        """Force written lines to the disk."""
        if self.dirty:
            self.dirty = False
            with written(self.path):
                os.fsync(self.file)

    def close(self) -> None:
        """Sync and close the file."""
        try:
            self.sync()
        finally:
            os.close(self.file)


def stream(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield ("file:line", value) of each line of a JSONL file; nothing if there is no file."""
    if not path.exists():
        return
    with path.open("rb") as file:
        number = 0
        # Reading a bounded piece keeps a huge line out of memory.
        while line := file.readline(LONGEST + 1):
            number += 1
            where = f"{path}:{number}"
            if len(line) > LONGEST:
                raise InputError(
                    f"{where}: a line of more than {LONGEST} bytes, longer than any that annotate "
                    "writes; remove it"
                )
            if line.strip():
                yield where, parse_json(line, where)


def chain_of(obj: object, where: str) -> Record:
    """Return the record of a job's line, which has a chain, and the row's key in `teacher`."""
    record = record_from_dict(obj, where)
    # A line that was edited by hand would count as finished.
    if record.cot is None:
        raise InputError(
            f"{where}: {shown(record.id)} has no chain ('cot' is null); remove the line to have "
            "the row annotated"
        )
    # Without a key a row cannot be matched with its settings.
    if not isinstance((record.teacher or {}).get("key"), str):
        raise InputError(
            f"{where}: {shown(record.id)} has no key in its 'teacher', which annotate writes; "
            "give another --out"
        )
    return record


def key_of(record: Record) -> str:
    """Return the content key in a record's `teacher`; `chain_of` has checked that it is there."""
    assert record.teacher is not None, f"record {record.id!r} has no teacher"
    return record.teacher["key"]


def name_of(obj: object, where: str) -> str:
    """Return the row's name in a line of the quarantine."""
    # Other keys of the line do not matter.
    name = obj.get("id") if isinstance(obj, dict) else None
    if not isinstance(name, str):
        raise InputError(
            f"{where}: no line of a quarantine, which is an object with an 'id'; remove the line"
        )
    return name


def lock(path: Path, out: Path, settings: Mapping) -> int:
    """Lock a job's output and write its settings into the lock file.

    Args:
        path: the lock file, created if needed.
        out: the job's output, which the lock protects.
        settings: everything that decides chains; JSON-serialisable.

    Returns:
        The descriptor of the lock file; closing it frees the lock.

    Raises:
        InputError: another process holds the lock, or the output belongs to a job with other
            settings.
    """
    wanted = json.dumps(settings, sort_keys=True)
    quarantine = out.with_name(f"{out.name}.{FILES[0]}")
    with written(out):
        handle = acquire(path, out)
        try:
            # Settings count only where the job has written rows.
            held = os.pread(handle, SETTINGS, 0).decode("utf-8", "replace")
            used = any(file.exists() and file.stat().st_size for file in (out, quarantine))
            if held != wanted and used and held:
                raise InputError(
                    f"{out}: {settings_that_differ(held, settings)}; give another --out, or the same settings"
                )
            # Equal settings are not written again: a full disk would lose them.
            if held != wanted:
                os.pwrite(handle, wanted.encode(), 0)
                os.ftruncate(handle, len(wanted.encode()))
        except BaseException:
            os.close(handle)
            raise
    return handle


def settings_that_differ(held: str, wanted: Mapping) -> str:
    """Say which settings of a job differ from those it is asked with, by key with both values.

    Args:
        held: the job's settings as its lock file has them, or what else is in that file.
        wanted: the settings that it is asked with.
    """
    try:
        before = json.loads(held)
    except (ValueError, RecursionError):
        before = None
    if not isinstance(before, dict):
        return f"made with {shown(held)}, which are no settings of a job"
    # A key that one side lacks differs, too.
    parts = []
    for key in sorted({*before, *wanted}):
        old = json.dumps(before[key]) if key in before else "not set"
        new = json.dumps(wanted[key]) if key in wanted else "not set"
        if old != new:
            parts.append(f"{key} {old}, now {new}")
    return "made with " + "; ".join(parts)
