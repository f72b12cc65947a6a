"""Rank a complete gallery exactly, with ties decided against the model.

Among equal scores the right images come last, so a model that gives every image the same score
earns nothing. The official code of several benchmarks would give that model 100 %, because its
targets come first in the gallery.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from cir_cot.data.benchmark import Benchmark
from cir_cot.records import Record

TOP = 100  # length of a stored ranking: twice the deepest official cut, 50
BLOCK = 256  # queries scored at once: 256 x 123,403 float32 scores (CIRCO) are 126 MB
COLUMNS = 8192  # gallery images multiplied at once: 8192 x 3584 in float64 are 235 MB

Rankings = dict[str, list[str]]  # query id -> image ids, best first
Scores = dict[str, list[float]]  # query id -> the scores of its ranking


def rank(
    benchmark: Benchmark, queries: Tensor, gallery: Tensor, top: int = TOP
) -> tuple[Rankings, Scores, Rankings | None]:
    """Rank the gallery for each query of the benchmark.

    The reference is left out where the protocol removes it; a GeneCIS query ranks its candidates.

    Args:
        benchmark: Its records are the queries, in the order of `queries`.
        queries: (Q, D) query embeddings on the CPU.
        gallery: (N, D) embeddings of `benchmark.gallery` on the CPU.
        top: Length of a ranking.

    Returns:
        Rankings, their scores, and rankings of each record's subset (CIRR; None without subsets).
    """
    column = {name: index for index, name in enumerate(benchmark.gallery)}
    rankings: Rankings = {}
    scores: Scores = {}
    subsets: Rankings = {}
    for start in range(0, len(benchmark.records), BLOCK):
        records = benchmark.records[start : start + BLOCK]
        block = dot_products(queries[start : start + BLOCK].numpy(), gallery.numpy())  # (block, N)
        for record, row in zip(records, block, strict=True):
            # Columns of the right images, and of the reference where it must not be an answer.
            right = relevant_images(benchmark, record)
            targets = [column[name] for name in right if name in column]
            out = column.get(record.reference, -1) if benchmark.remove_reference else -1
            # The ranking of the complete gallery, or of the query's candidates.
            allowed = _allowed_columns(benchmark, record, column)
            order = top_columns(row, allowed[allowed != out], targets, top)
            rankings[record.id] = [benchmark.gallery[index] for index in order]
            scores[record.id] = row[order].tolist()
            # The ranking of the query's image set.
            members = _columns_of(record.subset, column)
            order = top_columns(row, members[members != out], targets, top)
            subsets[record.id] = [benchmark.gallery[index] for index in order]
    has_subsets = any(record.subset for record in benchmark.records)
    return rankings, scores, subsets if has_subsets else None


def _allowed_columns(benchmark: Benchmark, record: Record, column: dict[str, int]) -> np.ndarray:
    """Return the columns that a query may rank: its candidates (GeneCIS), or the gallery."""
    if benchmark.candidates is None:
        return np.arange(len(column))
    return np.array([column[name] for name in benchmark.candidates[record.id]])


def _columns_of(names: Sequence[str], column: dict[str, int]) -> np.ndarray:
    """Return the columns of those images that are in the gallery."""
    return np.array([column[name] for name in names if name in column], dtype=int)


def dot_products(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Return scores (Q, N) float32 of queries (Q, D) and gallery (N, D), summed in float64.

    Equal images then score equally in any column. A float32 product does not guarantee that: its
    last columns go through another kernel and differ in the last bit, so an image's position in
    the gallery would decide ties.
    """
    exact = queries.astype(np.float64)
    blocks = []
    for start in range(0, len(gallery), COLUMNS):
        part = gallery[start : start + COLUMNS].astype(np.float64)
        blocks.append((exact @ part.T).astype(np.float32))
    return np.concatenate(blocks, axis=1)


def relevant_images(benchmark: Benchmark, record: Record) -> list[str]:
    """List the right images, the most relevant first.

    These are the images with a graded label above 0 (CIRR), or the targets in their order.
    """
    weights = (benchmark.weights or {}).get(record.id, {})
    labelled = [name for name in weights if weights[name] > 0]
    graded = sorted(labelled, key=lambda name: -weights[name])
    return graded or list(record.targets)


def top_columns(
    scores: np.ndarray, allowed: np.ndarray, targets: Sequence[int], top: int
) -> np.ndarray:
    """Return the columns with the `top` highest scores, best first.

    Among equal scores the targets come last, and the first target (the only one that some metrics
    count) last of all.

    Args:
        scores: (N,) scores of all columns.
        allowed: Columns to choose from.
        targets: Columns of the right images, the most relevant first.
        top: Number of columns to return; fewer where fewer are allowed.
    """
    top = min(top, len(allowed))
    if top == 0:
        return np.array([], dtype=int)
    # Keep every column that could be among the first `top`: more than `top` where scores are equal.
    values = scores[allowed]
    lowest = np.partition(values, len(values) - top)[len(values) - top]
    near = allowed[values >= lowest]
    # Rank the targets behind images of the same score.
    right = np.zeros(len(near))
    for place, target in enumerate(targets):
        right[near == target] = len(targets) - place
    # np.lexsort sorts by its last key first.
    return near[np.lexsort((near, right, -scores[near]))][:top]
