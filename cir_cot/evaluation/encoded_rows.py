"""Keep what an evaluation has encoded in append-only files, so that it can be shared by processes and continued.

Each process appends to a file of its own, `<what>.<rank>.jsonl`, one row a line: a key, its embedding (D float32 as
base64) and what was written for it. An incomplete last line, as a killed process leaves it, is cut off when the process
appends again and is ignored by the others. `run.json` holds the retriever's fingerprint and what else the embeddings
depend on: rows of another run are refused.
"""

import base64
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cir_cot.data.benchmark import Benchmark
from cir_cot.digests import DIGEST_BYTES
from cir_cot.errors import InputError
from cir_cot.files import read_json, write_json
from cir_cot.fingerprint import check_fingerprint, fingerprint
from cir_cot.ranks import ALONE, Ranks
from cir_cot.retriever import Flag, QueryOutput, Retriever
from cir_cot.storage import LOCK, locked

RUN = "run.json"
FOLDER = "encoding"  # below the folder of results


class EncodedRows:
    """The rows of one kind, such as a gallery's, by key.

    Args:
        folder: where the files are.
        what: their name: a gallery, or a reading's queries.
        ranks: this process among those that encode together.

    Example:
        rows = EncodedRows(folder, "gallery")
        missing = rows.missing(["a", "b"])
        rows.append(missing, QueryOutput(vectors, ["", ""]))
        rows.output(["a", "b"]).embeddings  # (2, D)
    """

    def __init__(self, folder: Path, what: str, ranks: Ranks = ALONE):
        self.folder = folder
        self.what = what
        self.ranks = ranks
        self.path = folder / f"{what}.{ranks.rank}.jsonl"
        # A line that a killed process left incomplete would swallow the next one.
        if self.path.exists():
            text = self.path.read_bytes()
            os.truncate(self.path, text.rfind(b"\n") + 1)

    def rows(self) -> dict[str, dict[str, Any]]:
        """Return the rows that all processes have written so far, by key."""
        found: dict[str, dict[str, Any]] = {}
        for path in sorted(self.folder.glob(f"{self.what}.*.jsonl")):
            for line in path.read_bytes().split(b"\n")[:-1]:
                try:
                    row = json.loads(line)
                    found[row["key"]] = row
                except (ValueError, TypeError, KeyError) as error:
                    raise InputError(
                        f"{path}: damaged; remove {self.folder} and run again"
                    ) from error
        return found

    def missing(self, keys: Sequence[str]) -> list[str]:
        """Return the keys of this process's share that no process has encoded."""
        known = self.rows()
        return [key for key in self.ranks.share(list(dict.fromkeys(keys))) if key not in known]

    def append(self, keys: Sequence[str], output: QueryOutput) -> None:
        """Append a batch of rows; they are on the disk when this returns."""
        vectors = output.embeddings.float().cpu().numpy().astype("<f4")  # (B, D)
        flags = output.flags or [""] * len(keys)
        routing = output.routing or [{}] * len(keys)
        lines = []
        for number, key in enumerate(keys):
            row = {
                "key": key,
                "vector": base64.b64encode(vectors[number].tobytes()).decode(),
                "explanation": output.explanations[number],
                "flag": str(flags[number]),
                "flag_kind": getattr(flags[number], "kind", ""),
                "routing": routing[number],
            }
            lines.append(json.dumps(row) + "\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())

    def output(self, keys: Sequence[str]) -> QueryOutput:
        """Return the rows of `keys`, all of which are there, in their order."""
        known = self.rows()
        rows = [known[key] for key in keys]
        vectors = [np.frombuffer(base64.b64decode(row["vector"]), dtype="<f4") for row in rows]
        routing = [row["routing"] for row in rows]
        return QueryOutput(
            _stacked(vectors),
            [row["explanation"] for row in rows],
            [_flag(row) for row in rows],
            routing if any(routing) else [],
        )


def _stacked(vectors: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(vectors)) if vectors else torch.zeros(0, 0)


def _flag(row: Mapping[str, Any]) -> str:
    """Return the flag of a stored row, with its kind."""
    return Flag(row["flag_kind"], row["flag"]) if row["flag"] else ""


@dataclass(frozen=True)
class Encoding:
    """The encoding of an evaluation: its folder of rows, and this process among those that fill it."""

    folder: Path
    ranks: Ranks = ALONE

    def rows(self, *what: str | None) -> EncodedRows:
        """Return the rows of a kind, named by `what`: "gallery", or a reading and a category."""
        name = "-".join(re.sub(r"\W", "_", part) for part in what if part)
        return EncodedRows(self.folder, name, self.ranks)


def rows_of(encoding: Encoding | None, *what: str | None) -> EncodedRows | None:
    """Return the rows of a kind; None without an encoding."""
    return None if encoding is None else encoding.rows(*what)


@contextmanager
def results_lock(out: str | None, ranks: Ranks = ALONE) -> Iterator[None]:
    """Let the first process hold the lock of a folder of results, if there is one.

    A run that is refused before it has encoded a row leaves nothing behind.
    """
    if out is None or not ranks.first:
        yield
        return
    folder = Path(out)
    new = not folder.exists()
    try:
        with locked(folder):
            yield
    except InputError:
        encoding = folder / FOLDER
        if not any(encoding.glob("*.jsonl")):
            remove_encoding(folder)
            if new and [path.name for path in folder.iterdir()] == [LOCK]:
                shutil.rmtree(folder)
        raise


def begin_encoding(
    out: str | None,
    retriever: Retriever,
    benchmarks: Sequence[Benchmark],
    seed: int,
    ranks: Ranks = ALONE,
) -> Encoding | None:
    """Begin or continue the encoding of a command's benchmarks; None where it has no folder of results.

    Args:
        out: the folder of results.
        retriever: encodes galleries and queries.
        benchmarks: one, or the categories of one.
        seed: of the command.
        ranks: this process among those that encode together.

    Raises:
        InputError: several processes have no folder to share, or the rows there are of another run.
    """
    if out is None:
        if ranks.count > 1:
            raise InputError(
                f"{ranks.count} processes share their work in a folder: give --out DIR"
            )
        return None
    conditions = retriever.conditions() if hasattr(retriever, "conditions") else {}
    first = benchmarks[0]
    facts = {**conditions, "benchmark": first.name, "split": first.split, "seed": seed}
    facts["queries"] = _digest(benchmarks)
    return open_encoding(Path(out), retriever, facts, ranks)


def _digest(benchmarks: Sequence[Benchmark]) -> str:
    """Return the digest of all queries: their ids, references, texts and chains."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for benchmark in benchmarks:
        for record in benchmark.records:
            digest.update(repr((record.id, record.reference, record.text, record.cot)).encode())
    return digest.hexdigest()


def open_encoding(
    folder: Path, retriever: Retriever, facts: Mapping[str, Any], ranks: Ranks = ALONE
) -> Encoding:
    """Begin or continue the encoding below a folder of results.

    Args:
        folder: of the results.
        retriever: encodes; its fingerprint is stored, or checked against the stored one.
        facts: what else the rows depend on, such as the precision.
        ranks: this process among those that encode together.

    Raises:
        InputError: the rows there are of another retriever, or of other facts.
    """
    encoding = folder / FOLDER
    run = encoding / RUN
    if ranks.first and not run.exists():
        encoding.mkdir(parents=True, exist_ok=True)
        write_json(run, {"probe": fingerprint(retriever).tolist(), "facts": dict(facts)})
    ranks.wait()
    # Another process, or an earlier run, began: with the same retriever?
    stored = read_json(run)
    cure = f"finish that run, give another --out, or remove {encoding}"
    if not isinstance(stored, dict) or {"probe", "facts"} - stored.keys():
        raise InputError(f"{run}: damaged; remove {encoding} and run again")
    for key, value in facts.items():
        if stored["facts"].get(key) != value:
            theirs = stored["facts"].get(key)
            raise InputError(
                f"{encoding}: begun with {key} {theirs!r}, this run has {value!r}; {cure}"
            )
    check_fingerprint(stored["probe"], retriever, str(encoding))
    return Encoding(encoding, ranks)


def remove_encoding(folder: Path) -> None:
    """Remove the rows below a folder of results, once the results are written."""
    encoding = folder / FOLDER
    if (encoding / RUN).is_file():
        shutil.rmtree(encoding)
