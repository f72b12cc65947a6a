"""The files of an annotation job: finished rows, quarantine of failed rows, summary, lock.

What is guaranteed: a row is in the journal completely or not at all; one process writes at a time;
a job killed at any moment and started again loses only the rows it was working on, and writes none
twice; a full disk stops the job and leaves complete lines behind. Lines are written at once and
forced to the disk in groups (`sync`).
"""

import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cir_cot.errors import InputError
from cir_cot.files import read_json, write_text_atomic
from cir_cot.images import ImageStore
from cir_cot.records import Record, record_to_dict

from .budget import Budget
from .journal import FILES, Journal, chain_of, key_of, lock, name_of, stream

# Counts of the summary that add up from run to run.
COUNTS = ("repaired", "calls", "prompt_tokens", "completion_tokens", "seconds")
MOST = 2**53  # largest count: what a float holds exactly


@dataclass(frozen=True)
class Task:
    """A row to annotate.

    Attributes:
        record: the query; its `teacher` holds the content key.
        name: how the quarantine names the row.
        images: the store of its pictures.
    """

    record: Record
    name: str
    images: ImageStore

    @property
    def key(self) -> str:
        """Content hash of everything that decides the row's chain."""
        return key_of(self.record)


def content_key(settings: Mapping, record: Record) -> str:
    """Hash a job's settings and a row: the same question to the same teacher has the same key."""
    # Pictures count by name; the chain that a record may have does not.
    asked = [record.source, record.id, record.reference, record.text, record.targets]
    return hashlib.sha256(json.dumps([settings, asked], sort_keys=True).encode()).hexdigest()[:32]


def make_tasks(queries: Sequence[tuple[Record, ImageStore]], settings: Mapping) -> list[Task]:
    """Make one task of each query; `settings` name the model, its prompts and `see_target`."""
    times = Counter(record.id for record, _ in queries)
    tasks = []
    for record, images in queries:
        teacher = {
            "model": settings["model"],
            "prompts": settings["prompts"],
            "seen_target": settings["see_target"],
            "key": content_key(settings, record),
        }
        # FashionIQ numbers its queries by category: an id alone may name several rows.
        name = record.id if times[record.id] == 1 else f"{record.source}/{record.id}"
        tasks.append(Task(replace(record, cot=None, teacher=teacher), name, images))
    return tasks


class Job:
    """An annotation job with its output file; opening it locks the output.

    Args:
        out: the file of finished rows; other files of the job are named after it.
        settings: everything that decides chains, the same for all rows.
        budget: takes over what earlier runs of the job have used.

    Raises:
        InputError: another process writes this output, or it belongs to a job with other settings.

    Example:
        job = Job(Path("chains.jsonl"), settings, Budget())
        job.accept(record, repaired=False)
        job.close()
    """

    def __init__(self, out: Path, settings: Mapping, budget: Budget):
        self.out = out
        self.budget = budget
        self.started = time.monotonic()
        # The quarantine and the summary stand beside the output.
        self.quarantine_path = out.with_name(f"{out.name}.{FILES[0]}")
        self.summary_path = out.with_name(f"{out.name}.{FILES[1]}")
        self.accepted = 0  # rows with a chain
        self.quarantined = 0  # rows that ended without one
        self.repaired = 0  # accepted rows that were asked for more than once
        self.total = 0  # rows of the job
        self.seconds = 0.0  # of earlier runs
        self.closed = False
        # The lock comes first: another process may be writing these files.
        self.lock = lock(out.with_name(f"{out.name}.lock"), out, settings)
        try:
            self.journal = Journal(out, chain_of)
            self.quarantine_journal = Journal(self.quarantine_path, name_of)
            # A summary without rows belongs to files that somebody removed.
            used = self.journal.size() or self.quarantine_journal.size()
            if self.summary_path.exists() and used:
                self.add_previous_run(self.summary_path)
        except BaseException:
            os.close(self.lock)
            raise

    def add_previous_run(self, path: Path) -> None:
        """Add what another run of this job has used, as its summary says."""
        summary = read_json(path)
        counts = [summary.get(key, -1) for key in COUNTS] if isinstance(summary, dict) else [-1]
        # Booleans, NaN and huge numbers are no counts.
        if not all(type(count) in (int, float) and 0 <= count <= MOST for count in counts):
            raise InputError(f"{path}: no summary of a job; remove it to count from zero")
        # Earlier runs count against the budget, too.
        repaired, calls, prompt_tokens, completion_tokens, seconds = counts
        self.repaired += repaired
        self.seconds += seconds
        self.budget.calls += calls
        self.budget.pay(prompt_tokens, completion_tokens)

    def count(self, tasks: Sequence[Task]) -> None:
        """Count the tasks, and those of them that the job's files hold."""
        done, quarantined = finished_tasks(self.out, tasks)
        self.total = len(tasks)
        self.accepted = len(done)
        self.quarantined = len(quarantined)

    def accept(self, record: Record, repaired: bool) -> None:
        """Write a record with its chain; `repaired` says that it was asked for more than once."""
        self.journal.append(record_to_dict(record))
        self.accepted += 1
        self.repaired += repaired

    def quarantine(self, name: str, reason: str, attempts: int, raw: str) -> None:
        """Write down a row without a chain: why, after how many requests, and the last answer."""
        row = {"id": name, "reason": reason, "attempts": attempts, "raw": raw}
        self.quarantine_journal.append(row)
        self.quarantined += 1

    def summary(self) -> dict:
        """Return the counts of the job over all its runs."""
        return {
            "total": self.total,
            "accepted": self.accepted,
            "repaired": self.repaired,
            "quarantined": self.quarantined,
            "calls": self.budget.calls,
            "prompt_tokens": self.budget.prompt_tokens,
            "completion_tokens": self.budget.completion_tokens,
            "seconds": round(self.seconds + time.monotonic() - self.started, 3),
        }

    def status_line(self) -> str:
        """Return the counts as a line of text: rows, calls, tokens and, with prices, the cost."""
        # Prices are known only where --price was given.
        used = self.budget
        dollars = used.cost(used.prompt_tokens, used.completion_tokens)
        cost = f", ${dollars:.2f}" if any(used.prices) else ""
        rows = (
            f"{self.accepted} accepted ({self.repaired} repaired), {self.quarantined} quarantined"
        )
        tokens = f"{used.prompt_tokens} + {used.completion_tokens} tokens"
        return f"{rows}, {used.calls} calls, {tokens}{cost}"

    def sync(self) -> None:
        """Force rows to the disk, then write the summary that counts them."""
        # A kill between these lines leaves a summary that counts too few, never too many.
        self.journal.sync()
        self.quarantine_journal.sync()
        write_text_atomic(self.summary_path, json.dumps(self.summary()) + "\n")

    def close(self) -> None:
        """Sync, close the files and free the lock; a second call does nothing."""
        if self.closed:
            return
        self.closed = True
        try:
            # A job that has counted nothing has no summary to write.
            if self.total or self.accepted or self.quarantined:
                self.sync()
        finally:
            self.journal.close()
            self.quarantine_journal.close()
            os.close(self.lock)

    def merge_ranks(self) -> None:
        """Merge the per-rank output files into the main files and delete them."""
        paths = rank_paths(self.out)
        if not paths:
            return
        # What the main files hold already.
        keys = {key_of(chain_of(line, where)) for where, line in stream(self.out)}
        refused = {json.dumps(line) for _, line in stream(self.quarantine_path)}
        for path in paths:
            quarantine = path.with_name(f"{path.name}.{FILES[0]}")
            summary = path.with_name(f"{path.name}.{FILES[1]}")
            # Opening the files drops incomplete last lines of a killed process.
            Journal(path, chain_of).close()
            Journal(quarantine, name_of).close()
            # A kill may have left a row in several files: append it once.
            for where, line in stream(path):
                key = key_of(chain_of(line, where))
                if key not in keys:
                    keys.add(key)
                    self.journal.append(line)
            for where, line in stream(quarantine):
                name_of(line, where)
                if json.dumps(line) not in refused:
                    refused.add(json.dumps(line))
                    self.quarantine_journal.append(line)
            if summary.exists():
                self.add_previous_run(summary)
            # Merged rows reach the disk before the files that held them are deleted.
            self.sync()
            for file in (summary, quarantine, path, path.with_name(f"{path.name}.lock")):
                file.unlink(missing_ok=True)


def quarantine_reasons(out: Path, most: int = 5) -> list[tuple[str, int]]:
    """Count the rows in a job's quarantine by what their reasons begin with, the commonest first.

    Args:
        out: the job's output.
        most: reasons to return.
    """
    # Rows that were asked again may have a chain since, or a later line that counts.
    chained: set[str] = set()
    for where, line in stream(out):
        record = chain_of(line, where)
        chained.update((record.id, f"{record.source}/{record.id}"))
    reasons = {}
    for where, line in stream(out.with_name(f"{out.name}.{FILES[0]}")):
        reasons[name_of(line, where)] = str(line.get("reason", "")).partition(":")[0]
    return Counter(reasons[name] for name in reasons if name not in chained).most_common(most)


def rank_path(out: Path, rank: int) -> Path:
    """Return the file that process `rank` writes; the first process writes the output itself."""
    return out.with_name(f"{out.name}.rank{rank}") if rank else out


def rank_paths(out: Path) -> list[Path]:
    """List the per-rank files of a job that are not merged yet."""
    pattern = re.compile(re.escape(out.name) + r"\.rank\d+")
    return sorted(path for path in out.parent.iterdir() if pattern.fullmatch(path.name))


def finished_tasks(out: Path, tasks: Sequence[Task]) -> tuple[set[str], set[str]]:
    """Find the tasks that the job's files hold.

    Returns:
        The keys of the tasks that have a chain, and the names of those in the quarantine.

    Raises:
        InputError: a task has a chain made from another text or with other settings.
    """
    # A row with another key is the same row, asked differently.
    keys = {task.key for task in tasks}
    rows = {(task.record.source, task.record.id) for task in tasks}
    done = set()
    for where, obj in stream(out):
        record = chain_of(obj, where)
        key = key_of(record)
        if key in keys:
            done.add(key)
        elif (record.source, record.id) in rows:
            raise InputError(
                f"{where}: {record.id!r} has a chain made from another text or with other "
                "settings; give another --out, or remove the line to have it made again"
            )
    # A row whose quarantine was overtaken by a chain is finished, not quarantined.
    names = {task.name for task in tasks if task.key not in done}
    quarantine = out.with_name(f"{out.name}.{FILES[0]}")
    return done, {name_of(line, where) for where, line in stream(quarantine)} & names


def remaining_tasks(out: Path, tasks: Sequence[Task], retry: bool = False) -> list[Task]:
    """Return the tasks without a chain and, unless `retry`, without a line in the quarantine, in order."""
    done, quarantined = finished_tasks(out, tasks)
    if retry:
        quarantined = set()
    return [task for task in tasks if task.key not in done and task.name not in quarantined]
