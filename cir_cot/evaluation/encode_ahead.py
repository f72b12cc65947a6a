"""Encode candidate pictures while threads make the model's inputs of the next batches."""

import copy
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from PIL import Image
from torch import Tensor

from cir_cot.retriever import Retriever

AHEAD = 2  # batches whose inputs are made in advance, each in a thread


def encode_ahead(
    retriever: Retriever, batches: Iterable[Sequence[Image.Image]]
) -> Iterator[Tensor]:
    """Yield the embeddings (B, D) of each batch of pictures, on the CPU, in order.

    Resizing and cutting into patches takes a processor as long as a GPU needs to encode. For a retriever that offers
    `target_preparer`, threads do this work for the next batches, each with a copy of its own: a tokenizer cannot be
    used by two at once.
    """
    prepare = getattr(retriever, "target_preparer", None)
    if prepare is None:
        for pictures in batches:
            yield _one_each(retriever.encode_target(pictures).float().cpu(), len(pictures))
        return
    encode: Callable[[Any], Tensor] = retriever.encode_prepared  # type: ignore[attr-defined]
    own = threading.local()
    shared = prepare()

    def take_a_copy() -> None:
        own.prepare = copy.deepcopy(shared)

    def prepared(pictures: Sequence[Image.Image]) -> Any:
        return own.prepare(pictures)

    # Futures of model inputs, and the numbers of their pictures.
    waiting: deque[tuple[Future, int]] = deque()

    def next_vectors() -> Tensor:
        inputs, count = waiting.popleft()
        return _one_each(encode(inputs.result()), count)

    with ThreadPoolExecutor(AHEAD, initializer=take_a_copy) as pool:
        for pictures in batches:
            waiting.append((pool.submit(prepared, pictures), len(pictures)))
            if len(waiting) > AHEAD:
                yield next_vectors()
        while waiting:
            yield next_vectors()


def _one_each(vectors: Tensor, count: int) -> Tensor:
    """Return vectors; ValueError unless each of `count` pictures has one."""
    if len(vectors) != count:
        raise ValueError(f"{count} inputs gave {len(vectors)} embeddings; one for each is expected")
    return vectors
