"""Edits of chains and pictures: closed forms on a retriever that follows its conclusion and nothing else."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_retriever import Toy, chain, point, write_folder

from cir_cot.data import load_benchmark
from cir_cot.data.scenes import PALETTES, random_scene, scene_of, scene_text
from cir_cot.errors import InputError
from cir_cot.evaluation.arrivals import arrivals
from cir_cot.evaluation.counterfactuals import (
    EDITS,
    Asked,
    Counterfactual,
    _placed,
    composition,
    examples,
    measure_edit,
    read_chains,
    reorder,
    swap_attribute,
)
from cir_cot.evaluation.intervals import bootstrap, sign_test
from cir_cot.prompts import cot_to_text
from cir_cot.records import Cot, Record
from cir_cot.retriever import QueryOutput

SHADES = (0, 20, 40, 60, 80, 100, 120)


@pytest.fixture
def asked(tmp_path):
    """Three queries: 20 + 40, 0 + 20 and 40 + 60, all found with their own chains."""
    records = [
        Record("a", "s020", "40", ("s060",)),
        Record("b", "s000", "20", ("s020",)),
        Record("c", "s040", "60", ("s100",)),
    ]
    write_folder(tmp_path, records, SHADES)
    (benchmark,) = load_benchmark("folder", tmp_path, "val")
    chains = [chain(20, "40"), chain(0, "20"), chain(40, "60")]
    vectors = torch.tensor([point(60), point(20), point(100)])
    gallery = torch.tensor([point(shade) for shade in SHADES])
    return Asked(benchmark, chains, vectors, gallery)


def edit_named(name):
    return next(edit for edit in EDITS if edit.name == name)


def test_what_follows_the_conclusion_moves_with_it_and_with_nothing_else(asked):
    towards = Counterfactual(
        "to 80", "move", lambda own, other, rng: replace(own, conclusion="shade 80")
    )
    row = measure_edit(Toy(), asked, towards, 2, 0)
    assert (row["queries"], row["moved"], row["found_before"], row["found_after"]) == (
        3,
        100,
        100,
        0,
    )
    assert row["moved_interval"] == [100, 100]
    wanted = (torch.tensor(point(80)) * asked.vectors).sum(dim=1).mean().item()
    assert row["cosine"] == pytest.approx(wanted, abs=1e-4)
    # 60 is beside 80, 20 and 100 are further: ranks 2 or 3, 4 and 2 or 3; ties count against the target.
    assert row["rank_after"] == 3
    for name in (
        "picture grey, chain kept",
        "another query's picture, chain kept",
        "another query's caption",
    ):
        row = measure_edit(Toy(), asked, edit_named(name), 2, 0)
        assert (row["moved"], row["cosine"], row["found_after"]) == (0, pytest.approx(1), 100)
    lent = measure_edit(Toy(), asked, edit_named("another query's conclusion"), 2, 0)
    assert (lent["moved"], lent["found_after"]) == (100, 0)
    none = measure_edit(Toy(), asked, edit_named("one attribute of the conclusion swapped"), 2, 0)
    assert none["queries"] == 0
    assert examples(Toy(), asked, 3, 2, 0) == []


def test_ties_count_against_the_target(asked):
    flat = replace(asked, gallery=torch.ones(len(SHADES), 2))
    # All pictures but the reference, which is no answer, come before the target.
    assert _placed(flat, 0, torch.ones(2))[1] == len(SHADES) - 1


def test_edits_need_two_valid_chains():
    records = [Record(name, "r", "t", ("t",)) for name in "abc"]
    valid = cot_to_text(Cot("a", "b", "c"))
    chosen, chains = read_chains(records, {"a": valid, "b": "<caption>cut", "c": valid})
    assert [record.id for record in chosen] == ["a", "c"]
    assert chains == [Cot("a", "b", "c")] * 2
    with pytest.raises(InputError, match="1 of 3 chains"):
        read_chains(records, {"a": "", "b": "<caption>cut", "c": valid})


class Redness:
    """Follows the share of red, and nothing else: that of a picture, or whether a conclusion says it."""

    dim = 2

    def encode_target(self, images):
        shares = []
        for image in images:
            pixels = torch.tensor(np.array(image.convert("RGB"))).reshape(-1, 3)
            reddish = (pixels[:, 0] > 150) & (pixels[:, 1] < 100) & (pixels[:, 2] < 100)
            shares.append(float(reddish.any()))
        return torch.tensor([[share, 1 - share] for share in shares])

    def embed_with(self, images, texts, chains):
        red = [float("red" in chain.conclusion) for chain in chains]
        vectors = torch.tensor([[share, 1 - share] for share in red])
        return QueryOutput(vectors, [""] * len(chains), [""] * len(chains))


@pytest.mark.parametrize("remove", [False, True])
def test_a_picture_of_the_swapped_attribute_is_found_by_what_follows_its_conclusion(asked, remove):
    """The gallery scores 0.9; an added picture scores 1 for a query that says red as it shows red."""
    said = "top-left large blue circle"
    chains = [Cot("a", "b", said)] * 3
    gallery = torch.full((len(SHADES), 2), 0.9)
    vectors = torch.tensor([[0.0, 1.0]] * 3)
    benchmark = replace(asked.benchmark, remove_reference=remove)
    scenes = Asked(benchmark, chains, vectors, gallery)
    reds = 0
    for seed in range(8):
        swaps = random.Random(seed)
        swapped = [swap_attribute(one, one, swaps).conclusion for one in chains]
        drawn = [text for text in swapped if scene_of(text)]  # no scene has a white object
        row = arrivals(Redness(), scenes, 2, seed)
        # An added picture beats 0.9 where query and picture agree; the chain as it was says no red.
        unchanged = 100 * sum("red" not in text for text in drawn) / len(drawn)
        assert (row["queries"], row["arrived"]) == (len(drawn), 100)
        assert row["without_edit"] == pytest.approx(unchanged, abs=0.01)
        reds += len(drawn) - sum("red" not in text for text in drawn)
    assert reds  # else the control would be untested
    # Nothing is better than a gallery that scores 1, and a text that is no scene has no picture.
    full = replace(scenes, gallery=torch.ones(len(SHADES), 2))
    assert arrivals(Redness(), full, 2, 0)["arrived"] == 0
    none = replace(scenes, chains=[Cot("a", "b", "a red dress")] * 3)
    assert arrivals(Redness(), none, 2, 0) == {"queries": 0}


def test_one_attribute_is_swapped_for_one_of_its_kind():
    own = Cot("a", "b", "A Red dress, short sleeves")
    seen = {swap_attribute(own, own, random.Random(seed)).conclusion for seed in range(60)}
    assert "A Red dress, long sleeves" in seen
    assert "A blue dress, short sleeves" in seen
    assert own.conclusion not in seen
    assert "A red dress, short sleeves" not in seen
    assert all(("dress" in text) and ("sleeves" in text) for text in seen)
    assert swap_attribute(Cot("red", "red", "nothing of the kind"), own, random.Random(0)) is None
    assert reorder(own, own, random.Random(0)).conclusion == "short sleeves, A Red dress"
    assert reorder(Cot("a", "b", "one clause"), own, random.Random(0)) is None


def test_a_scene_is_read_back_from_its_text():
    for seed in range(30):
        scene = random_scene(random.Random(seed), PALETTES["all"])
        assert scene_of(scene_text(scene)) == scene
    twice = "top-left large red circle, top-left small blue circle"
    for text in ("", "a red dress", "top-left large red", "top-left huge red circle", twice):
        assert scene_of(text) is None


def test_the_composition_gap():
    found = {
        "full": [True, True, True, False],
        "image_only": [True, False, False, False],
        "text_only": [False, False, True, True],
    }
    assert composition(found) == {
        "full": 75, "image_only": 25, "text_only": 50, "either": 75, "composed": 25,
    }  # fmt: skip


def test_intervals_and_the_sign_test():
    assert bootstrap([4.0] * 9) == [4, 4]
    values = [100.0] * 50 + [0.0] * 50
    low, high = bootstrap(values)
    # The normal interval of a share of 50 % of 100 is 50 +- 9.8.
    assert low == pytest.approx(40.2, abs=1.5)
    assert high == pytest.approx(59.8, abs=1.5)
    mixed = [float(value) for value in range(100)]
    assert bootstrap(mixed, seed=1) == bootstrap(mixed, seed=1)
    assert bootstrap(mixed, seed=1) != bootstrap(mixed, seed=2)
    assert sign_test(5, 0) == pytest.approx(2 / 32)
    assert sign_test(7, 3) == pytest.approx(2 * (1 + 10 + 45 + 120) / 1024)
    assert sign_test(4, 4) == 1
    assert sign_test(0, 0) == 1
