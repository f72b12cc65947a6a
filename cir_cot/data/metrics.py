"""Retrieval metrics of rankings: lists of image ids, best first; every value is a percentage over the queries.

A ranking has no ties. Whoever turns scores into rankings decides them, and must decide against the target:
the official code of GeneCIS gives a model with constant scores R@1 = 100 %, because its targets stand first.
"""

from collections.abc import Collection, Mapping, Sequence

Ranking = Sequence[str]


def hits_at_k(rankings: Sequence[Ranking], targets: Sequence[Collection[str]], k: int) -> int:
    """Number of queries with any of their targets among the first k."""
    _check(rankings, targets, k)
    pairs = zip(rankings, targets, strict=True)
    return sum(any(image in wanted for image in ranking[:k]) for ranking, wanted in pairs)


def recall_at_k(rankings: Sequence[Ranking], targets: Sequence[Collection[str]], k: int) -> float:
    """Recall@k in percent: queries with any of their targets among the first k."""
    return 100 * hits_at_k(rankings, targets, k) / len(rankings)


def subset_recall_at_k(
    rankings: Sequence[Ranking],
    targets: Sequence[Collection[str]],
    subsets: Sequence[Collection[str]],
    k: int,
) -> float:
    """CIRR's Recall_subset@k in percent: each ranking is cut down to its query's subset (without the reference)."""
    return recall_at_k(restrict(rankings, subsets), targets, k)


def soft_recall_at_k(
    rankings: Sequence[Ranking], weights: Sequence[Mapping[str, float]], k: int
) -> float:
    """Recall@k of CIRR's graded labels in percent: a query scores its best weight among the first k, at least 0."""
    _check(rankings, weights, k)
    pairs = zip(rankings, weights, strict=True)
    return (
        100
        * sum(max([0, *(w.get(image, 0) for image in ranking[:k])]) for ranking, w in pairs)
        / len(rankings)
    )


def map_at_k(rankings: Sequence[Ranking], targets: Sequence[Collection[str]], k: int) -> float:
    """CIRCO's mAP@k in percent: mean of `average_precision` over the queries."""
    _check(rankings, targets, k)
    pairs = zip(rankings, targets, strict=True)
    return (
        100
        * sum(average_precision(ranking, wanted, k) for ranking, wanted in pairs)
        / len(rankings)
    )


def average_precision(ranking: Ranking, targets: Collection[str], k: int) -> float:
    """AP@k in 0..1: precision at each hit of the first k, summed, divided by min(number of targets, k)."""
    if len(set(ranking)) != len(ranking):
        raise ValueError(
            "an image occurs twice in one ranking; average precision would count it twice"
        )
    hits, total = 0, 0.0
    for place, image in enumerate(ranking[:k], 1):
        if image in targets:
            hits += 1
            total += hits / place
    return total / min(len(targets), k)


def restrict(rankings: Sequence[Ranking], allowed: Sequence[Collection[str]]) -> list[list[str]]:
    """Each ranking without the images its query does not allow; the order stays."""
    sets = [set(images) for images in allowed]
    return [
        [image for image in ranking if image in keep]
        for ranking, keep in zip(rankings, sets, strict=True)
    ]


def _check(rankings: Sequence[Ranking], labels: Sequence[Collection[str]], k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if not rankings:
        raise ValueError("no queries: a mean over nothing has no value")
    if not all(labels):
        raise ValueError(f"query {[bool(label) for label in labels].index(False)} has no target")
