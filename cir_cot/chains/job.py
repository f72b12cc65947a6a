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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cir_cot.errors import InputError
from cir_cot.files import read_json, write_text_atomic
from cir_cot.images import ImageStore
from cir_cot.records import Record, record_to_dict

from .budget import Budget
from .journal import FILES, Journal, chain_of, lock, name_of, stream

COUNTS = (
    "repaired",
    "calls",
    "prompt_tokens",
    "completion_tokens",
    "seconds",
)  # carried on from run to run
MOST = 2**53  # of a count: what a float holds exactly


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


class Job:
    """An annotation job with its output at `out`; a second one on the same output is refused, other settings too.

    `settings` are all that decides chains, the same for every row; `budget` takes over what earlier runs have used.
    """

    def __init__(self, out: Path, settings: Mapping, budget: Budget):
        self.out = out
        self.budget = budget
        self.started = time.monotonic()
        self.quarantine_path, self.summary_path = (
            out.with_name(f"{out.name}.{part}") for part in FILES
        )
        self.lock = lock(out.with_name(f"{out.name}.lock"), out, settings)
        self.accepted = self.quarantined = self.repaired = self.total = 0
        self.seconds = 0.0
        self.closed = False
        try:
            self.journal = Journal(out, chain_of)
            self.poison = Journal(self.quarantine_path, name_of)
            if self.summary_path.exists() and (self.journal.size() or self.poison.size()):
                self.carry(self.summary_path)
        except BaseException:
            os.close(self.lock)
            raise

    def carry(self, path: Path) -> None:
        """Add what another run of this job has used, by its summary."""
        summary = read_json(path)
        counts = [summary.get(key) for key in COUNTS] if isinstance(summary, dict) else []
        if not counts or not all(
            type(count) in (int, float) and 0 <= count <= MOST for count in counts
        ):
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
        self.journal.sync()
        self.poison.sync()
        write_text_atomic(self.summary_path, json.dumps(self.summary()) + "\n")

    def close(self) -> None:
        """Sync, close, let go of the lock; once."""
        if self.closed:
            return
        self.closed = True
        try:
            if (
                self.total or self.accepted or self.quarantined
            ):  # else nothing was counted that a summary could say
                self.sync()
        finally:
            self.journal.close()
            self.poison.close()
            os.close(self.lock)

    def absorb(self) -> None:
        """Take over the rows that other processes of this job wrote to files of their own, then remove those."""
        shares = share_paths(self.out)
        known = (
            {chain_of(line, where).teacher["key"] for where, line in stream(self.out)}
            if shares
            else set()
        )
        names = (
            {name_of(line, where) for where, line in stream(self.quarantine_path)}
            if shares
            else set()
        )
        for path in shares:
            poison, summary, held = (
                path.with_name(f"{path.name}.{part}") for part in (*FILES, "lock")
            )
            Journal(path, chain_of).close()  # cuts off a torn line
            Journal(poison, name_of).close()
            # Append each row once, also where a kill has left it in several files.
            for where, line in stream(path):
                key = chain_of(line, where).teacher["key"]
                if key not in known:
                    known.add(key)
                    self.journal.append(line)
            for where, line in stream(poison):
                name = name_of(line, where)
                if name not in names:
                    names.add(name)
                    self.poison.append(line)
            if summary.exists():
                self.carry(summary)
            # What was taken over is on the disk before the files that held it are gone.
            self.sync()
            for file in (summary, poison, path, held):
                file.unlink(missing_ok=True)


def share_path(out: Path, rank: int) -> Path:
    """Where process `rank` of a job writes: the first into the output itself."""
    return out.with_name(f"{out.name}.rank{rank}") if rank else out


def share_paths(out: Path) -> list[Path]:
    """The files that other processes of a job have written and nobody has merged yet."""
    pattern = re.compile(re.escape(out.name) + r"\.rank\d+")
    return sorted(path for path in out.parent.iterdir() if pattern.fullmatch(path.name))


def outcomes(out: Path, tasks: Sequence[Task]) -> tuple[set[str], set[str]]:
    """(keys of the tasks that have a chain in the file, names of those in the quarantine).

    InputError where a task has a chain that was made from another text or with other settings.
    """
    keys = {task.key for task in tasks}
    rows = {(task.record.source, task.record.id) for task in tasks}
    done = set()
    for where, obj in stream(out):
        record = chain_of(obj, where)
        key = record.teacher["key"]
        if key in keys:
            done.add(key)
        elif (record.source, record.id) in rows:
            raise InputError(
                f"{where}: {record.id!r} has a chain made from another text or with other settings; give "
                "another --out, or remove the line to have it made again"
            )
    names = {task.name for task in tasks if task.key not in done}
    poison = out.with_name(f"{out.name}.{FILES[0]}")
    return done, {name_of(line, where) for where, line in stream(poison)} & names


def left(out: Path, tasks: Sequence[Task]) -> list[Task]:
    """The tasks that have neither a chain nor a place in the quarantine, in order."""
    done, poison = outcomes(out, tasks)
    return [task for task in tasks if task.key not in done and task.name not in poison]
