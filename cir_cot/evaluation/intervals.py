"""Intervals of means over queries, and a test of paired differences."""

import math
from collections.abc import Sequence

import numpy as np

DRAWS = 2_000


def bootstrap(values: Sequence[float], seed: int = 0, level: float = 0.95) -> list[float]:
    """Return the percentile bootstrap interval of a mean, [low, high] (Efron 1979).

    Args:
        values: one a query.
        seed: of the resamples.
        level: of the interval.
    """
    rng = np.random.default_rng(seed)
    numbers = np.asarray(values, dtype=np.float64)
    means = [
        float(rng.choice(numbers, len(numbers)).mean()) for _ in range(DRAWS)
    ]  # one at a time: resamples of 50,000 queries would not fit at once
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return [round(float(low), 2), round(float(high), 2)]


def sign_test(wins: int, losses: int) -> float:
    """Return the two-sided p-value of an exact sign test (McNemar's exact test): are wins and losses alike?"""
    count = wins + losses
    if not count:
        return 1.0
    few = min(wins, losses)
    tail = sum(math.comb(count, number) for number in range(few + 1)) / 2**count
    return min(1.0, 2 * tail)
