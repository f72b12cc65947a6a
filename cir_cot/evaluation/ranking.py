"""Exact ranking of a whole gallery, with ties decided against the model.

Among equal scores the right answers come last, so that a model which scores everything alike is credited with nothing:
the official code of several benchmarks would give it 100 %, because its targets stand first.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from cir_cot.data.benchmark import Benchmark
from cir_cot.records import Record

TOP = 100  # length of the kept lists: twice the deepest official cut, 50
BLOCK = 256  # queries scored at a time: 256 x 123,403 float32 scores (CIRCO) are 126 MB
COLUMNS = 8192  # pictures multiplied at a time: 8192 x 3584 in float64 are 235 MB


def rank(
    benchmark: Benchmark, queries: Tensor, gallery: Tensor, top: int = TOP
) -> tuple[dict, dict, dict | None]:
    """Rank for queries (Q, D) and a gallery (N, D) -> lists of ids, their scores, lists of the subset (CIRR) or None.

    The reference is left out where the protocol removes it; GeneCIS queries rank their own candidates only.
    """
    column = {name: index for index, name in enumerate(benchmark.gallery)}
    rankings, scores, subsets = {}, {}, {}
    for start in range(0, len(benchmark.records), BLOCK):
        block = dot_products(queries[start : start + BLOCK].numpy(), gallery.numpy())  # (block, N)
        for record, row in zip(benchmark.records[start : start + BLOCK], block, strict=False):
            allowed = np.arange(len(row))
            if benchmark.candidates is not None:
                allowed = np.array([column[name] for name in benchmark.candidates[record.id]])
            out = column.get(record.reference, -1) if benchmark.remove_reference else -1
            targets = [column[name] for name in worth(benchmark, record) if name in column]
            order = best(row, allowed[allowed != out], targets, top)
            rankings[record.id] = [benchmark.gallery[index] for index in order]
            scores[record.id] = row[order].tolist()
            members = np.array(
                [column[name] for name in record.subset if name in column], dtype=int
            )
            subsets[record.id] = [
                benchmark.gallery[i] for i in best(row, members[members != out], targets, top)
            ]
    return rankings, scores, subsets if any(record.subset for record in benchmark.records) else None


def dot_products(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Scores (Q, N) float32 of queries (Q, D) against the gallery (N, D), summed in float64 and rounded once.

    So equal pictures score equal in whichever column. A float32 product does not give that: its last columns go through
    another kernel and differ in the last bit, which would decide ties by a picture's place in the gallery.
    """
    exact = queries.astype(np.float64)
    parts = (
        gallery[start : start + COLUMNS].astype(np.float64)
        for start in range(0, len(gallery), COLUMNS)
    )
    return np.concatenate([(exact @ part.T).astype(np.float32) for part in parts], axis=1)


def worth(benchmark: Benchmark, record: Record) -> list[str]:
    """List the images that count as right, the most valued first: CIRR's graded labels, or the targets in order."""
    weights = (benchmark.weights or {}).get(record.id, {})
    graded = sorted(
        (name for name in weights if weights[name] > 0), key=lambda name: -weights[name]
    )
    return graded or list(record.targets)


def best(scores: np.ndarray, allowed: np.ndarray, targets: Sequence[int], top: int) -> np.ndarray:
    """Columns of the `top` highest `scores` (N,) among the columns `allowed`, best first.

    Among equal scores the targets come last, and the first target (the only one that some metrics count) last of all.
    """
    top = min(top, len(allowed))
    if top == 0:
        return np.array([], dtype=int)
    values = scores[allowed]
    near = allowed[
        values >= np.partition(values, len(values) - top)[len(values) - top]
    ]  # more than `top` if tied
    right = np.zeros(len(near))
    for place, target in enumerate(targets):
        right[near == target] = len(targets) - place
    return near[np.lexsort((near, right, -scores[near]))][:top]
