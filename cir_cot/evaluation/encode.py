"""TODO."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from cir_cot.errors import InputError
from cir_cot.images import ImageStore
from cir_cot.records import Record
from cir_cot.retriever import QueryOutput, Retriever, concatenate_outputs, inference

from .readings import Encode


def encode_gallery(
    retriever: Retriever,
    names: Sequence[str],
    images: ImageStore,
    batch_size: int = 32,
    progress: bool = False,
) -> Tensor:
    """Embeddings (N, D) float32 of the pictures `names`, on the CPU; each picture is decoded once."""
    parts = []
    with (
        inference(retriever),
        tqdm(total=len(names), desc="gallery", unit=" images", disable=not progress) as bar,
    ):
        for pictures in load_batches(names, images, batch_size):
            parts.append(retriever.encode_target(pictures).float().cpu())
            bar.update(len(pictures))
    return check_embeddings(torch.cat(parts), names)


def encode_queries(
    records: Sequence[Record],
    images: ImageStore,
    encode: Encode,
    batch_size: int = 32,
    progress: bool = False,
) -> QueryOutput:
    """Embeddings (Q, D), explanations and flags of the records, from `encode(records, reference pictures)`."""
    parts, done = [], 0
    with tqdm(total=len(records), desc="queries", unit=" queries", disable=not progress) as bar:
        for pictures in load_batches([record.reference for record in records], images, batch_size):
            parts.append(encode(records[done : done + len(pictures)], pictures))
            done += len(pictures)
            bar.update(len(pictures))
    output = concatenate_outputs(parts)
    check_embeddings(output.embeddings, [record.id for record in records])
    return output


def load_batches(
    names: Sequence[str], images: ImageStore, size: int
) -> Iterator[list[Image.Image]]:
    """Pictures of `names` in batches; threads decode the next batch while the caller works on this one.

    A name that occurs more than once in a batch is decoded once.
    """
    if size < 1:
        raise InputError(f"batch_size is {size}; encode at least one picture at a time")
    waiting: deque[list] = deque()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(names), size):
            batch = names[start : start + size]
            pending = {name: pool.submit(images.load, name) for name in dict.fromkeys(batch)}
            waiting.append([pending[name] for name in batch])
            if len(waiting) > 1:
                yield [future.result() for future in waiting.popleft()]
        while waiting:
            yield [future.result() for future in waiting.popleft()]


def check_embeddings(embeddings: Tensor, names: Sequence[str]) -> Tensor:
    """Return the embeddings (N, D) of `names` unchanged; InputError names the first that is not finite."""
    if embeddings.shape[0] != len(names):
        raise ValueError(
            f"{len(names)} inputs gave {embeddings.shape[0]} embeddings; a retriever gives one for each"
        )
    bad = (~embeddings.isfinite().all(dim=1)).nonzero()
    if len(bad):
        raise InputError(
            f"the embedding of {names[int(bad[0])]!r} is not finite; the checkpoint has diverged"
        )
    return embeddings
