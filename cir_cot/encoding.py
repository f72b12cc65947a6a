"""Encoding a gallery so that no picture is encoded twice, by any number of processes, through kill -9 and changes.

A process appends to a part of its own: `<rank>.vectors`, rows of D float32, and `<rank>.rows`, the content hash of each
on a line. A batch is written at a time, the vectors first, each file fsynced; a torn end is cut off when the part is
opened again. So an interrupted run loses at most the batch in flight. Vectors are found by the hash of the file's
bytes: a picture that is renamed, listed twice or unchanged since the last time is not encoded again.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from .evaluation import check_embeddings, inference
from .images import EXTENSIONS, ImageStore
from .records import InputError, read_json, write_text_atomic
from .retriever import Retriever

HASH = 32  # hexadecimal digits: 128 bits
ALIKE = 0.999  # cosine of two encodings of one picture by one model; bfloat16 against float32 stays above
SIDE = 224  # of the probe pictures, pixels


def list_pictures(root: str | Path) -> ImageStore:
    """Return a store of every picture below a folder, ids being paths without their extension; InputError if none."""
    if not Path(root).is_dir():
        raise InputError(f"{root}: no such folder of pictures")
    files: dict[str, str] = {}
    for path in sorted(Path(root).rglob("*")):
        if path.suffix.lower() in EXTENSIONS and path.is_file():
            file = path.relative_to(root)
            name = file.with_suffix("").as_posix()
            if name in files:
                raise InputError(f"{root}: {files[name]} and {file} have one image id, {name!r}; rename one of them")
            files[name] = file.as_posix()
    if not files:
        raise InputError(f"{root}: no picture in it ({', '.join(EXTENSIONS)})")
    return ImageStore(root, files)


def probe(retriever: Retriever) -> np.ndarray:
    """Return the vectors (3, D) of three made pictures: the fingerprint of what a retriever makes of candidates."""
    colours = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    pictures = [Image.fromarray(part).resize((SIDE, SIDE), Image.Resampling.NEAREST) for part in colours]
    with inference(retriever):
        return retriever.encode_target(pictures).float().cpu().numpy()


def check_probe(stored: Sequence[Sequence[float]], retriever: Retriever, where: str) -> None:
    """Refuse a retriever that encodes pictures otherwise than the one that the stored probe (3, D) is of."""
    theirs, ours = np.array(stored, dtype=np.float64), probe(retriever).astype(np.float64)
    alike = (theirs * ours).sum(axis=1).min() if theirs.shape == ours.shape else -1.0
    if not alike >= ALIKE:
        how = f"cosine {alike:.3f}" if theirs.shape == ours.shape else f"{theirs.shape[1]} and {ours.shape[1]} numbers"
        raise InputError(
            f"{where}: encoded by another retriever ({how} for the same picture); give the checkpoint that it was "
            "encoded with, or encode the gallery into a new folder"
        )


class Part:
    """The append-only store of one process: `hashes` in order, vectors (n, D) on disk."""

    def __init__(self, folder: Path, rank: int, dim: int):
        self.dim, self.files = dim, [folder / f"{rank}.vectors", folder / f"{rank}.rows"]
        sizes = [path.stat().st_size if path.exists() else 0 for path in self.files]
        count = min(size // width for size, width in zip(sizes, self._widths(), strict=True))
        self.hashes = self.files[1].read_text(encoding="ascii").split()[:count] if count else []

    def _widths(self) -> tuple[int, int]:
        return 4 * self.dim, HASH + 1  # bytes of a row in either file

    def repair(self) -> "Part":
        """Cut off what an interrupted run has written of a batch only in part; for the process that appends."""
        for path, width in zip(self.files, self._widths(), strict=True):
            path.touch()
            os.truncate(path, len(self.hashes) * width)
        return self

    def append(self, hashes: Sequence[str], vectors: np.ndarray) -> None:
        """Append a batch, on the disk when this returns."""
        for path, data in zip(self.files, (vectors.astype("<f4").tobytes(), _lines(hashes)), strict=True):
            with path.open("ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        self.hashes.extend(hashes)

    def vectors(self) -> np.ndarray:
        """Return what is stored (n, D), read from the disk as needed."""
        if not self.hashes:
            return np.zeros((0, self.dim), dtype="<f4")
        return np.memmap(self.files[0], dtype="<f4", mode="r", shape=(len(self.hashes), self.dim))


def _lines(hashes: Sequence[str]) -> bytes:
    return "".join(f"{value}\n" for value in hashes).encode("ascii")


def open_parts(folder: Path, dim: int) -> list[Part]:
    """Return the parts that are there, whichever processes wrote them."""
    return [Part(folder, int(path.stem), dim) for path in sorted(folder.glob("*.rows"))]


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
    folder.mkdir(parents=True, exist_ok=True)
    done = set(known).union(*(part.hashes for part in open_parts(folder, retriever.dim)))
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
            part.append([digest for _, digest, _ in batch], vectors.float().cpu().numpy())
        return len(batch)

    mine = names[rank::world]
    with inference(retriever), tqdm(total=len(mine), desc="gallery", unit=" images", disable=not progress) as bar:
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
            with images.path(name).open("rb") as file:
                digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=HASH // 2)).hexdigest()
            return name, digest, None if digest in done else images.load(name), ""
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


def read_seen(folder: Path, world: int) -> tuple[dict[str, str], dict[str, str]]:
    """Return what all processes saw: {image id: hash}, and {image id: problem} of those that cannot be read."""
    seen = [row for rank in range(world) for row in read_json(folder / f"{rank}.seen")]
    return {name: digest for name, digest, _ in seen if digest}, {name: why for name, _, why in seen if why}


class Vectors:
    """The vectors of all parts of a folder, by content hash."""

    def __init__(self, folder: Path, dim: int):
        parts = open_parts(folder, dim)
        self.arrays, self.dim = [part.vectors() for part in parts], dim
        self.at = {value: (p, row) for p, part in enumerate(parts) for row, value in enumerate(part.hashes)}

    def __contains__(self, digest: str) -> bool:
        return digest in self.at

    def __getitem__(self, hashes: Sequence[str]) -> np.ndarray:
        """Return vectors (n, D) of a list of hashes."""
        rows = [self.arrays[p][row] for p, row in map(self.at.__getitem__, hashes)]
        return np.array(rows, dtype=np.float32).reshape(len(rows), self.dim)


def shorten(vectors: np.ndarray | torch.Tensor, width: int) -> np.ndarray:
    """Return unit vectors (n, width) of the first `width` numbers of vectors (n, D); float32."""
    kept = np.ascontiguousarray(np.asarray(vectors, dtype=np.float32)[:, :width])
    if kept.shape[1] == vectors.shape[1]:
        return kept  # as the retriever gave them, not rounded once more
    return kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), np.float32(1e-12))
