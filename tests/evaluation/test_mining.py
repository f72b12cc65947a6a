"""Hard negatives: near the target by score, and never what is right or looks the same."""

from dataclasses import replace

import pytest
import torch

from cir_cot.data.benchmark import Benchmark
from cir_cot.data.negative_files import Negatives, read_negatives, write_negatives
from cir_cot.errors import InputError
from cir_cot.evaluation.mining import mine
from cir_cot.records import Record

NAMES = ("ref", "target", "twin", "a", "b", "c", "d")
SCORES = torch.tensor([[0.95, 0.70, 0.70, 0.85, 0.72, 0.60, 0.60]])


def benchmark(record):
    return Benchmark("folder", "train", None, [record], list(NAMES), (1,), False, {}, dict)


def mined(record, count=9, margin=None, content=lambda name: name):
    # The gallery's vectors are the axes, so that the query's numbers are its scores.
    found = mine(benchmark(record), SCORES, torch.eye(7), content, count, margin)
    return found[record.id]


@pytest.fixture
def record():
    return Record("q", "ref", "text", ("target",))


def test_the_highest_scores_come_first_and_ties_in_the_order_of_the_gallery(record):
    found = mined(record)
    assert found.images == ("a", "b", "twin", "c", "d")
    assert found.scores == pytest.approx((0.85, 0.72, 0.70, 0.60, 0.60))
    assert mined(record, count=2).images == ("a", "b")


def test_what_scores_far_above_the_target_is_probably_right(record):
    assert mined(record, margin=0.1).images == ("b", "twin", "c", "d")
    assert mined(record, margin=0.0).images == ("twin", "c", "d")
    # The best of several right answers counts.
    assert mined(replace(record, targets=("target", "a")), margin=0.0).images == (
        "b",
        "twin",
        "c",
        "d",
    )
    # The text was written to tell the target from the pictures of CIRR's set.
    assert mined(replace(record, subset=("a", "target")), margin=0.1).images[0] == "a"


def test_a_planted_false_negative_never_appears(record):
    same = {"twin": "target", "c": "ref", "d": "b"}
    found = mined(record, content=lambda name: same.get(name, name))
    assert found.images == ("a", "b")


def test_files_are_read_as_they_were_written_and_damage_is_named(tmp_path):
    path = tmp_path / "mined.jsonl"
    write_negatives(
        path, {"q": Negatives(("a", "b"), (0.5, 0.25)), "r": Negatives((), ())}, {"margin": 0.1}
    )
    assert read_negatives(path) == {"q": ("a", "b"), "r": ()}
    assert (tmp_path / "mined.json").read_text().strip().startswith("{")
    for line, words in (
        ("[]", "a JSON object"),
        ('{"id": "q"}', "negatives"),
        ('{"id": "q", "negatives": [1]}', "a list of image ids"),
        ('{"id": 3, "negatives": []}', "a text"),
        ('{"id": "q", "negatives": "ab"}', "a list of image ids"),
    ):
        path.write_text(line + "\n")
        with pytest.raises(InputError, match=words):
            read_negatives(path)
    path.write_text('{"id": "q", "negatives": []}\n' * 2)
    with pytest.raises(InputError, match="there twice"):
        read_negatives(path)
