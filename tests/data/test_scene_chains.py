"""Planted words: what a changed chain leads to agrees with the drawn scenes, and one word changes one scene."""

import random

import pytest

from cir_cot.data.scene_chains import conclusion_of, plant
from cir_cot.data.scene_files import make_split


@pytest.fixture(scope="module")
def records():
    return make_split(0, "iid", 30, 10).records


def test_a_true_chain_leads_to_its_own_conclusion(records):
    assert {record.source.rpartition("/")[2] for record in records} == {
        "add",
        "remove",
        "colour",
        "size",
    }
    for record in records:
        assert conclusion_of(record.cot.caption, record.cot.reasoning) == record.cot.conclusion


@pytest.mark.parametrize("section", ["caption", "reasoning", "conclusion"])
def test_a_planted_word_leads_to_another_conclusion(records, section):
    rng = random.Random(0)
    planted = 0
    for record in records:
        chain = plant(record, section, rng)
        if chain is None:
            # Without an object that the edit leaves alone there is no place for the word.
            assert section != "conclusion"
            continue
        planted += 1
        assert chain.conclusion not in ("", record.cot.conclusion)
        before = ("caption", "reasoning", "conclusion")
        for name in before[: before.index(section)]:
            assert getattr(chain, name) == getattr(record.cot, name)
        assert getattr(chain, section) != getattr(record.cot, section)
        if section != "conclusion":
            assert conclusion_of(chain.caption, chain.reasoning) == chain.conclusion
    assert planted > 100


def test_a_planted_verdict_does_to_its_object_what_the_edit_does(records):
    planted = 0
    for record in records:
        chain = plant(record, "reasoning", random.Random(0))
        if chain is None or not record.source.endswith("remove"):
            continue
        planted += 1
        before = record.cot
        assert chain.reasoning.count(": yes remove") == before.reasoning.count(": yes remove") + 1
        kept = chain.conclusion.split(", ")
        assert len(set(before.conclusion.split(", ")) - set(kept)) == 1
    assert planted > 10
