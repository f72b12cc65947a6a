"""Encode any number of pictures or queries a part at a time, so that only a part's pictures are open."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from cir_cot.inputs import Picture, as_list, as_pictures, check_pairs
from cir_cot.retriever import QueryOutput, concatenate_outputs

BATCHES = 4  # of a part: rows of like length are found among them


@contextmanager
def rows_at_once(head: Any, batch_size: int | None) -> Iterator[int]:
    """Let a head work with batches of `batch_size` rows, None for its own; the value is the rows of a part."""
    before = head.batch_size
    head.batch_size = batch_size or before
    try:
        yield BATCHES * head.batch_size
    finally:
        head.batch_size = before


def encode_pictures(
    encode: Callable[[list[Image.Image]], Tensor],
    images: Picture | Sequence[Picture],
    size: int,
    dim: int,
    show_progress: bool = False,
) -> Tensor:
    """Encode pictures or their files, `size` at a time -> (N, D).

    Args:
        encode: encodes a list of pictures in RGB.
        images: one or many.
        size: pictures of a part.
        dim: D, for no pictures at all.
        show_progress: show a bar.
    """
    given = as_list(images)
    vectors = [torch.zeros(0, dim)]
    with tqdm(total=len(given), unit=" pictures", disable=not show_progress) as bar:
        for at in range(0, len(given), size):
            pictures = as_pictures(given[at : at + size])
            vectors.append(encode(pictures))
            bar.update(len(pictures))
    return torch.cat(vectors)


def encode_queries(
    encode: Callable[[list[Image.Image], list[str]], QueryOutput],
    images: Picture | Sequence[Picture],
    texts: str | Sequence[str],
    size: int,
    dim: int,
    show_progress: bool = False,
) -> QueryOutput:
    """Encode queries, `size` at a time; the arguments are those of `encode_pictures`, with B texts."""
    given = as_list(images)
    words = [texts] if isinstance(texts, str) else list(texts)
    check_pairs(given, words)
    outputs = []
    with tqdm(total=len(words), unit=" queries", disable=not show_progress) as bar:
        for at in range(0, len(words), size):
            pictures = as_pictures(given[at : at + size])
            outputs.append(encode(pictures, words[at : at + size]))
            bar.update(len(pictures))
    return concatenate_outputs(outputs, dim)
