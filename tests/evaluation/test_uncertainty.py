"""Intervals of recalls, readings compared on the same queries, and what a report warns of."""

from dataclasses import replace

import pytest
from toy_retriever import Toy, query, write_folder

from cir_cot.data import load_benchmark
from cir_cot.evaluation.evaluate import evaluate
from cir_cot.evaluation.results import results_json
from cir_cot.evaluation.tables import summary_table
from cir_cot.evaluation.uncertainty import doubts, hits_at, interval_table, paired, paired_tables


@pytest.fixture
def results(tmp_path):
    """Full finds every target; fast, which looks for the reference itself, those of the last two queries."""
    records = [query(0, 20, 40, 60), query(1, 40, 40, 80), query(2, 60, 20, 80)]
    records += [replace(query(3, 80, 20, 100), targets=("s060", "s100"))]
    write_folder(tmp_path, records, (20, 40, 60, 80, 100))
    (benchmark,) = load_benchmark("folder", tmp_path, "val")
    images = benchmark.images()
    return {
        name: evaluate(Toy(), benchmark, images, reading=name)
        for name in ("full", "fast", "oracle")
    }


def test_recalls_have_intervals_in_results_and_report(results):
    full, fast = results["full"], results["fast"]
    assert full.metrics["R@1"] == 100
    assert full.intervals["R@1"] == [100, 100]
    share = fast.metrics["R@1"]
    assert 0 < share < 100
    low, high = fast.intervals["R@1"]
    assert low <= share <= high
    assert results_json([full])["intervals"] == full.intervals
    (table,) = interval_table([full, fast])
    assert table.rows[0][1] == "100.0 – 100.0"
    assert not list(interval_table([replace(full, intervals={})]))


def test_readings_are_compared_on_the_same_queries(results):
    full, fast = results["full"], results["fast"]
    one = hits_at(full.benchmark, full.rankings, 1)
    other = hits_at(fast.benchmark, fast.rankings, 1)
    lost = sum(a and not b for a, b in zip(one, other, strict=True))
    found = paired(full, fast)
    assert (found["wins"], found["losses"]) == (0, lost)
    assert paired(fast, full)["wins"] == lost
    (table,) = paired_tables([full, fast])
    assert list(table.rows[0][1:3]) == [0, lost]
    assert not list(paired_tables([full]))


def test_an_oracle_below_full_is_doubted(results):
    full, oracle = results["full"], results["oracle"]
    assert doubts([full, oracle]) == []
    low = replace(oracle, metrics=oracle.metrics | {next(iter(oracle.metrics)): 1.0})
    (said,) = doubts([full, low])
    assert "(1.0) is below" in said
    assert doubts([low]) == []


def test_recall_at_as_many_as_there_are_is_not_told(results):
    header = summary_table([results["full"]]).header
    assert "R@1" in header
    # The gallery has five pictures.
    assert not {"R@5", "R@10", "R@50"} & set(header)
    assert "R@50" in results["full"].metrics
