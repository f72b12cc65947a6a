"""The files of a long job: an append-only journal of rows, the quarantine, the summary, the lock.

What is guaranteed: a row is in the journal whole or not at all; one process writes at a time; a job killed at any
moment and started again loses only the rows it was working on, and writes none twice; a full disk stops the job and
leaves whole lines behind. Lines are written at once and forced to the disk in groups (`sync`).
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .images import ImageStore
from .records import InputError, Record, parse_json, read_json, record_from_dict, record_to_dict, write_text_atomic
from .spending import Budget
from .storage import acquire

COUNTS = ("repaired", "calls", "prompt_tokens", "completion_tokens", "seconds")  # carried on from run to run
LONGEST = 2**22  # bytes: more than any line


@dataclass(frozen=True)
class Task:
    """A row to annotate: its record, whose `teacher` holds the key, its name in the quarantine, its pictures."""

    record: Record
    name: str
    images: ImageStore

    @property
    def key(self) -> str:
        """Content hash of all that decides the row's chain."""
        return self.record.teacher["key"]


def content_key(settings: Mapping, record: Record) -> str:
    """Hash of the job's settings and of the row: the same question to the same teacher has the same key."""
    asked = [record.source, record.id, record.reference, record.text, record.targets]
    return hashlib.sha256(json.dumps([settings, asked], sort_keys=True).encode()).hexdigest()[:32]


class Journal:
    """JSON lines that only grow; opening it cuts off a last line that a killed process left unfinished."""

    def __init__(self, path: Path):
        self.path = path
        self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self.dirty = False
        self.mend()

    def mend(self) -> None:
        """Cut off a torn last line; one that lacks its line end alone gets it."""
        size = self.size()
        tail = os.pread(self.file, LONGEST, max(0, size - LONGEST)).rpartition(b"\n")[2]
        try:
            if tail:
                json.loads(tail)
                os.write(self.file, b"\n")
        except ValueError:
            os.ftruncate(self.file, size - len(tail))

    def size(self) -> int:
        """Bytes in the file."""
        return os.fstat(self.file).st_size

    def append(self, obj: dict) -> None:
        """Write one line, whole or not at all."""
        line = (json.dumps(obj, ensure_ascii=False, allow_nan=False) + "\n").encode()
        before, self.dirty = self.size(), True
        try:
            if os.write(self.file, line) < len(line):
                raise OSError(0, "the disk is full")
        except OSError as error:
            os.ftruncate(self.file, before)
            raise InputError(f"{self.path}: {error.strerror}; make room and run again, what is done is kept") from error

    def sync(self) -> None:
        """Force what was written to the disk."""
        if self.dirty:
            self.dirty = False
            os.fsync(self.file)

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        os.close(self.file)


class Job:
    """An annotation job with its output at `out`; a second one on the same output is refused, other settings too.

    `settings` are all that decides chains, the same for every row; `budget` takes over what earlier runs have used.
    """

    def __init__(self, out: Path, settings: Mapping, budget: Budget):
        self.out, self.budget, self.started = out, budget, time.monotonic()
        self.quarantine_path, self.summary_path = (out.with_name(f"{out.name}.{part}") for part in FILES)
        self.lock = lock(out.with_name(f"{out.name}.lock"), out, settings)
        self.accepted = self.quarantined = self.repaired = self.total = 0
        self.seconds, self.closed = 0.0, False
        self.journal, self.poison = Journal(out), Journal(self.quarantine_path)
        if self.summary_path.exists() and (self.journal.size() or self.poison.size()):
            self.carry(self.summary_path)

    def carry(self, path: Path) -> None:
        """Add what another run of this job has used, by its summary."""
        summary = read_json(path)
        counts = [summary.get(key) for key in COUNTS] if isinstance(summary, dict) else []
        if not counts or not all(isinstance(count, int | float) for count in counts):
            raise InputError(f"{path}: no summary of a job; remove it to count from zero")
        repaired, calls, prompt, completion, seconds = counts
        self.repaired, self.seconds = self.repaired + repaired, self.seconds + seconds
        self.budget.calls += calls
        self.budget.pay(prompt, completion)

    def count(self, tasks: Sequence[Task]) -> None:
        """Count what the files hold of the tasks."""
        done, poison = outcomes(self.out, tasks)
        self.total, self.accepted, self.quarantined = len(tasks), len(done), len(poison)

    def accept(self, record: Record, repaired: bool) -> None:
        """Write a record with its chain."""
        self.journal.append(record_to_dict(record))
        self.accepted, self.repaired = self.accepted + 1, self.repaired + repaired

    def quarantine(self, name: str, reason: str, attempts: int, raw: str) -> None:
        """Write down a row that ends without a chain."""
        self.poison.append({"id": name, "reason": reason, "attempts": attempts, "raw": raw})
        self.quarantined += 1

    def summary(self) -> dict:
        """Counts of the job over all its runs."""
        used = self.budget
        return {
            "total": self.total,
            "accepted": self.accepted,
            "repaired": self.repaired,
            "quarantined": self.quarantined,
            "calls": used.calls,
            "prompt_tokens": used.prompt_tokens,
            "completion_tokens": used.completion_tokens,
            "seconds": round(self.seconds + time.monotonic() - self.started, 3),
        }

    def sync(self) -> None:
        """Force rows to the disk, then the summary."""
        try:
            self.journal.sync()
            self.poison.sync()
            write_text_atomic(self.summary_path, json.dumps(self.summary()) + "\n")
        except OSError as error:
            raise InputError(f"{self.out}: {error.strerror}; make room and run again, what is done is kept") from error

    def close(self) -> None:
        """Sync, close, let go of the lock; once."""
        if self.closed:
            return
        self.closed = True
        try:
            self.sync()
        finally:
            self.journal.close()
            self.poison.close()
            os.close(self.lock)

    def absorb(self) -> None:
        """Take over the rows that other processes of this job wrote to files of their own, then remove those."""
        shares = share_paths(self.out)
        known = {line["teacher"]["key"] for _, line in stream(self.out)} if shares else set()
        names = {line["id"] for _, line in stream(self.quarantine_path)} if shares else set()
        for path in shares:
            poison, summary, held = (path.with_name(f"{path.name}.{part}") for part in (*FILES, "lock"))
            Journal(path).close()  # cuts off a torn line
            Journal(poison).close()
            for _, line in stream(path):
                if line["teacher"]["key"] not in known:
                    self.journal.append(line)
            for _, line in stream(poison):
                if line["id"] not in names:
                    self.poison.append(line)
            if summary.exists():
                self.carry(summary)
            self.sync()
            for file in (summary, poison, path, held):
                file.unlink(missing_ok=True)


FILES = ("quarantine.jsonl", "summary.json")


def share_path(out: Path, rank: int) -> Path:
    """Where process `rank` of a job writes: the first into the output itself."""
    return out.with_name(f"{out.name}.rank{rank}") if rank else out


def share_paths(out: Path) -> list[Path]:
    """The files that other processes of a job have written and nobody has merged yet."""
    pattern = re.compile(re.escape(out.name) + r"\.rank\d+")
    return sorted(path for path in out.parent.iterdir() if pattern.fullmatch(path.name))


def stream(path: Path) -> Iterator[tuple[int, object]]:
    """(line number, value) of each line of a JSONL file, one at a time; none where there is no file."""
    if path.exists():
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield number, parse_json(line, f"{path}:{number}")


def outcomes(out: Path, tasks: Sequence[Task]) -> tuple[set[str], set[str]]:
    """(keys of the tasks that have a chain in the file, names of those in the quarantine).

    InputError where a task has a chain that was made from another text or with other settings.
    """
    keys = {task.key for task in tasks}
    rows = {(task.record.source, task.record.id) for task in tasks}
    done = set()
    for number, obj in stream(out):
        record = record_from_dict(obj, f"{out}:{number}")
        key = (record.teacher or {}).get("key")
        if key in keys:
            done.add(key)
        elif (record.source, record.id) in rows:
            raise InputError(
                f"{out}:{number}: {record.id!r} has a chain made from another text or with other settings; give "
                "another --out, or remove the line to have it made again"
            )
    names = {task.name for task in tasks if task.key not in done}
    poison = out.with_name(f"{out.name}.{FILES[0]}")
    return done, {line.get("id") for _, line in stream(poison) if isinstance(line, dict)} & names


def left(out: Path, tasks: Sequence[Task]) -> list[Task]:
    """The tasks that have neither a chain nor a place in the quarantine, in order."""
    done, poison = outcomes(out, tasks)
    return [task for task in tasks if task.key not in done and task.name not in poison]


def lock(path: Path, out: Path, settings: Mapping) -> int:
    """The descriptor of the locked file, which holds the job's settings; InputError for another job's."""
    handle = acquire(path, out)
    wanted = json.dumps(settings, sort_keys=True)
    held = path.read_text(encoding="utf-8", errors="replace")
    poison = out.with_name(f"{out.name}.{FILES[0]}")
    used = any(file.exists() and file.stat().st_size for file in (out, poison))
    if held != wanted and used and held:
        os.close(handle)
        raise InputError(f"{out}: made with {held}, now asked with {wanted}; give another --out, or the same settings")
    os.ftruncate(handle, 0)
    os.pwrite(handle, wanted.encode(), 0)
    return handle
