"""Agreement of raters: published examples, and what cannot be said."""

import pytest

from cir_cot.review.agreement import cohen_kappa, krippendorff_alpha

# Cohen 1960, table 1, as counts of 100.
COHEN = {
    (0, 0): 44,
    (0, 1): 5,
    (0, 2): 1,
    (1, 0): 7,
    (1, 1): 20,
    (1, 2): 3,
    (2, 0): 9,
    (2, 1): 5,
    (2, 2): 6,
}
# Krippendorff 2011, example C: four observers, twelve units, gaps.
OBSERVERS = ("1233214 12___", "123322412 5_3", "_33323422 51_", "123324412 51_")


def test_cohens_own_example():
    pairs = [pair for pair, count in COHEN.items() for _ in range(count)]
    assert cohen_kappa(pairs) == pytest.approx(0.492, abs=5e-4)
    assert cohen_kappa([(first, first) for first, _ in pairs]) == 1
    assert cohen_kappa([("a", "b"), ("b", "a")]) == -1
    assert cohen_kappa([]) is None
    assert cohen_kappa([("a", "a")] * 3) is None


def test_krippendorffs_own_example():
    rows = [row.replace(" ", "") for row in OBSERVERS]
    units = [[value for value in unit if value != "_"] for unit in zip(*rows, strict=True)]
    assert len(units) == 12
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha([["a", "a"], ["b", "b"]]) == 1
    assert krippendorff_alpha([["a"], ["b"]]) is None
    assert krippendorff_alpha([["a", "a"]] * 3) is None
