"""Changes of labels in sentences: the kind of a column, its templates, and a user's own."""

import json
import random

import pytest
from test_triplets import made, own, write_labels  # noqa: F401  # the fixture

from cir_cot.chains.filters import FILTERS
from cir_cot.data.edit_sentences import (
    TEMPLATES,
    Change,
    Wording,
    column_of,
    read_templates,
    with_article,
)
from cir_cot.errors import InputError
from cir_cot.scripts.data_gen import triplets

PICTURES = [
    {"kind": "shirt", "colour": "blue", "sleeves": "short", "hood": "no", "price": "20", "fabric": "silk"},
    {"kind": "dress", "colour": "red", "sleeves": "long", "hood": "yes", "price": "35.5", "fabric": "cotton"},
    {"kind": "overall", "colour": "green", "sleeves": "elbow", "is_striped": "1", "collar": "white"},
    {"kind": "jeans", "is_striped": "0", "collar": "black", "has_pockets": "yes", "belt": "none", "size": "m"},
    {"has_pockets": "no", "belt": "leather", "size": "xl", "style": "casual", "pattern": "plain"},
    {"style": "formal", "pattern": "dotted", "length": "midi"},
    {"length": "mini"},
]  # fmt: skip


@pytest.fixture(scope="module")
def wording() -> Wording:
    return Wording(PICTURES)


@pytest.mark.parametrize(
    ("column", "old", "new", "first"),
    [
        ("colour", "blue", "red", "in red"),
        ("kind", "shirt", "overall", "an overall instead of a shirt"),
        ("kind", "shirt", "jeans", "jeans instead of a shirt"),
        ("hood", "no", "yes", "with a hood"),
        ("hood", "yes", "no", "without a hood"),
        ("has_pockets", "no", "yes", "with pockets"),
        ("is_striped", "0", "1", "striped"),
        ("is_striped", "1", "0", "not striped"),
        ("sleeves", "elbow", "long", "with longer sleeves"),
        ("sleeves", "short", "long", "with longer sleeves, long"),
        ("sleeves", "elbow", "short", "with shorter sleeves"),
        ("length", "midi", "mini", "with a shorter length"),
        ("size", "m", "xl", "with a larger size"),
        ("price", "20", "35.5", "with a higher price, 35.5"),
        ("price", "35.5", "20", "with a lower price, 20"),
        ("fabric", "silk", "cotton", "made of cotton"),
        ("collar", "white", "black", "with a black collar"),
        ("belt", "leather", "none", "without a belt"),
        ("belt", "none", "leather", "with a leather belt"),
        ("style", "casual", "formal", "with a formal style"),
        ("pattern", "plain", "dotted", "with a dotted pattern"),
    ],
)
def test_each_kind_of_column_has_its_own_sentences(wording, column, old, new, first):
    said = wording.sentences([Change(column, old, new)], 9, random.Random(0))
    assert first in said
    assert len(said) == len(set(said)) >= 2
    assert all("{" not in text and "  " not in text for text in said)
    (one,) = wording.sentences([Change(column, old, new)], 1, random.Random(0))
    assert one in said


def test_every_template_is_filled(wording):
    used = set()
    for pictures in zip(PICTURES, PICTURES[1:] + PICTURES[:1], strict=True):
        for column in pictures[0].keys() & pictures[1].keys():
            used.add(wording._template(Change(column, pictures[0][column], pictures[1][column]))[0])
    assert used <= set(TEMPLATES)


def test_two_changes_are_joined_in_either_order(wording):
    changes = [Change("colour", "blue", "red"), Change("hood", "no", "yes")]
    said = wording.sentences(changes, 9, random.Random(0))
    assert sorted(said) == ["in red and with a hood", "with a hood and in red"]


def test_kinds_follow_from_names_and_values():
    assert column_of("sleeves", ("short", "long")).values == ("short", "long")
    assert column_of("sleeves", ("long", "short")).values == ("short", "long")
    assert column_of("sleeves", ("short",)).kind == "label"
    assert column_of("x", ("nan", "1")).kind == "label"
    assert column_of("ground", ("red", "blue")).kind == "part"
    assert column_of("Color", ("reddish", "blue")).kind == "colour"


def test_articles():
    words = {
        "hood": "a hood",
        "apron": "an apron",
        "jeans": "jeans",
        "dress": "a dress",
        "round neck": "a round neck",
    }
    assert {word: with_article(word) for word in words} == words


# ---- the command


def test_sentences_differ_within_a_pair_and_a_seed_repeats_them(own):  # noqa: F811
    train, _ = made(own, "--val", "0", "--edits", "2", "--texts", "3", "--chains")
    pairs: dict = {}
    for record in train:
        pairs.setdefault((record.reference, record.targets), []).append(record.text)
    assert all(len(texts) == len(set(texts)) for texts in pairs.values())
    assert max(map(len, pairs.values())) == 3
    assert len({record.id for record in train}) == len(train)
    assert made(own, "--val", "0", "--edits", "2", "--texts", "3", "--chains")[0] == train
    # Chains of such queries pass the filters.
    assert [one.name for record in train for one in FILTERS if one.problem(record)] == []
    assert all("instead of" in r.cot.reasoning for r in train)


def test_own_templates_replace_those_of_their_columns(own):  # noqa: F811
    file = own / "mine.json"
    file.write_text(json.dumps({"bar": ["{new} {name}, please"], "ground": {"red": ["on red"]}}))
    write_labels(
        own / "few.csv",
        [("red-red", "red", "red"), ("red-blue", "red", "blue"), ("blue-red", "blue", "red")],
    )
    train, _ = made(own, "--val", "0", "--templates", str(file), labels="few.csv")
    texts = {(record.reference, record.targets[0]): record.text for record in train}
    assert texts["red-red", "red-blue"] == "blue bar, please"
    assert texts["blue-red", "red-red"] == "on red"
    # A value without own sentences keeps the others.
    assert "blue" in texts["red-red", "blue-red"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "must map columns to sentences"),
        ({"no": ["x"]}, "'no' is no column; they are ground, bar"),
        ({"bar": "in {new}"}, "bar: give a list of sentences"),
        ({"bar": []}, "bar: give a list of sentences"),
        ({"bar": [""]}, "bar: '' is no sentence"),
        ({"bar": {"red": [7]}}, "bar: red: 7 is no sentence"),
        ({"bar": ["in {colour}"]}, "{colour} is none of {name}, {new} and {old}"),
        ({"bar": ["in {new.__class__}"]}, "is none of"),
        ({"bar": ["in {new!r}"]}, "is none of"),
        ({"bar": ["in {new"]}, "bar: 'in {new'"),
    ],
)
def test_bad_templates_are_named(tmp_path, content, said):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        read_templates(file, ["ground", "bar"])
    assert said in str(caught.value)


def test_options_that_contradict_each_other_are_refused(own):  # noqa: F811
    with pytest.raises(InputError, match="--wording plain has one sentence"):
        triplets.main(["--root", str(own), "--labels", "x", "--wording", "plain", "--texts", "2"])
