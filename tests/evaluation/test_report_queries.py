"""Queries of a report: the groups they are in, which are drawn, and the words that differ."""

from collections import Counter
from dataclasses import replace

import pytest
from hostile_page import EVIL, Page
from toy_retriever import Toy, query, write_folder

from cir_cot.data import load_benchmark
from cir_cot.evaluation.evaluate import evaluate
from cir_cot.evaluation.report import write_report
from cir_cot.evaluation.report_queries import marked, queries_section
from cir_cot.evaluation.samples import (
    MAX_WORDS,
    different_words,
    groups,
    other_readings,
    sample,
)
from cir_cot.evaluation.uncertainty import paired

SHADES = list(range(0, 256, 8))


@pytest.fixture
def benchmark(tmp_path):
    """12 queries: the odd ones' targets are not where the toy goes."""
    rows = []
    for i in range(12):
        target = SHADES[5 + i] if i % 2 == 0 else SHADES[20]
        rows.append(query(i, SHADES[4 + i], 8, target))
    (found,) = load_benchmark("folder", write_folder(tmp_path / "data", rows, SHADES), "val")
    return found


def read(benchmark, *readings, retriever=None):
    store = benchmark.images()
    return [evaluate(retriever or Toy(), benchmark, store, reading=name) for name in readings]


def with_answer(result, names, right):
    """Let some queries find their target first, or not at all."""
    lists = dict(result.rankings)
    for record in result.benchmark.records:
        if record.id in names:
            others = [name for name in lists[record.id] if name not in record.targets]
            lists[record.id] = [*record.targets, *others] if right else others
    return replace(result, rankings=lists)


def test_groups_tell_what_another_reading_found_or_lost(benchmark):
    full, fast, oracle = read(benchmark, "full", "fast", "oracle")
    records = benchmark.records
    odd = {records[1].id, records[3].id}
    fast = with_answer(with_answer(fast, odd, True), {records[0].id}, False)
    oracle = with_answer(oracle, {records[2].id}, False)
    others = other_readings(full, [full, fast, oracle])
    assert set(others) == {"fast", "oracle"}
    found = [set(groups(full, record, others)) for record in records]
    assert found[1] == {"missed", "missed, found by fast", "missed, chain as annotated"}
    assert "found first, missed by fast" in found[0]
    assert "found first, missed with the annotated chain" in found[2]
    assert not any("missed, found with the annotated chain" in names for names in found)
    # Another set of the same reading tells nothing.
    elsewhere = replace(fast, benchmark=replace(benchmark, split="test"))
    assert other_readings(full, [full, elsewhere]) == {}


def test_groups_tell_what_is_wrong_with_a_chain(benchmark):
    changed = [replace(r, cot=replace(r.cot, caption="other")) for r in benchmark.records]
    (full,) = read(replace(benchmark, records=changed), "full")
    assert groups(full, changed[0], {}) == ["found first", "chain not as annotated"]
    (full,) = read(benchmark, "full", retriever=Toy(forgets=("8",)))
    assert groups(full, benchmark.records[1], {}) == ["missed", "no valid chain"]
    bare = [replace(r, cot=None) for r in benchmark.records]
    (full,) = read(replace(benchmark, records=bare), "full")
    assert groups(full, bare[1], {}) == ["missed"]
    (fast,) = read(benchmark, "fast")
    assert groups(fast, benchmark.records[1], {}) == ["missed"]
    (full,) = read(benchmark, "full")
    unknown = replace(benchmark.records[1], targets=())
    assert groups(full, unknown, {"fast": fast}) == ["without a published answer"]


def test_half_as_many_of_every_other_group_are_drawn(benchmark):
    full, fast = read(benchmark, "full", "fast")
    # One query that the seed does not draw among two failures.
    drawn = {record.id for record in sample(full, 2, 0)}
    last = next(r for r in benchmark.records if r.id not in drawn and int(r.id) % 2)
    fast = with_answer(fast, {last.id}, True)
    more = sample(full, 2, 0, [full, fast])
    assert drawn < {record.id for record in more}
    assert last in more
    counts = Counter()
    for record in more:
        counts.update(groups(full, record, {"fast": fast}))
    assert counts["missed, found by fast"] == 1
    # Failures come first, each kind in official order.
    places = [(int(record.id) % 2 == 0, int(record.id)) for record in more]
    assert places == sorted(places)


def test_filters_count_what_is_shown_of_all(benchmark):
    results = read(benchmark, "full", "fast")
    records = sample(results[0], 2, 0, results)
    page = Page(queries_section(results[0], records, results, "q0"))
    assert page.well_formed
    assert len(page.all("article")) == len(records)
    assert "missed (2 of 6)" in page.text
    # What the paired test counts as lost by fast.
    lost = paired(*results)["losses"]
    assert lost > 0
    assert any(f"found first, missed by fast (1 of {lost})" in text for text in page.text)
    # Each article carries the class of its outcome's filter.
    labels = [text for text in page.text if " of " in text and "(" in text]
    missed = labels.index("missed (2 of 6)") + 1
    assert sum(f"f{missed}" in one["class"].split() for one in page.all("article")) == 2


def test_words_that_the_other_text_lacks_are_marked():
    assert different_words("a red  shirt", "a blue shirt") == [
        ("a", False), ("red", True), ("shirt", False)
    ]  # fmt: skip
    assert different_words("same words", "same\nwords") == [("same words", False)]
    assert different_words("one", "") == [("one", True)]
    assert different_words("", "one") == []
    long = "word " * (MAX_WORDS + 1)
    assert different_words(long, "other") == [(long, False)]
    assert different_words("other " * MAX_WORDS, "word")[0][1]
    for text, other in (("a b c d", "c d a b"), ("x", "y"), ("a b a b a", "b a b")):
        pieces = different_words(text, other)
        assert " ".join(words for words, _ in pieces) == text
        assert not set(" ".join(w for w, differ in pieces if not differ).split()) - set(
            other.split()
        )


def test_marks_are_ours_alone():
    assert marked("<b> new", "old") == "<mark>&lt;b&gt; new</mark>"
    assert marked("<b>", None) == "&lt;b&gt;"
    page = Page(marked(EVIL, "x"))
    assert [tag for tag, _ in page.tags] == ["mark"]


def test_the_page_marks_differing_words_and_says_so_in_words(benchmark, tmp_path):
    changed = [replace(r, cot=replace(r.cot, caption="shade other")) for r in benchmark.records]
    results = read(replace(benchmark, records=changed), "full", "fast")
    write_report(tmp_path / "out", results)
    html = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "shade <mark>other</mark>" in html
    assert Page(html).well_formed
    names = {one["name"] for one in Page(html).all("input")}
    assert names == {"q0"}
    pictures = Page(html).all("details")
    assert sum(one.get("class") == "zoom" for one in pictures) == len(Page(html).all("img"))


@pytest.mark.slow
def test_a_filter_and_an_enlarged_picture_in_a_browser(browser, benchmark, tmp_path):
    results = read(benchmark, "full", "fast")
    write_report(tmp_path / "out", results)
    for width in (1280, 390):
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.goto((tmp_path / "out/report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("article:visible").count() == 12
        # By mouse and by keyboard.
        page.locator(".queries > label", has_text="missed (").first.click()
        assert page.locator("article:visible").count() == 6
        page.keyboard.press("ArrowLeft")
        assert page.locator("article:visible").count() == 12
        small = page.locator(".zoom img").first
        before = small.bounding_box()["width"]
        page.locator(".zoom summary").first.click()
        assert small.bounding_box()["width"] > 2 * before
        page.keyboard.press("Enter")
        assert small.bounding_box()["width"] == before
        page.close()
