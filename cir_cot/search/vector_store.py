"""Store embeddings by content hash in append-only logs that survive kill -9 and truncated writes.

Each process appends to a log of its own, `<rank>.encoded`. A row of a log holds a picture's content hash, its vector
(D float32) and a checksum of both, so a hash can never be paired with another picture's vector. One batch is appended
at a time and fsynced. When a log is opened again, an incomplete last row is cut off, and a row whose checksum does not
match is ignored, so its picture is encoded again. An interrupted run therefore loses at most the batch in flight.

Vectors are found by the hash of the file's bytes: a picture that was renamed, that is listed twice or that has not
changed since the last run is not encoded again.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch

from cir_cot.digests import DIGEST_BYTES
from cir_cot.errors import InputError
from cir_cot.files import read_json, sync, write_text_atomic
from cir_cot.fingerprint import check_identity, identity
from cir_cot.retriever import Retriever
from cir_cot.storage import written

HASH = 2 * DIGEST_BYTES  # hexadecimal digits of a content hash
CHECKSUM = 8  # bytes, of a stored row
ENCODED = ".encoded"  # suffix of a log
IDENTITY = "probe.json"  # which retriever encodes, beside the logs
# What encoding writes: logs, scans, the fingerprint, temporary files; and the logs of an earlier version.
OWN = re.compile(r"\d+\.(encoded|seen|vectors|rows)|probe\.json|\.[0-9a-f]{16}\.tmp")

logger = logging.getLogger(__name__)


class VectorLog:
    """The append-only log of one process: a table of (hash, vector, checksum) rows in a file.

    `rows` maps the hash of each undamaged row to its number.

    Example:
        log = VectorLog(folder, rank=0, dim=1024).repair()
        log.append([digest], vectors)  # vectors (1, 1024)
    """

    def __init__(self, folder: Path, rank: int, dim: int):
        self.path = folder / f"{rank}{ENCODED}"
        self.layout = np.dtype(
            [("hash", f"V{DIGEST_BYTES}"), ("vector", "<f4", (dim,)), ("checksum", f"V{CHECKSUM}")]
        )
        # Map the complete rows; an incomplete last row is not counted.
        self.count = 0
        self.table = np.zeros(0, dtype=self.layout)
        if self.path.exists():
            self.count = self.path.stat().st_size // self.layout.itemsize
        if self.count:
            self.table = np.memmap(self.path, dtype=self.layout, mode="r", shape=(self.count,))
        # Index the rows whose checksum matches.
        self.rows: dict[str, int] = {}
        damaged = 0
        for number, row in enumerate(self.table):
            if _checksum(row) == row["checksum"].tobytes():
                self.rows[row["hash"].tobytes().hex()] = number
            else:
                damaged += 1
        if damaged:
            logger.warning(
                "%s: %d of %d rows are damaged; their pictures are encoded again",
                self.path,
                damaged,
                self.count,
            )

    def repair(self) -> "VectorLog":
        """Cut off an incomplete last row; call it in the process that appends, before it appends."""
        self.path.touch()
        # An incomplete row would shift every row appended after it.
        os.truncate(self.path, self.count * self.layout.itemsize)
        sync(self.path.parent)
        return self

    def append(self, hashes: Sequence[str], vectors: np.ndarray) -> None:
        """Append a batch of vectors (B, D); it is on the disk when this returns."""
        rows = np.zeros(len(hashes), dtype=self.layout)  # (B,)
        rows["vector"] = vectors
        for row, digest in zip(rows, hashes, strict=True):
            row["hash"] = np.void(bytes.fromhex(digest))
            row["checksum"] = np.void(_checksum(row))
        # Append in one write, and wait until it is on the disk.
        with self.path.open("ab") as file:
            file.write(rows.tobytes())
            file.flush()
            os.fsync(file.fileno())


def _checksum(row: np.void) -> bytes:
    """Return the checksum of a row's hash and vector together."""
    content = row["hash"].tobytes() + row["vector"].tobytes()
    return hashlib.blake2b(content, digest_size=CHECKSUM).digest()


def open_logs(folder: Path, dim: int) -> list[VectorLog]:
    """Open all logs of a folder, whichever processes wrote them."""
    # Files of other names are not logs.
    names = [path.name.removesuffix(ENCODED) for path in folder.glob(f"*{ENCODED}")]
    ranks = sorted(int(name) for name in names if name.isdecimal())
    return [VectorLog(folder, rank, dim) for rank in ranks]


class Vectors:
    """Look up the vectors of all logs of a folder by content hash.

    Example:
        vectors = Vectors(folder, dim=1024)
        vectors[[digest, other]]  # (2, 1024)
    """

    def __init__(self, folder: Path, dim: int):
        logs = open_logs(folder, dim)
        self.dim = dim
        # Of a hash that occurs twice, either vector will do.
        self.tables = [log.table for log in logs]
        self.places: dict[str, tuple[int, int]] = {}  # hash -> (log, row)
        for number, log in enumerate(logs):
            for digest, row in log.rows.items():
                self.places[digest] = (number, row)

    def __contains__(self, digest: str) -> bool:
        return digest in self.places

    def __getitem__(self, hashes: Sequence[str]) -> np.ndarray:
        """Return the vectors (n, D) of n hashes."""
        found = np.zeros((len(hashes), self.dim), dtype=np.float32)  # (n, D)
        for at, digest in enumerate(hashes):
            log, row = self.places[digest]
            found[at] = self.tables[log][row]["vector"]
        return found


def truncate_dims(vectors: np.ndarray | torch.Tensor, width: int) -> np.ndarray:
    """Truncate vectors to their first dimensions and normalise them again.

    Args:
        vectors: unit vectors (n, D).
        width: how many dimensions to keep, 1 to D.

    Returns:
        Unit vectors (n, width), float32; at full width the vectors exactly as they were given.
    """
    kept = np.ascontiguousarray(np.asarray(vectors, dtype=np.float32)[:, :width])  # (n, width)
    if kept.shape[1] == vectors.shape[1]:
        return kept  # as the retriever gave them, not rounded once more
    # The small constant keeps a vector of zeros finite.
    return kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), np.float32(1e-12))


# ---- the folder of logs


def claim_logs(folder: Path, retriever: Retriever) -> None:
    """Write the retriever's identity beside the logs, or check it against the run that is continued.

    Raises:
        InputError: the logs are of another retriever, or the folder holds files that no index wrote.
    """
    path = folder / IDENTITY
    # Continue a run of the same retriever, refuse a user's folder, or begin.
    if path.exists():
        check_identity(read_identity(path), retriever, str(folder))
    elif folder.exists() and any(not OWN.fullmatch(file.name) for file in folder.iterdir()):
        raise InputError(
            f"{folder}: holds files that no index wrote; move them away, or give another --out"
        )
    else:
        with written(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_text_atomic(path, json.dumps(identity(retriever)))
    if old := sorted(folder.glob("*.rows")):
        logger.warning(
            "%s: stored without checksums by an earlier version; its pictures are encoded again",
            old[0],
        )


def read_identity(path: Path) -> dict[str, Any]:
    """Return the retriever's `identity` of an interrupted run; InputError when the file is damaged."""
    found = read_json(path)
    content = found if isinstance(found, dict) else {}
    if not is_fingerprint(content.get("probe")) or not is_bounds(content.get("pixels")):
        raise InputError(f"{path}: damaged; remove the folder {path.parent} and run again")
    return {"probe": content["probe"], "pixels": content.get("pixels")}


def is_bounds(value: object) -> bool:
    """Tell whether a value is a mapping of names to numbers of pixels, or None."""
    if value is None:
        return True
    return isinstance(value, dict) and all(type(number) is int for number in value.values())


def is_fingerprint(value: object) -> TypeGuard[list[list[float]]]:
    """Tell whether a value is a list of equally long lists of numbers, each a possible part of a unit vector."""
    if not isinstance(value, list) or not all(isinstance(row, list) for row in value):
        return False
    numbers = [number for row in value for number in row]
    lengths = {len(row) for row in value}
    # type() rather than isinstance: True and False are no numbers here.
    in_range = all(type(number) in (int, float) and -2 < number < 2 for number in numbers)
    return in_range and len(lengths) <= 1


def remove_logs(folder: Path) -> None:
    """Remove what encoding wrote, and the folder unless it holds anything else."""
    with written(folder):
        # Other files are the user's.
        for path in sorted(folder.iterdir()):
            if OWN.fullmatch(path.name):
                path.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()
