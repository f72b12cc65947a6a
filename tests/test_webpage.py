"""Pieces of a page: whatever text goes into any field comes out as text, in its place."""

import base64
import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from cir_cot.webpage import (
    FILTERS,
    LARGE,
    POLICY,
    SIDE,
    STYLE,
    bars,
    document,
    filtered,
    scatter,
    table,
    thumbnail,
    zoomable,
)

HOSTILE = """</p></title></style><script>hacked()</script><img src=x onerror="hacked()">' onload='hacked() "&amp;<!--"""


class Reader(HTMLParser):
    """Elements, attributes and text of a page as a browser would see them."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.values, self.text = [], set(), [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attributes}
        self.values += [value for _, value in attributes]

    def handle_data(self, data):
        self.text.append(data)


PIECES = {
    "document": (lambda text: document(text, []), ["text", "text"]),
    "table": (lambda text: table(text, [text, text], [[text, text]], text), ["text"] * 6),
    "bars": (
        lambda text: bars([(text, 50.0, False), (text, 50.0, True)], text),
        ["text", "text", "value"],
    ),
    "scatter": (lambda text: scatter([(text, 1.0, 50.0)], text, text), ["text"] * 3),
    "filtered": (lambda text: filtered("q", [text, text], [("<p>x</p>", [0])]), ["text"] * 2),
    "zoomable": (lambda text: zoomable(Image.new("RGB", (4, 4)), text), ["value"]),
    "thumbnail": (lambda text: thumbnail(Image.new("RGB", (4, 4)), text), ["value"]),
}


@pytest.mark.parametrize("name", PIECES)
def test_a_hostile_text_in_any_field_stays_text(name):
    make, places = PIECES[name]
    harmless, hostile = Reader(make("words")), Reader(make(HOSTILE))
    assert hostile.tags == harmless.tags
    assert hostile.attributes == harmless.attributes
    assert not any(attribute.startswith("on") for attribute in hostile.attributes)
    # each field holds the text whole and unchanged
    assert sum(HOSTILE in text for text in hostile.text) == places.count("text")
    assert sum(value == HOSTILE for value in hostile.values) == places.count("value")


def test_a_page_may_load_and_run_nothing():
    page = Reader(document("t", ["<p>body</p>"]))
    assert POLICY in page.values
    assert POLICY.startswith("default-src 'none'; ")
    assert "script" not in POLICY


def test_bars_are_as_long_as_their_percentages_within_the_chart():
    chart = bars([("a", -5.0, False), ("b", 25.0, True), ("c", 250.0, False)], "shares")
    assert [f'width="{width}%" height="12"' in chart for width in ("0.00", "25.00", "100.00")] == [
        True
    ] * 3
    assert chart.count('class="base"') == 1
    assert 'aria-label="shares"' in chart


def test_a_scatter_puts_costs_on_decades_and_percentages_upside_up():
    chart = scatter([("cheap", 1.0, 0.0), ("dear", 100.0, 100.0)], "cost", "recall")
    assert 'cx="60.0" cy="400.0"' in chart  # least cost, 0 percent: the left foot
    assert 'cx="580.0" cy="10.0"' in chart
    assert 'y="404.0" text-anchor="end">0<' in chart
    assert 'y="14.0" text-anchor="end">100<' in chart
    assert [f">{power}<" in chart for power in ("1", "10", "100")] == [True] * 3


def test_a_thumbnail_keeps_its_shape_and_never_grows():
    for size, small in (((600, 300), (144, 72)), ((10, 20), (10, 20))):
        picture = Image.new("RGB", size)
        html = thumbnail(picture, "x")
        assert picture.size == size  # the caller's own is left as it is
        data = html.partition("base64,")[2].partition('"')[0]
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == small


def test_bars_stay_within_their_track_and_their_labels_are_text():
    drawn = bars([("<b>a", -5.0, False), ("b", 150.0, True), ("c", 33.333, False)], "a <chart>")
    assert re.findall(r'class="(bar|base)"[^>]* width="([^"]*)"', drawn) == [
        ("bar", "0.00%"),
        ("base", "100.00%"),
        ("bar", "33.33%"),
    ]
    assert "&lt;b&gt;a" in drawn
    assert "<b>" not in drawn
    assert 'aria-label="a &lt;chart&gt;"' in drawn


def test_a_thumbnail_is_small_and_holds_its_picture():
    picture = Image.new("RGB", (4 * SIDE, 2 * SIDE), (200, 30, 30))
    data = re.search(r"base64,([^\"]*)", thumbnail(picture, 'a "b"'))[1]
    small = Image.open(io.BytesIO(base64.b64decode(data)))
    assert small.size == (SIDE, SIDE // 2)
    assert all(abs(a - b) < 12 for a, b in zip(small.getpixel((5, 5)), (200, 30, 30), strict=True))
    assert picture.size == (4 * SIDE, 2 * SIDE)


def test_the_grid_of_a_scatter_has_its_hundred_above_its_nothing():
    drawn = scatter([("a", 10.0, 50.0)], "cost", "recall")
    heights = {
        label: float(y) for y, label in re.findall(r'y="([^"]*)" text-anchor="end">(\d+)<', drawn)
    }
    assert sorted(heights, key=heights.get) == ["100", "80", "60", "40", "20", "0"]
    lines = [float(y) for y in re.findall(r'<path d="M60 ([\d.]*)h', drawn)]
    assert lines == sorted(lines, reverse=True)


def test_a_filter_shows_the_items_that_carry_its_class():
    drawn = filtered("q7", ["a", "b"], [("one", [0, 1]), ("two", [1]), ("three", [])])
    found = re.findall(
        r'<input type="radio" name="q7" id="(q7-\d)" class="(f\d)"( checked)?>', drawn
    )
    assert found == [("q7-0", "f0", " checked"), ("q7-1", "f1", ""), ("q7-2", "f2", "")]
    assert re.findall(r'<label for="(q7-\d)">(\w+)<', drawn) == [
        ("q7-0", "all"),
        ("q7-1", "a"),
        ("q7-2", "b"),
    ]
    assert re.findall(r'<article class="([^"]*)">(\w+)<', drawn) == [
        ("f1 f2", "one"),
        ("f2", "two"),
        ("", "three"),
    ]
    # The style has a rule for each filter; "all" hides nothing.
    rules = re.findall(r"> \.f(\d+):checked ~ article:not\(\.f(\d+)\)", STYLE)
    assert rules == [(str(n), str(n)) for n in range(1, FILTERS + 1)]


def test_an_enlarged_picture_is_the_same_file_in_more_detail():
    html = zoomable(Image.new("RGB", (1000, 500)), "x")
    assert html.count("<img ") == 1
    data = html.partition("base64,")[2].partition('"')[0]
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (LARGE, LARGE // 2)
