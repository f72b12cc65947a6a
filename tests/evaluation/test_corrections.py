"""Corrected and spoiled chains: the counts agree with made results, and a follower of chains follows planted words."""

import random

import pytest
import torch
from PIL import Image

from cir_cot.data.benchmark import Benchmark
from cir_cot.data.scene_chains import plant
from cir_cot.data.scene_files import make_split
from cir_cot.data.scenes import scene_text
from cir_cot.evaluation.corrections import begun_after, follow_planted_words, repairs
from cir_cot.evaluation.results import Result
from cir_cot.prompts import cot_to_text, text_to_cot
from cir_cot.retriever import QueryOutput


class Pictures:
    """Every picture is grey."""

    def load(self, name):
        return Image.new("RGB", (4, 4))


@pytest.fixture(scope="module")
def split():
    return make_split(0, "iid", 30, 10)


def result(records, gallery, firsts, chains) -> Result:
    benchmark = Benchmark("folder", "iid", None, records, gallery, (1,), True, {}, images=Pictures)
    names = [record.id for record in records]
    return Result(
        benchmark=benchmark,
        images=Pictures(),
        metrics={},
        by_source={},
        protocol={"reading": "full"},
        rankings={name: [first] for name, first in zip(names, firsts, strict=True)},
        scores={name: [1.0] for name in names},
        explanations=dict(zip(names, chains, strict=True)),
        flags=dict.fromkeys(names, ""),
    )


def test_misses_with_wrong_chains_that_the_true_chain_finds_are_counted(split):
    records = split.records[:4]
    gallery = list(split.gallery)
    true = [cot_to_text(record.cot) for record in records]
    right = [record.targets[0] for record in records]
    wrong = [record.reference for record in records]
    # The first is found; of the three misses the last two have wrong chains.
    chains = [true[0], true[1], true[3], "no chain"]
    full = result(records, gallery, [right[0], *wrong[1:]], chains)
    oracle = result(records, gallery, [right[0], right[1], right[2], wrong[3]], true)
    assert repairs(full, oracle) == {
        "missed": 3,
        "repaired": 66.67,
        "wrong_chain": 2,
        "repaired_wrong_chain": 50.0,
    }


@pytest.mark.parametrize("follows", [True, False])
def test_a_follower_of_its_chain_goes_where_the_planted_word_leads(split, follows):
    """The stand-in embeds a conclusion as the picture that shows it, the follower the planted one."""
    gallery = list(split.gallery)
    texts = [scene_text(scene) for scene in split.gallery.values()]
    vectors = torch.eye(len(gallery))
    asked = []

    def write_on(pictures, words, begun):
        chains = []
        for key in zip(words, begun, strict=True):
            chains.append(expected[key] if follows else true[key])
        rows = []
        for chain in chains:
            conclusion = text_to_cot(chain).conclusion
            at = texts.index(conclusion) if conclusion in texts else None
            rows.append(torch.zeros(len(gallery)) if at is None else vectors[at])
        asked.append(len(begun))
        return QueryOutput(torch.stack(rows), chains, [])

    expected, true = planted_texts(split.records)
    full = result(split.records, gallery, [r.targets[0] for r in split.records], [""] * 300)
    measured = follow_planted_words(write_on, full, vectors, queries=1000)
    assert set(measured) == {"caption", "reasoning", "conclusion"}
    assert [row["queries"] for row in measured.values()] == asked
    for row in measured.values():
        assert row["written"] == (100 if follows else 0)
        assert row["left"] == (100 if follows else 0)
        assert row["arrived"] == (100 if follows and row["shown"] else 0)
    assert measured["reasoning"]["shown"] > 5


def planted_texts(records):
    """The chains that planted words lead to, and the true ones, by the request and what is begun."""
    expected, true = {}, {}
    for section in ("caption", "reasoning", "conclusion"):
        rng = random.Random(0)
        for record in records:
            chain = plant(record, section, rng)
            if chain is not None:
                key = (record.text, begun_after(chain, section))
                expected[key] = cot_to_text(chain)
                true[key] = cot_to_text(record.cot)
    return expected, true
