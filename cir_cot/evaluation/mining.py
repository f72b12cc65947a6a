"""Find hard negatives of training queries: pictures that a retriever ranks near or above the target.

What cannot be told from the target is no negative: the target itself, other correct answers, the reference, pictures
with the content of one of these under another id, and pictures whose score is above the target's plus a margin (as for
Qwen3-VL-Embedding, arXiv 2601.04720), which are probably right answers that nobody has labelled. CIRR's image sets are
known: the text was written to tell the target from the other five, so that the margin does not apply to them.
"""

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor
from tqdm import tqdm

from cir_cot.data.benchmark import Benchmark
from cir_cot.data.negative_files import Negatives
from cir_cot.records import Record

from .ranking import BLOCK, dot_products


def mine(
    benchmark: Benchmark,
    queries: Tensor,
    gallery: Tensor,
    content: Callable[[str], str],
    count: int,
    margin: float | None,
    progress: bool = False,
) -> dict[str, Negatives]:
    """Return up to `count` hard negatives of each query, the hardest first.

    Args:
        benchmark: training queries with all their correct targets, and the gallery.
        queries: (Q, D) embeddings of its records.
        gallery: (N, D) embeddings of its gallery.
        content: maps an image id to a digest of the picture's content.
        count: most negatives of a query.
        margin: how far above the target's score a negative may score; None for any score.
        progress: show a progress bar.
    """
    column = {name: index for index, name in enumerate(benchmark.gallery)}
    digests = _Digests(content)
    mined = {}
    with tqdm(
        total=len(benchmark.records), desc="mining", unit=" queries", disable=not progress
    ) as bar:
        for start in range(0, len(benchmark.records), BLOCK):
            records = benchmark.records[start : start + BLOCK]
            block = dot_products(
                queries[start : start + BLOCK].numpy(), gallery.numpy()
            )  # (block, N)
            for record, scores in zip(records, block, strict=True):
                limit = _limit(record, scores, column, margin)
                mined[record.id] = _negatives(
                    record, scores, benchmark.gallery, limit, count, digests
                )
            bar.update(len(records))
    return mined


def _limit(
    record: Record, scores: np.ndarray, column: dict[str, int], margin: float | None
) -> float:
    """Return the highest score that a negative may have."""
    known = [float(scores[column[name]]) for name in record.targets if name in column]
    return float("inf") if margin is None or not known else max(known) + margin


def _negatives(
    record: Record,
    scores: np.ndarray,
    gallery: Sequence[str],
    limit: float,
    count: int,
    digests: "_Digests",
) -> Negatives:
    """Walk down the ranking of a query and keep what is a negative."""
    excluded = {record.reference, *record.targets}
    seen = {digests[name] for name in excluded}
    images = []
    kept = []
    # Ties in the order of the gallery, so that every run finds the same.
    for index in np.argsort(-scores, kind="stable"):
        name = gallery[index]
        score = float(scores[index])
        if name in excluded or (score > limit and name not in record.subset):
            continue
        digest = digests[name]
        if digest in seen:
            continue
        # A picture of the same content is no second negative.
        seen.add(digest)
        images.append(name)
        kept.append(score)
        if len(images) == count:
            break
    return Negatives(tuple(images), tuple(kept))


class _Digests(dict[str, str]):
    """Digests of pictures by id, each computed once."""

    def __init__(self, content: Callable[[str], str]):
        super().__init__()
        self.content = content

    def __missing__(self, name: str) -> str:
        self[name] = self.content(name)
        return self[name]
