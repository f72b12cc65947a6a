"""Read and write the decisions of a review of chains: an append-only file, the last line of a row wins.

Several people and several processes may write one file at once: each line is appended under a lock,
completely or not at all, and reaches the disk before the call returns.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from cir_cot.errors import InputError, shown
from cir_cot.files import check_keys, parse_json
from cir_cot.records import Cot, cot_from_dict, string_of
from cir_cot.storage import acquire, written

# accept a chain as it is, edit it, reject it, have it asked for again
VERDICTS = ("accept", "edit", "reject", "again")
KEPT = ("accept", "edit")  # verdicts with a chain
KEYS = ("id", "reference", "decision", "choice", "cot", "teacher", "reviewer", "time")


@dataclass(frozen=True)
class Decision:
    """Hold what a reviewer decided about the chain of one row."""

    id: str  # of the record
    reference: str  # image id; an id alone may name several rows
    decision: str  # one of VERDICTS
    choice: str  # which chains file the chain is from, "A" or "B"; "" for none
    cot: Cot | None  # the chain that is kept, None for reject and again
    teacher: dict | None  # who wrote the chain
    reviewer: str
    time: str  # UTC, ISO 8601

    @property
    def key(self) -> tuple[str, str]:
        """Id and reference, which name the row."""
        return self.id, self.reference


def decision_from_dict(obj: object, where: str) -> Decision:
    """Return a decision of its JSON form; InputError names `where` and what is wrong."""
    if not isinstance(obj, dict):
        raise InputError(f"{where}: a decision is a JSON object, got {type(obj).__name__}")
    check_keys(obj, where, required=KEYS, allowed=KEYS)
    verdict = obj["decision"]
    if verdict not in VERDICTS:
        raise InputError(f"{where}: decision {shown(verdict)} is none of {', '.join(VERDICTS)}")
    # A chain is there exactly where one is kept.
    cot = None if obj["cot"] is None else cot_from_dict(obj["cot"], where)
    if (cot is not None) != (verdict in KEPT):
        raise InputError(f"{where}: 'cot' must hold a chain for {' and '.join(KEPT)}, else null")
    teacher = obj["teacher"]
    if teacher is not None and not isinstance(teacher, dict):
        raise InputError(f"{where}: 'teacher' must be an object or null, got {shown(teacher)}")
    return Decision(
        id=string_of(obj, "id", where, blank=False),
        reference=string_of(obj, "reference", where, blank=False),
        decision=verdict,
        choice=string_of(obj, "choice", where),
        cot=cot,
        teacher=teacher,
        reviewer=string_of(obj, "reviewer", where, blank=False),
        time=string_of(obj, "time", where),
    )


class DecisionFile:
    """Append decisions to a file, and read what this process and others have appended.

    Example:
        >>> file = DecisionFile(Path("decisions.jsonl"))
        >>> file.append(decision)
        >>> list(file.new())
        [Decision(...)]
    """

    def __init__(self, path: Path):
        self.path = path
        self.offset = 0  # bytes that `new` has read
        self.line = 0  # lines that `new` has read

    def append(self, decision: Decision) -> None:
        """Append a decision, completely or not at all, and wait until it is on the disk."""
        line = json.dumps(asdict(decision), ensure_ascii=False, allow_nan=False) + "\n"
        with written(self.path):
            lock = acquire(self.path.with_name(f"{self.path.name}.lock"), self.path, wait=True)
            try:
                file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
                try:
                    _append_line(file, line.encode())
                finally:
                    os.close(file)
            finally:
                os.close(lock)

    def new(self) -> Iterator[Decision]:
        """Yield the decisions that were appended since the last call; a line in progress waits."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.offset)
            while (raw := file.readline()).endswith(b"\n"):
                self.offset += len(raw)
                self.line += 1
                where = f"{self.path}:{self.line}"
                if raw.strip():
                    yield decision_from_dict(parse_json(raw, where), where)


def _append_line(file: int, line: bytes) -> None:
    """Write a line at the end of a locked file; cut off what a killed process left incomplete."""
    size = os.fstat(file).st_size
    # Everyone writes under the lock, so an incomplete last line belongs to a process that is gone.
    end = size
    while end and os.pread(file, 1, end - 1) != b"\n":
        end -= 1
    if end < size and not os.pread(file, 8, end).startswith(b'{"id": "'[: size - end]):
        raise InputError("the decisions' last line is not one of this command; give another --out")
    os.ftruncate(file, end)
    # A full disk leaves the file as it was.
    try:
        if os.write(file, line) < len(line):
            raise OSError(28, "the disk is full")
        os.fsync(file)
    except OSError:
        os.ftruncate(file, end)
        raise


def last_decisions(path: str | Path) -> Mapping[tuple[str, str], Decision]:
    """Return the last decision of each row of a file, by id and reference."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file of decisions")
    return {decision.key: decision for decision in DecisionFile(Path(path)).new()}
