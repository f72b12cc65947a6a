"""JSON lines that only grow: whole lines survive a kill at any moment, and what is no such file is left alone."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from cir_cot.errors import InputError, shown
from cir_cot.files import parse_json, sync
from cir_cot.records import Record, record_from_dict
from cir_cot.storage import acquire, written

FILES = ("quarantine.jsonl", "summary.json")
SETTINGS = 2**12  # bytes of a job's settings in the lock's file, at most


LONGEST = 2**22  # bytes: more than any line


class Journal:
    """An append-only file; opening it cuts off a last line that a killed process left unfinished.

    `check(obj, where)` raises InputError for a line of another kind of file, which is then not touched.
    """

    def __init__(self, path: Path, check: Callable[[object, str], object]):
        self.path = path
        self.dirty = False
        with written(path):
            new = not path.exists()
            self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            if new:
                sync(path.parent)  # the name, before rows that are forced to the disk
        try:
            self.mend(check)
        except BaseException:
            os.close(self.file)
            raise

    def mend(self, check: Callable[[object, str], object]) -> None:
        """Cut off a torn last line; one that lacks its line end alone gets it."""
        size = self.size()
        tail = os.pread(self.file, LONGEST, max(0, size - LONGEST)).rpartition(b"\n")[2]
        if not tail:
            return
        # Nothing is cut from a file that does not begin as this one does.
        first, end, _ = os.pread(self.file, LONGEST, 0).partition(b"\n")
        if LONGEST in (len(first), len(tail)) or not (end or first.startswith(BEGIN[: len(first)])):
            raise InputError(
                f"{self.path}: holds something else than lines of this command; give another --out"
            )
        if end:
            check(parse_json(first, f"{self.path}:1"), f"{self.path}:1")
        try:
            json.loads(tail)
        except (ValueError, RecursionError):
            os.ftruncate(self.file, size - len(tail))
            return
        self.write(b"\n")

    def size(self) -> int:
        """Bytes in the file."""
        return os.fstat(self.file).st_size

    def append(self, obj: dict) -> None:
        """Write one line, whole or not at all."""
        self.write((json.dumps(obj, ensure_ascii=False, allow_nan=False) + "\n").encode())

    def write(self, line: bytes) -> None:
        """Append bytes, all or none of them."""
        before = self.size()
        self.dirty = True
        try:
            if os.write(self.file, line) < len(line):
                raise OSError(0, "the disk is full")
        except OSError as error:
            os.ftruncate(self.file, before)
            raise InputError(
                f"{self.path}: {error.strerror}; make room and run again, what is done is kept"
            ) from error

    def sync(self) -> None:
        """Force what was written to the disk."""
        if self.dirty:
            self.dirty = False
            with written(self.path):
                os.fsync(self.file)

    def close(self) -> None:
        """Sync and close."""
        try:
            self.sync()
        finally:
            os.close(self.file)


BEGIN = b'{"id": "'  # of every line that a job writes


def stream(path: Path) -> Iterator[tuple[str, object]]:
    """Yield ("file:line", value) of each line of a JSONL file, one at a time; none where there is no file."""
    if not path.exists():
        return
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LONGEST + 1):
            number += 1
            where = f"{path}:{number}"
            if len(line) > LONGEST:
                raise InputError(
                    f"{where}: a line of more than {LONGEST} bytes, which no job writes"
                )
            if line.strip():
                yield where, parse_json(line, where)


def chain_of(obj: object, where: str) -> Record:
    """Return the record of a line that a job wrote: with its chain, and the key of its row in `teacher`."""
    record = record_from_dict(obj, where)
    if record.cot is None:
        raise InputError(
            f"{where}: {shown(record.id)} has no chain ('cot' is null); remove the line to have one made"
        )
    if not isinstance((record.teacher or {}).get("key"), str):
        raise InputError(
            f"{where}: {shown(record.id)} has no key in its 'teacher', as annotate writes; give another --out"
        )
    return record


def name_of(obj: object, where: str) -> str:
    """Return the name of the row that a line of the quarantine is about."""
    name = obj.get("id") if isinstance(obj, dict) else None
    if not isinstance(name, str):
        raise InputError(
            f"{where}: no line of a quarantine, which is an object with an 'id'; remove the line"
        )
    return name


def lock(path: Path, out: Path, settings: Mapping) -> int:
    """The descriptor of the locked file, which holds the job's settings; InputError for another job's."""
    wanted = json.dumps(settings, sort_keys=True)
    poison = out.with_name(f"{out.name}.{FILES[0]}")
    with written(out):
        handle = acquire(path, out)
        try:
            held = os.pread(handle, SETTINGS, 0).decode("utf-8", "replace")
            used = any(file.exists() and file.stat().st_size for file in (out, poison))
            if held != wanted and used and held:
                cure = "give another --out, or the same settings"
                raise InputError(f"{out}: made with {held}, now asked with {wanted}; {cure}")
            # Settings that are there stay untouched: on a full disk a file that is emptied first would lose them.
            if held != wanted:
                os.pwrite(handle, wanted.encode(), 0)
                os.ftruncate(handle, len(wanted.encode()))
        except BaseException:
            os.close(handle)
            raise
    return handle
