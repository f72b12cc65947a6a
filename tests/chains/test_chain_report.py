"""The page of chains: its numbers, what it shows and how, hostile text, pictures that are not there."""

import re
from dataclasses import replace

import pytest
from hostile_page import EVIL, Page
from PIL import Image

from cir_cot import webpage
from cir_cot.chains.filters import teachers
from cir_cot.chains.report import histogram, kinds, length_sections, page, samples, share_bars
from cir_cot.images import ImageStore
from cir_cot.records import Cot, Record

REASONING = "The shape and the length are kept, the print is gone, the colour becomes plain red, with a belt added."
REPORT = {
    "benchmark": "folder",
    "split": "train",
    "parts": {"chains": {"chains": 12}},
    "notes": ["no leaks checked"],
}


def record(index, **values):
    cot = Cot("A blue dress.", REASONING, f"A red dress with belt {index}.")
    return Record(
        **{"id": str(index), "reference": "a", "text": "is red", "targets": ("b",), "cot": cot}
        | values
    )


def found(**counts):
    rows = [
        {"check": f"chain_{name}", "count": n, "examples": [f"{name} example"] * n}
        for name, n in counts.items()
    ]
    errors = [row for row in rows if row["count"]]
    return REPORT | {"errors": errors, "warnings": [], "filters": rows}


@pytest.fixture
def stores(tmp_path):
    for name in "ab":
        Image.new("RGB", (20, 30), "red").save(tmp_path / f"{name}.png")
    (tmp_path / "c.png").write_bytes(b"not a picture")
    return dict.fromkeys("abc", ImageStore(tmp_path))


def test_the_page_says_what_was_found_and_shows_chains(stores):
    refused = replace(record(10), cot=Cot("A dress.", REASONING, "I'm sorry, a red one."))
    text = page(
        found(blank=0, refusal=1), [*map(record, range(10)), refused, record(11, cot=None)], stores
    )
    seen = Page(text)
    words = " ".join(seen.text)
    assert seen.well_formed
    assert "refusal: 1 (9.1 %)" in words  # of the 11 chains
    assert "blank: 0 (0.0 %)" in words
    assert "Found by refusal: 1 of 1" in words
    assert "Passed every filter: 8 of 10" in words
    assert "no leaks checked" in words
    assert len(seen.all("img")) == 2 * 9
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in seen.all("img"))


def test_pictures_that_cannot_be_shown_are_said_so(stores):
    text = page(found(), [record(0, reference="c", targets=("elsewhere",))], stores)
    assert "no readable picture" in text
    assert "<p>no picture</p>" in text
    assert not Page(text).all("img")


def test_every_text_is_escaped_and_nothing_is_loaded(stores):
    evil = record(
        EVIL,
        text=EVIL,
        source=EVIL,
        cot=Cot(EVIL, EVIL, EVIL),
        teacher={"model": EVIL, "prompts": EVIL},
    )
    report = found(tags=1) | {"notes": [EVIL], "split": EVIL}
    report["errors"][0]["examples"] = [EVIL]
    seen = Page(page(report, [evil, record(1)], stores))
    assert seen.well_formed
    assert not {"script", "a", "link", "iframe"} & {tag for tag, _ in seen.tags}
    assert not [image for image in seen.all("img") if "onerror" in image]
    assert webpage.POLICY in [meta.get("content") for meta in seen.all("meta")]


def test_without_chains_the_page_has_the_findings_alone():
    text = page(REPORT | {"errors": [], "warnings": [], "filters": []}, [record(0, cot=None)], {})
    assert "Nothing was found." in text
    assert "Lengths" not in text


def test_lengths_are_shown_by_their_quantiles():
    some = [record(n, cot=Cot(" ".join(["word"] * n), "a b c", "d")) for n in range(1, 22)]
    table = re.sub(r"<[^>]+>", " ", next(iter(length_sections(some)))).split()
    assert table[table.index("caption") + 1 :][:5] == ["1", "2", "11", "20", "21"]


def test_bars_are_shares_of_the_total():
    page = Page(share_bars([("a", 1), ("b", 3)], 4, "x"))
    assert [bar["width"] for bar in page.all("rect") if bar["class"] == "bar"] == [
        "25.00%",
        "75.00%",
    ]
    assert page.text == ["a: 1 (25.0 %)", "b: 3 (75.0 %)"]


def test_three_chains_of_each_filter_and_eight_that_pass_are_shown():
    refused = [record(n, cot=Cot("A dress.", REASONING, "I'm sorry, a red one.")) for n in range(5)]
    shown = dict(samples([*refused, *map(record, range(5, 20))], 0))
    assert {title: len(drawn) for title, drawn in shown.items()} == {
        "Found by refusal: 3 of 5": 3,
        "Passed every filter: 8 of 15": 8,
    }


@pytest.mark.parametrize(
    "values", [[7], [3, 3, 3], [1, 2], list(range(100)), [0, 1000], [5, 14, 15]]
)
def test_a_histogram_holds_every_value_once(values):
    bars = histogram(values)
    assert sum(count for _, count in bars) == len(values)
    assert len(bars) <= 10
    for name, count in bars:
        low, _, high = name.partition("-")
        assert count == sum(int(low) <= value <= int(high or low) for value in values)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("add a red circle", ["add"]),
        ("remove it", ["remove"]),
        ("make it bigger", ["change", "compare"]),
        ("is blue without sleeves", ["remove", "describe"]),
        ("two dogs under water", ["count"]),
        ("the same flower", ["compare"]),
        ("à pois", ["other"]),
    ],
)
def test_kinds_of_edits(text, expected):
    assert kinds(text) == expected


def test_samples_are_the_same_with_the_same_seed():
    many = [record(index) for index in range(100)]
    assert samples(many, 3) == samples(many, 3)
    assert samples(many, 3) != samples(many, 4)


def test_teachers_are_counted():
    known = {"model": "m", "prompts": "1", "seen_target": True, "key": "x"}
    some = [
        record(0),
        record(1, teacher=known),
        record(2, teacher=known | {"key": "y"}),
        record(3, cot=None),
    ]
    assert teachers(some) == [
        ({"model": "m", "prompts": "1", "seen_target": True}, 2),
        ({"model": None, "prompts": None, "seen_target": None}, 1),
    ]
