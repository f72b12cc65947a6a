"""Encoding a gallery so that no picture is encoded twice, by any number of processes, through kill -9 and changes.

A process appends to a part of its own, `<rank>.encoded`: rows of a picture's content hash, its vector (D float32) and a
checksum of both, so that they cannot part. A batch is appended at a time and fsynced; a torn end is cut off when the
part is opened again, and a row whose checksum is wrong is encoded again. So an interrupted run loses at most the batch
in flight. Vectors are found by the hash of the file's bytes: a picture that is renamed, listed twice or unchanged since
the last time is not encoded again.
"""

import hashlib
import json
import logging
import os
import re
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from cir_cot.errors import InputError
from cir_cot.evaluation.encode import check_embeddings
from cir_cot.files import read_json, sync, write_text_atomic
from cir_cot.images import ImageStore
from cir_cot.retriever import Retriever, check_fingerprint, fingerprint, inference
from cir_cot.storage import written

HASH = 32  # hexadecimal digits: 128 bits
CHECKSUM = 8  # bytes, of a stored row
ENCODED = ".encoded"
# what encoding writes: parts, what was seen, the fingerprint, temporary files; and parts of an earlier version
OWN = re.compile(r"\d+\.(encoded|seen|vectors|rows)|probe\.json|\.[0-9a-f]{16}\.tmp")

logger = logging.getLogger(__name__)


def is_probe(value: object) -> bool:
    """Tell whether a value is a list of equally long lists of numbers that can be parts of unit vectors."""
    if not isinstance(value, list) or not all(isinstance(row, list) for row in value):
        return False
    numbers = [number for row in value for number in row]
    return (
        all(type(number) in (int, float) and -2 < number < 2 for number in numbers)
        and len(set(map(len, value))) <= 1
    )


class Part:
    """The append-only store of one process: a table of (hash, vector, checksum) on the disk; `rows`: hash -> row."""

    def __init__(self, folder: Path, rank: int, dim: int):
        self.path = folder / f"{rank}{ENCODED}"
        self.layout = np.dtype(
            [("hash", f"V{HASH // 2}"), ("vector", "<f4", (dim,)), ("checksum", f"V{CHECKSUM}")]
        )
        self.count = self.path.stat().st_size // self.layout.itemsize if self.path.exists() else 0
        self.table = np.zeros(0, dtype=self.layout)
        if self.count:
            self.table = np.memmap(self.path, dtype=self.layout, mode="r", shape=(self.count,))
        whole = [_checksum(row) == row["checksum"].tobytes() for row in self.table]
        self.rows = {
            self.table[n]["hash"].tobytes().hex(): n for n, good in enumerate(whole) if good
        }
        if not all(whole):
            logger.warning(
                "%s: %d of %d rows are damaged; their pictures are encoded again",
                self.path,
                whole.count(False),
                self.count,
            )

    def repair(self) -> "Part":
        """Cut off what an interrupted run has written of a batch only in part; for the process that appends."""
        self.path.touch()
        os.truncate(self.path, self.count * self.layout.itemsize)
        sync(self.path.parent)
        return self

    def append(self, hashes: Sequence[str], vectors: np.ndarray) -> None:
        """Append a batch, on the disk when this returns."""
        rows = np.zeros(len(hashes), dtype=self.layout)
        rows["vector"] = vectors
        for row, digest in zip(rows, hashes, strict=True):
            row["hash"] = np.void(bytes.fromhex(digest))
            row["checksum"] = np.void(_checksum(row))
        with self.path.open("ab") as file:
            file.write(rows.tobytes())
            file.flush()
            os.fsync(file.fileno())


def _checksum(row: np.void) -> bytes:
    content = row["hash"].tobytes() + row["vector"].tobytes()
    return hashlib.blake2b(content, digest_size=CHECKSUM).digest()


def open_parts(folder: Path, dim: int) -> list[Part]:
    """Return the parts that are there, whichever processes wrote them."""
    names = [path.name.removesuffix(ENCODED) for path in folder.glob(f"*{ENCODED}")]
    return [
        Part(folder, rank, dim) for rank in sorted(int(name) for name in names if name.isdecimal())
    ]


def claim_parts(parts: Path, retriever: Retriever) -> None:
    """Write the retriever's fingerprint beside the parts, or check the one of the run that is continued."""
    path = parts / "probe.json"
    if path.exists():
        check_fingerprint(read_probe(path), retriever, str(parts))
    elif parts.exists() and any(not OWN.fullmatch(file.name) for file in parts.iterdir()):
        raise InputError(
            f"{parts}: holds files that no index wrote; move them away, or give another --out"
        )
    else:
        with written(parts):
            parts.mkdir(parents=True, exist_ok=True)
            write_text_atomic(path, json.dumps({"probe": fingerprint(retriever).tolist()}))
    if old := sorted(parts.glob("*.rows")):
        logger.warning(
            "%s: stored without checksums by an earlier version; its pictures are encoded again",
            old[0],
        )


def read_probe(path: Path) -> list[list[float]]:
    """Return the fingerprint of a run that can be continued; InputError when the file is damaged."""
    found = read_json(path)
    if not isinstance(found, dict) or not is_probe(found.get("probe")):
        raise InputError(f"{path}: damaged; remove the folder {path.parent} and run again")
    return found["probe"]


def remove_parts(parts: Path) -> None:
    """Remove what encoding wrote, and the folder unless something else is in it."""
    with written(parts):
        for path in sorted(parts.iterdir()):
            if OWN.fullmatch(path.name):
                path.unlink()
        if not any(parts.iterdir()):
            parts.rmdir()


def encode_share(
    retriever: Retriever,
    images: ImageStore,
    names: Sequence[str],
    folder: Path,
    known: Collection[str] = (),
    batch_size: int = 32,
    rank: int = 0,
    world: int = 1,
    progress: bool = False,
) -> int:
    """Encode process `rank`'s share of `names` into its part, but for hashes in `known` -> how many were encoded.

    What each name is now goes to `<rank>.seen`: its hash, or why it cannot be read. Such pictures are left out, and
    `read_seen` returns them.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; encode at least one picture at a time")
    with written(folder):
        folder.mkdir(parents=True, exist_ok=True)
    done = set(known).union(*(part.rows for part in open_parts(folder, retriever.dim)))
    with written(folder):
        part = Part(folder, rank, retriever.dim).repair()
    seen: list[tuple[str, str, str]] = []
    waiting: list[tuple[str, str, Image.Image]] = []
    encoded = 0

    def flush() -> int:
        batch = list(waiting)
        waiting.clear()
        if batch:
            vectors = retriever.encode_target([picture for *_, picture in batch])
            check_embeddings(vectors, [name for name, *_ in batch])
            with written(folder):
                part.append([digest for _, digest, _ in batch], vectors.float().cpu().numpy())
        return len(batch)

    mine = names[rank::world]
    with (
        inference(retriever),
        tqdm(total=len(mine), desc="gallery", unit=" images", disable=not progress) as bar,
    ):
        for name, digest, picture, problem in _look(images, mine, done, batch_size):
            bar.update()
            seen.append((name, digest, problem))
            if picture is not None and digest not in done:
                done.add(digest)
                waiting.append((name, digest, picture))
                encoded += flush() if len(waiting) == batch_size else 0
        encoded += flush()
    write_text_atomic(folder / f"{rank}.seen", json.dumps(seen))
    return encoded


def _look(
    images: ImageStore, names: Sequence[str], done: Collection[str], ahead: int
) -> Iterator[tuple[str, str, Image.Image | None, str]]:
    """Yield (name, hash, picture where it has to be encoded, problem) in order; threads read ahead of the model."""

    def look(name: str) -> tuple[str, str, Image.Image | None, str]:
        try:
            digest = _hash(images, name)
            if digest in done:
                return name, digest, None, ""
            picture = images.load(name)
            if _hash(images, name) != digest:
                raise InputError(
                    f"{images.path(name)}: changes while it is read; run again when it is settled"
                )
            return name, digest, picture, ""
        except InputError as error:
            return name, "", None, str(error)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        pending = deque()
        for name in names:
            pending.append(pool.submit(look, name))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _hash(images: ImageStore, name: str) -> str:
    path = images.path(name)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(
                file, lambda: hashlib.blake2b(digest_size=HASH // 2)
            ).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def read_seen(folder: Path, world: int) -> tuple[dict[str, str], dict[str, str]]:
    """Return what all processes saw: {image id: hash}, and {image id: problem} of those that cannot be read."""
    seen = [row for rank in range(world) for row in read_json(folder / f"{rank}.seen")]
    return {name: digest for name, digest, _ in seen if digest}, {
        name: why for name, _, why in seen if why
    }


class Vectors:
    """The vectors of all parts of a folder, by content hash."""

    def __init__(self, folder: Path, dim: int):
        parts = open_parts(folder, dim)
        self.tables, self.dim = [part.table for part in parts], dim
        self.at = {
            value: (p, row) for p, part in enumerate(parts) for value, row in part.rows.items()
        }

    def __contains__(self, digest: str) -> bool:
        return digest in self.at

    def __getitem__(self, hashes: Sequence[str]) -> np.ndarray:
        """Return vectors (n, D) of a list of hashes."""
        rows = [self.tables[p][row]["vector"] for p, row in map(self.at.__getitem__, hashes)]
        return np.array(rows, dtype=np.float32).reshape(len(rows), self.dim)


def shorten(vectors: np.ndarray | torch.Tensor, width: int) -> np.ndarray:
    """Return unit vectors (n, width) of the first `width` numbers of vectors (n, D); float32."""
    kept = np.ascontiguousarray(np.asarray(vectors, dtype=np.float32)[:, :width])
    if kept.shape[1] == vectors.shape[1]:
        return kept  # as the retriever gave them, not rounded once more
    return kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), np.float32(1e-12))
