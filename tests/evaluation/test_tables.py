"""The load tables of heads that choose among parts; the other tables are tested with the report."""

from dataclasses import replace

import pytest
import torch
from toy_retriever import Plain, query, write_folder

from cir_cot.data import load_benchmark
from cir_cot.evaluation.evaluate import evaluate
from cir_cot.evaluation.report import write_report
from cir_cot.evaluation.tables import bar, evenness, label, leading, routing_tables
from cir_cot.retriever import QueryOutput, concatenate_outputs

SHADES = list(range(0, 256, 8))


class Router(Plain):
    """Sends queries that add to part a (all of it), and those that subtract to b and c; never to d|."""

    def encode_query(self, images, texts):
        shares = [
            {"a": 1.0, "b": 0.0, "c": 0.0, "d|": 0.0}
            if int(t) > 0
            else {"a": 0.0, "b": 0.75, "c": 0.25, "d|": 0.0}
            for t in texts
        ]
        return QueryOutput(
            super().encode_query(images, texts).embeddings, ["a" for _ in texts], [], shares
        )


@pytest.fixture
def result(tmp_path):
    rows = [
        query(i, SHADES[9 + i], 8 if i < 9 else -8, SHADES[10 + i if i < 9 else 8 + i])
        for i in range(12)
    ]
    (benchmark,) = load_benchmark("folder", write_folder(tmp_path / "data", rows, SHADES), "val")
    return evaluate(Router(), benchmark, benchmark.images(), batch_size=5)


def test_loads_are_mean_shares_in_all_and_by_source(result):
    (table,) = routing_tables([result])
    assert table.header == ["part", "", "all", "toy/up", "toy/down"]
    *parts, entropy = table.rows
    assert [row[0] for row in parts] == ["a", "b", "c", "d|"]
    assert [row[2:] for row in parts] == [[75, 100, 0], [18.75, 0, 75], [6.25, 0, 25], [0, 0, 0]]
    assert [len(row[1]) for row in parts] == [38, 10, 4, 0]
    assert entropy[0] == "entropy"
    assert entropy[2:] == pytest.approx(
        [50.705, 0, 40.564], abs=1e-3
    )  # of four parts, ln 4 = 1.386 would be 100


def test_the_first_reading_of_a_set_leads_and_the_oracle_is_called_an_upper_bound(result):
    other = replace(result, protocol=result.protocol | {"reading": "oracle"})
    first = replace(result, protocol=result.protocol | {"reading": "image_only"})
    assert leading([first, other]) == [first]
    assert leading([other, first]) == [other]
    assert [label(one) for one in (result, first, other)] == [
        "own",
        "image only",
        "oracle (upper bound)",
    ]


def test_entropy_is_0_for_one_part_of_several_and_100_when_all_are_even():
    assert [evenness(loads) for loads in ([100, 0, 0], [25] * 4, [100])] == pytest.approx(
        [0, 100, 100]
    )


def test_the_report_shows_loads_and_what_a_query_was_read_with(result, tmp_path):
    write_report(tmp_path, [result, result])
    text = (tmp_path / "report.md").read_text()
    assert text.count("## Load by source, folder.val") == 1  # of the leading reading alone
    assert "| d\\| |  | 0.00 | 0.00 | 0.00 |" in text
    assert "- read with: a" in text


def test_a_head_that_chooses_nothing_has_no_such_table(tmp_path):
    rows = [query(i, SHADES[i], 8, SHADES[i + 1]) for i in range(4)]
    (benchmark,) = load_benchmark("folder", write_folder(tmp_path / "data", rows, SHADES), "val")
    plain = evaluate(Plain(), benchmark, benchmark.images())
    assert plain.routing == {}
    assert list(routing_tables([plain])) == []


def test_a_bar_has_a_letter_for_each_begun_two_percent():
    assert [len(bar(percent)) for percent in (0, 0.01, 2, 2.1, 100)] == [0, 1, 1, 2, 50]


def test_outputs_of_batches_are_joined_in_order():
    parts = [
        QueryOutput(torch.eye(3)[:2], ["x", "y"], ["", "f"], [{"a": 1.0}] * 2),
        QueryOutput(torch.eye(3)[2:], ["z"], [], [{"a": 0.0}]),
    ]
    whole = concatenate_outputs(parts)
    assert torch.equal(whole.embeddings, torch.eye(3))
    assert whole.explanations == ["x", "y", "z"]
    assert whole.flags == ["", "f", ""]
    assert [choice["a"] for choice in whole.routing] == [1, 1, 0]
    assert concatenate_outputs([], 7).embeddings.shape == (0, 7)
