"""Encode a gallery with any number of processes so that no picture is encoded twice.

Each process hashes its share of the pictures, encodes those that no log holds yet, and writes down what it found: a
scan `<rank>.seen` of (image id, content hash, problem) rows. See `vector_store` for how the vectors are stored.
"""

import json
import os
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import tee
from pathlib import Path
from typing import cast

from PIL import Image
from tqdm import tqdm

from cir_cot.digests import digest_file
from cir_cot.errors import InputError
from cir_cot.evaluation.encode import check_embeddings
from cir_cot.evaluation.encode_ahead import encode_ahead
from cir_cot.files import read_json, write_text_atomic
from cir_cot.images import ImageStore
from cir_cot.ranks import ALONE, Ranks
from cir_cot.retriever import Retriever, inference
from cir_cot.storage import written

from .vector_store import VectorLog, open_logs


@dataclass(frozen=True)
class Scanned:
    """What a process found of one picture.

    Attributes:
        name: image id.
        digest: content hash; "" when the file cannot be read.
        picture: the decoded picture where it must be encoded, else None.
        problem: why the picture is left out; "" when nothing is wrong.
    """

    name: str
    digest: str
    picture: Image.Image | None = None
    problem: str = ""


def encode_rank(
    retriever: Retriever,
    images: ImageStore,
    names: Sequence[str],
    folder: Path,
    known: Collection[str] = (),
    batch_size: int = 32,
    ranks: Ranks = ALONE,
    progress: bool = False,
) -> int:
    """Encode this process's share of the pictures `names` into its log.

    Args:
        retriever: encodes the pictures, a batch at a time.
        images: the pictures by name.
        names: image ids of the gallery; this process takes every `world`-th of them.
        folder: where the logs and scans are.
        known: content hashes that need no encoding, because the index already holds them.
        batch_size: pictures encoded, and stored, at a time.
        ranks: which of how many processes this is.
        progress: show a progress bar.

    Returns:
        How many pictures were encoded. Unreadable pictures are left out; `read_scan` returns them.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; encode at least one picture at a time")
    # Open the logs; pictures that any process has stored are done.
    with written(folder):
        folder.mkdir(parents=True, exist_ok=True)
    done = set(known)
    for other in open_logs(folder, retriever.dim):
        done.update(other.rows)
    with written(folder):
        log = VectorLog(folder, ranks.rank, retriever.dim).repair()
    # Take every `world`-th picture.
    share = ranks.share(names)
    scan: list[tuple[str, str, str]] = []
    encoded = 0
    with (
        inference(retriever),
        tqdm(total=len(share), desc="gallery", unit=" images", disable=not progress) as bar,
    ):
        # Threads hash, decode and prepare; the model encodes the pictures that are new.
        found = _scan_ahead(images, share, done, batch_size)
        batches, same = tee(_new_pictures(found, done, batch_size, scan, bar))
        encoding = encode_ahead(retriever, map(_pictures, same))
        # Store a batch as soon as it is encoded.
        for batch, vectors in zip(batches, encoding, strict=True):
            check_embeddings(vectors, [one.name for one in batch])
            with written(log.path.parent):
                log.append([one.digest for one in batch], vectors.numpy())
            encoded += len(batch)
    # Write down what each picture is now, for the process that writes the index.
    write_text_atomic(folder / f"{ranks.rank}.seen", json.dumps(scan))
    return encoded


def _pictures(batch: Sequence[Scanned]) -> list[Image.Image]:
    """Return the decoded pictures of a batch, all of which must be encoded."""
    return [one.picture for one in batch if one.picture is not None]


def _new_pictures(
    found: Iterable[Scanned],
    done: set[str],
    size: int,
    scan: list[tuple[str, str, str]],
    bar: tqdm,
) -> Iterator[list[Scanned]]:
    """Yield batches of pictures to encode, equal files once, and note every picture in `scan`."""
    batch: list[Scanned] = []
    for one in found:
        bar.update()
        scan.append((one.name, one.digest, one.problem))
        if one.picture is not None and one.digest not in done:
            done.add(one.digest)
            batch.append(one)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _scan_ahead(
    images: ImageStore, names: Sequence[str], done: Collection[str], ahead: int
) -> Iterator[Scanned]:
    """Yield what is found of each picture, in order, while threads read up to `ahead` pictures in advance."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        # Submit in order and take results in order.
        pending: deque[Future[Scanned]] = deque()
        for name in names:
            pending.append(pool.submit(_scan, images, name, done))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _scan(images: ImageStore, name: str, done: Collection[str]) -> Scanned:
    """Hash a picture, and decode it unless its vector is `done`."""
    try:
        digest = hash_picture(images, name)
        # Pictures encoded meanwhile are dropped by the caller, so reading `done` here needs no lock.
        if digest in done:
            return Scanned(name, digest)
        picture = images.load(name)
        # Hash again: a file that was replaced meanwhile must not be stored under the first hash.
        if hash_picture(images, name) != digest:
            raise InputError(
                f"{images.path(name)}: changes while it is read; run again when it is settled"
            )
    except InputError as error:
        return Scanned(name, "", problem=str(error))
    return Scanned(name, digest, picture)


def hash_picture(images: ImageStore, name: str) -> str:
    """Return the content hash of a picture's file; InputError when it cannot be read."""
    path = images.path(name)
    # The file's bytes, not its pixels: another encoding of the same picture counts as a change.
    try:
        return digest_file(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def read_scan(folder: Path, world: int) -> tuple[dict[str, str], dict[str, str]]:
    """Read what all processes found -> {image id: content hash}, and {image id: problem} of unreadable pictures."""
    # A picture has a hash or a problem.
    hashes: dict[str, str] = {}
    unreadable: dict[str, str] = {}
    for rank in range(world):
        rows = cast(list[tuple[str, str, str]], read_json(folder / f"{rank}.seen"))
        for name, digest, problem in rows:
            if digest:
                hashes[name] = digest
            if problem:
                unreadable[name] = problem
    return hashes, unreadable
