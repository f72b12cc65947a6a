"""Metrics in closed form, and their pitfalls."""

import pytest

from cir_cot.data.metrics import (
    average_precision,
    hits_at_k,
    map_at_k,
    recall_at_k,
    restrict,
    soft_recall_at_k,
    subset_recall_at_k,
)

RANKINGS = [list("abcdef"), list("fedcba"), list("abc")]
TARGETS = [("a",), ("b", "d"), ("x",)]


@pytest.mark.parametrize(("k", "hits"), [(1, 1), (2, 1), (3, 2), (6, 2), (99, 2)])
def test_recall_counts_queries_with_any_target(k, hits):
    assert hits_at_k(RANKINGS, TARGETS, k) == hits
    assert recall_at_k(RANKINGS, TARGETS, k) == pytest.approx(100 * hits / 3)


def test_subset_recall_ranks_the_subset_alone():
    subsets = [("a", "f"), ("b", "e"), ("x", "c")]
    assert restrict(RANKINGS, subsets) == [["a", "f"], ["e", "b"], ["c"]]
    assert subset_recall_at_k(RANKINGS, TARGETS, subsets, 1) == pytest.approx(100 / 3)
    assert subset_recall_at_k(RANKINGS, TARGETS, subsets, 2) == pytest.approx(200 / 3)


def test_soft_recall_takes_the_best_weight_and_never_less_than_nothing():
    weights = [{"b": 0.5, "c": 1.0}, {"f": -1.0}, {"a": -1.0, "b": 0.2}]
    assert soft_recall_at_k(RANKINGS, weights, 1) == 0
    assert soft_recall_at_k(RANKINGS, weights, 2) == pytest.approx(100 * 0.7 / 3)
    assert soft_recall_at_k(RANKINGS, weights, 3) == pytest.approx(100 * 1.2 / 3)


@pytest.mark.parametrize(
    ("ranking", "targets", "k", "value"),
    [
        ("abcd", "a", 5, 1),
        ("abcd", "b", 5, 1 / 2),
        ("abcd", "b", 1, 0),
        ("abcd", "bd", 5, (1 / 2 + 2 / 4) / 2),
        ("abcd", "bdx", 5, (1 / 2 + 2 / 4) / 3),
        ("abcd", "abcd", 2, 1),  # divided by k, not by the 4 targets
        ("abcd", "bcde", 2, (1 / 2) / 2),
        ("", "a", 5, 0),
    ],
)
def test_average_precision(ranking, targets, k, value):
    assert average_precision(list(ranking), set(targets), k) == pytest.approx(value)
    assert map_at_k([list(ranking)] * 3, [set(targets)] * 3, k) == pytest.approx(100 * value)


def test_an_image_twice_would_count_twice_and_is_refused():
    with pytest.raises(ValueError, match="twice"):
        average_precision(["a", "a"], {"a"}, 5)


@pytest.mark.parametrize("metric", [recall_at_k, soft_recall_at_k, map_at_k])
def test_what_has_no_value_is_refused(metric):
    labels = {"a": 1.0}
    with pytest.raises(ValueError, match="at least 1"):
        metric([["a"]], [labels], 0)
    with pytest.raises(ValueError, match="no queries"):
        metric([], [], 1)
    with pytest.raises(ValueError, match="query 1 has no target"):
        metric([["a"], ["a"]], [labels, {}], 1)
    with pytest.raises(ValueError, match="zip"):
        metric([["a"], ["a"]], [labels], 1)
