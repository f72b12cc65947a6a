"""Charts of a report: what is drawn agrees with the metrics, and nothing drawn is markup of a file's."""

import json
import re
from dataclasses import replace

import pytest
from hostile_page import EVIL, Page
from toy_retriever import Toy, query, write_folder

from cir_cot.data import load_benchmark
from cir_cot.evaluation.evaluate import evaluate
from cir_cot.evaluation.plot import Axis, Line, axis, column_chart, line_chart
from cir_cot.evaluation.report import write_report
from cir_cot.evaluation.report_charts import (
    MAX_POINTS,
    first_ranks,
    history_charts,
    rank_charts,
    rank_counts,
    rank_tables,
    recall_curve,
    series,
    training_charts,
)

SHADES = list(range(0, 256, 8))


@pytest.fixture
def results(tmp_path):
    """12 queries in full and fast; the odd ones' targets are not where the toy goes."""
    rows = [
        query(i, SHADES[4 + i], 8, SHADES[5 + i] if i % 2 == 0 else SHADES[20]) for i in range(12)
    ]
    (benchmark,) = load_benchmark("folder", write_folder(tmp_path / "data", rows, SHADES), "val")
    store = benchmark.images()
    return [evaluate(Toy(), benchmark, store, reading=name) for name in ("full", "fast")]


def test_the_curve_passes_through_the_recalls(results):
    for result in results:
        curve = dict(recall_curve(first_ranks(result), 31))
        for name, value in result.metrics.items():
            k = int(name.removeprefix("R@"))
            if k <= 31:
                assert curve[k] == pytest.approx(value, abs=0.01)
        assert sorted(curve.values()) == list(curve.values())


def test_every_query_is_in_one_group_of_ranks():
    ranks = [1, 2, 5, 6, 10, 11, 50, 51, 100, None, None, 1]
    assert rank_counts(ranks) == [
        ("1", 2), ("2–5", 2), ("6–10", 2), ("11–50", 2), ("51–100", 2), ("later", 2)
    ]  # fmt: skip


def test_the_table_of_ranks_has_a_row_for_each_reading(results):
    (table,) = rank_tables(results)
    assert [row[0] for row in table.rows] == ["full", "fast"]
    assert [sum(row[1:-1]) for row in table.rows] == [12, 12]
    assert table.rows[0][1] == 6
    # The middle of 12 queries of which 7 are not ranked.
    lists = dict(results[0].rankings)
    lists |= {name: ["s0"] for name in list(lists)[:7]}
    (table,) = rank_tables([replace(results[0], rankings=lists)])
    assert table.rows[0][-2:] == [7, "later"]


def test_a_set_without_answers_has_no_charts(results):
    unknown = [replace(result, metrics={}) for result in results]
    assert list(rank_charts(unknown)) == []
    assert list(rank_tables(unknown)) == []


def test_lines_end_where_their_values_are():
    across = Axis("k", 1, 100, (1, 10, 100), logarithmic=True)
    drawn = line_chart(
        "t", [Line("a", [(1, 0), (10, 50), (100, 100)])], across, Axis("%", 0, 100, (0, 100))
    )
    # 38 to 342 across, 180 to 22 upwards.
    assert 'd="M38.0 180.0 L190.0 101.0 L342.0 22.0"' in drawn
    assert "<ul>" not in drawn  # a single line needs no legend
    kinds = [
        set(
            re.findall(
                r'class="(line k\d+)"',
                line_chart("t", [Line("a", [(1, 0)])] * n, across, Axis("%", 0, 1, ())),
            )
        )
        for n in (3, 12)
    ]
    assert [len(found) for found in kinds] == [3, 12]


def test_columns_are_as_high_as_their_counts():
    drawn = column_chart("t", [("1", 4), ("later", 2), ("none", 0)], "rank")
    assert re.findall(r"v-([\d.]+)h", drawn) == ["158.0", "79.0", "0.0"]
    assert [f">{count}<" in drawn for count in (4, 2, 0)] == [True] * 3
    assert "v-0.0h" in column_chart("t", [("1", 0), ("2", 0)], "rank")


@pytest.mark.parametrize(
    ("values", "marks"),
    [
        ([0, 100], [0, 20, 40, 60, 80, 100]),
        ([0.03, 0.31], [0.1, 0.2, 0.3]),
        ([-5, 5], [-4, -2, 0, 2, 4]),
    ],
)
def test_marks_are_round_and_inside(values, marks):
    assert axis("a", values).marks == pytest.approx(marks)


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0, 1e-12, 1e14])
def test_a_single_value_has_an_axis(value):
    one = axis("a", [value])
    assert one.low < value < one.high
    assert len(one.marks) >= 1


def test_a_series_leaves_out_what_is_no_number_and_ends_with_the_last_step():
    history = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": "<b>"}, {"step": 3}, {"loss": 1.0},
               {"step": True, "loss": 1}, {"step": 4, "loss": 1.0}, {"step": 5, "loss": 1e400},
               {"step": 4, "loss": 0.5}]  # fmt: skip
    assert series(history, "loss") == [(1.0, 2.0), (4.0, 0.5)]
    many = series([{"step": step, "loss": step} for step in range(1, 1402)], "loss")
    assert len(many) <= MAX_POINTS
    assert many[-1] == (1401.0, 1401.0)


def test_a_trained_model_brings_its_curve(results, tmp_path):
    model = tmp_path / "m<b>"
    model.mkdir()
    history = [
        {"step": step, "loss": 3 / step, f"eval_{EVIL}R@1": 10.0 * step} for step in (1, 2, 3)
    ]
    (model / "metrics.json").write_text(json.dumps({"train_loss": 1.0, "history": history}))
    for result in results:
        result.protocol["model"] = str(model)
    write_report(tmp_path / "out", results)
    html = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.well_formed
    assert not page.all("script")
    labels = [svg["aria-label"] for svg in page.all("svg") if "aria-label" in svg]
    # One curve for both results of the same model.
    assert labels[1:] == ["Recall, folder.val", "Ranks of the right pictures, folder.val · full",
                          "Training loss, m<b>", "Recall during training, m<b>"]  # fmt: skip
    assert "| full | 6 |" in (tmp_path / "out/report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "content", ["[1]", "{", '{"history": 3}', '{"history": [1, {"loss": 2, "step": 1}]}']
)
def test_a_history_that_cannot_be_drawn_costs_nothing(results, tmp_path, content):
    (tmp_path / "metrics.json").write_text(content)
    results[0].protocol["model"] = str(tmp_path)
    assert list(training_charts(results)) == []


def test_a_result_without_a_model_takes_no_curve_of_the_working_folder(
    results, tmp_path, monkeypatch
):
    history = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}]
    (tmp_path / "metrics.json").write_text(json.dumps({"history": history}))
    monkeypatch.chdir(tmp_path)
    assert not results[0].protocol["model"]
    assert list(training_charts(results)) == []
    results[0].protocol["model"] = "."
    assert len(list(training_charts(results))) == 1


def test_a_hostile_name_stays_text():
    history = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}]
    (drawn,) = history_charts(EVIL, history)
    page = Page(drawn)
    assert page.well_formed
    assert {tag for tag, _ in page.tags} == {"figure", "figcaption", "svg", "path", "text"}
