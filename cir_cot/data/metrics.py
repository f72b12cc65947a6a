"""Compute retrieval metrics from rankings, as percentages over the queries.

Notation: Q queries; r_q is the ranking of query q, a list of image ids, best first; T_q is the set
of its targets; [x] is 1 if x holds, else 0. All arguments have one item a query, in the same order.

A ranking has no ties. Whoever turns scores into rankings must decide ties against the target: the
official code of GeneCIS gives a model with constant scores R@1 = 100 %, because its targets come
first.
"""

from collections.abc import Collection, Mapping, Sequence

Ranking = Sequence[str]  # image ids, best first


def hits_at_k(rankings: Sequence[Ranking], targets: Sequence[Collection[str]], k: int) -> int:
    """Return the number of queries with any target among the first k: sum_q [r_q[:k] meets T_q]."""
    _check(rankings, targets, k)
    hits = 0
    for ranking, wanted in zip(rankings, targets, strict=True):
        hits += any(image in wanted for image in ranking[:k])
    return hits


def recall_at_k(rankings: Sequence[Ranking], targets: Sequence[Collection[str]], k: int) -> float:
    """Return R@k = 100 / Q * sum_q [r_q[:k] meets T_q].

    Example:
        >>> recall_at_k([["a", "b"], ["c", "d"]], [{"b"}, {"x"}], k=2)
        50.0
    """
    return 100 * hits_at_k(rankings, targets, k) / len(rankings)  # percent


def subset_recall_at_k(
    rankings: Sequence[Ranking],
    targets: Sequence[Collection[str]],
    subsets: Sequence[Collection[str]],
    k: int,
) -> float:
    """Return CIRR's Rsub@k: R@k of each ranking restricted to its query's subset.

    Args:
        rankings: Q rankings.
        targets: Q sets of targets.
        subsets: Q sets of images, five in CIRR, without the reference.
        k: how many of the subset's images count.
    """
    return recall_at_k(restrict(rankings, subsets), targets, k)


def soft_recall_at_k(
    rankings: Sequence[Ranking], weights: Sequence[Mapping[str, float]], k: int
) -> float:
    """Return R@k of CIRR's graded labels: 100 / Q * sum_q max(0, max of w_q over r_q[:k]).

    Args:
        rankings: Q rankings.
        weights: Q mappings w_q of image ids to weights; an image without a weight has 0.
        k: how many images of a ranking count.
    """
    _check(rankings, weights, k)
    pairs = zip(rankings, weights, strict=True)
    return 100 * sum(_best_weight(ranking, graded, k) for ranking, graded in pairs) / len(rankings)


def _best_weight(ranking: Ranking, weights: Mapping[str, float], k: int) -> float:
    """Return the largest weight among the first k images, at least 0."""
    # an image without a label has weight 0
    return max([0, *(weights.get(image, 0) for image in ranking[:k])])


def map_at_k(rankings: Sequence[Ranking], targets: Sequence[Collection[str]], k: int) -> float:
    """Return CIRCO's mAP@k = 100 / Q * sum_q AP@k(r_q, T_q)."""
    _check(rankings, targets, k)
    pairs = zip(rankings, targets, strict=True)
    total = sum(average_precision(ranking, wanted, k) for ranking, wanted in pairs)
    return 100 * total / len(rankings)


def average_precision(ranking: Ranking, targets: Collection[str], k: int) -> float:
    """Return AP@k in 0..1: sum over i <= k of [r_i in T] * P@i, divided by min(|T|, k).

    P@i is the share of targets among the first i images.
    """
    if len(set(ranking)) != len(ranking):
        raise ValueError(
            "an image occurs twice in one ranking; average precision would count it twice"
        )
    hits = 0
    total = 0.0
    # places count from 1
    for place, image in enumerate(ranking[:k], 1):
        if image in targets:
            hits += 1
            total += hits / place  # P@place
    return total / min(len(targets), k)  # the best that k images can reach


def restrict(rankings: Sequence[Ranking], allowed: Sequence[Collection[str]]) -> list[list[str]]:
    """Return each ranking without the images that its query does not allow, in the same order."""
    restricted = []
    for ranking, images in zip(rankings, allowed, strict=True):
        # a set makes the lookup constant in time
        keep = set(images)
        restricted.append([image for image in ranking if image in keep])
    return restricted


def _check(rankings: Sequence[Ranking], labels: Sequence[Collection[str]], k: int) -> None:
    """Refuse what has no mean: k below 1, no queries, a query without a target."""
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if not rankings:
        raise ValueError("no queries: a mean over nothing has no value")
    if not all(labels):
        without = [bool(label) for label in labels].index(False)
        raise ValueError(f"query {without} has no target")
