"""Encode galleries and queries in batches, while threads decode the pictures of the next batch."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from cir_cot.errors import InputError
from cir_cot.images import ImageStore
from cir_cot.records import Record
from cir_cot.retriever import QueryOutput, Retriever, concatenate_outputs, inference

from .encode_ahead import encode_ahead
from .encoded_rows import EncodedRows
from .readings import Encode

THREADS = 8  # most threads that decode pictures
QUEUED = 4  # batches of queries that a retriever is given at a time


def encode_gallery(
    retriever: Retriever,
    names: Sequence[str],
    images: ImageStore,
    batch_size: int = 32,
    progress: bool = False,
    rows: EncodedRows | None = None,
) -> Tensor:
    """Encode the gallery images `names`, decoding each picture once.

    Args:
        retriever: Encodes the pictures.
        names: Their image ids.
        images: Their store.
        batch_size: Pictures in one call of the retriever.
        progress: Show a progress bar.
        rows: What is encoded already, and where this process's share of the rest is kept.

    Returns:
        (N, D) float32 embeddings on the CPU, in the order of `names`.

    Raises:
        InputError: A picture cannot be read, or an embedding is not finite.
    """
    wanted = list(names) if rows is None else rows.missing(names)
    parts: list[Tensor] = []
    done = 0
    with (
        inference(retriever),
        tqdm(total=len(wanted), desc="gallery", unit=" images", disable=not progress) as bar,
    ):
        for vectors in encode_ahead(retriever, load_batches(wanted, images, batch_size)):
            batch = wanted[done : done + len(vectors)]
            done += len(vectors)
            if rows is None:
                parts.append(vectors)
            else:
                nothing = [""] * len(batch)
                rows.append(batch, QueryOutput(check_embeddings(vectors, batch), nothing))
            bar.update(len(vectors))
    if rows is None:
        return check_embeddings(torch.cat(parts), names)
    # The other processes' shares.
    rows.ranks.wait()
    return rows.output(names).embeddings


def queue_size(retriever: Retriever, batch_size: int) -> int:
    """Bound the batches of a retriever that forms its own, and return how many queries to give it in a call.

    One that writes chains fills its batch again from further queries when rows have ended.
    """
    if not hasattr(retriever, "batch_size"):
        return batch_size
    retriever.batch_size = batch_size
    return QUEUED * batch_size


def encode_queries(
    records: Sequence[Record],
    images: ImageStore,
    encode: Encode,
    batch_size: int = 32,
    progress: bool = False,
    rows: EncodedRows | None = None,
) -> QueryOutput:
    """Encode the queries of records in batches.

    Args:
        records: Queries.
        images: Store of the reference pictures.
        encode: Function of (records, reference pictures); see `readings.record_encoder`.
        batch_size: Queries in one call of `encode`; see `queue_size`.
        progress: Show a progress bar.
        rows: What is encoded already, and where this process's share of the rest is kept.

    Returns:
        (Q, D) embeddings with the explanations and flags of all records.
    """
    ids = [record.id for record in records]
    wanted = list(records)
    if rows is not None:
        missing = set(rows.missing(ids))
        wanted = [record for record in records if record.id in missing]
    references = [record.reference for record in wanted]
    outputs = []
    done = 0
    with tqdm(total=len(wanted), desc="queries", unit=" queries", disable=not progress) as bar:
        for pictures in load_batches(references, images, batch_size):
            batch = wanted[done : done + len(pictures)]
            done += len(pictures)
            output = encode(batch, pictures)
            check_embeddings(output.embeddings, [record.id for record in batch])
            if rows is None:
                outputs.append(output)
            else:
                rows.append([record.id for record in batch], output)
            bar.update(len(pictures))
    # One output of all batches, in the order of the records.
    if rows is None:
        return concatenate_outputs(outputs)
    rows.ranks.wait()
    return rows.output(ids)


def load_batches(
    names: Sequence[str], images: ImageStore, size: int
) -> Iterator[list[Image.Image]]:
    """Yield the pictures of `names` in batches; threads decode the next batch meanwhile.

    A name that occurs more than once in a batch is decoded once.
    """
    if size < 1:
        raise InputError(f"batch_size is {size}; encode at least one picture at a time")
    waiting: deque[list[Future[Image.Image]]] = deque()
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        for start in range(0, len(names), size):
            # Submit this batch before the batch before it is yielded.
            batch = names[start : start + size]
            pending = {name: pool.submit(images.load, name) for name in dict.fromkeys(batch)}
            waiting.append([pending[name] for name in batch])
            if len(waiting) > 1:
                yield [future.result() for future in waiting.popleft()]
        # The last batch has no successor to wait for.
        while waiting:
            yield [future.result() for future in waiting.popleft()]


def check_embeddings(embeddings: Tensor, names: Sequence[str]) -> Tensor:
    """Return the embeddings (N, D) of `names`; InputError names the first that is not finite."""
    if embeddings.shape[0] != len(names):
        count = embeddings.shape[0]
        raise ValueError(f"{len(names)} inputs gave {count} embeddings; one for each is expected")
    # A row with NaN or infinity would be ranked arbitrarily.
    bad = (~embeddings.isfinite().all(dim=1)).nonzero()
    if len(bad):
        raise InputError(
            f"the embedding of {names[int(bad[0])]!r} is not finite; the checkpoint has diverged"
        )
    return embeddings
