"""Reports: what is shown, how it is marked, that nothing escapes its place, that the page stands alone."""

import re
from dataclasses import replace

import pytest
from hostile_page import EVIL, Page
from PIL import Image
from toy_retriever import Plain, Toy, query, write_folder

from cir_cot import webpage
from cir_cot.data import load_benchmark
from cir_cot.evaluation.evaluate import evaluate
from cir_cot.evaluation.report import markdown, plain, write_report
from cir_cot.evaluation.samples import drawn_text, place, sample
from cir_cot.evaluation.tables import Table, summary_table, text_table
from cir_cot.retriever import QueryOutput

SHADES = list(range(0, 256, 8))


@pytest.fixture
def benchmark(tmp_path):
    """12 queries; the odd ones' targets are not where the toy goes."""
    rows = [
        query(i, SHADES[4 + i], 8, SHADES[5 + i] if i % 2 == 0 else SHADES[20]) for i in range(12)
    ]
    rows[0] = replace(rows[0], source="toy/<up>")
    (found,) = load_benchmark("folder", write_folder(tmp_path / "data", rows, SHADES), "val")
    return found


class Evil(Toy):
    """Writes markup instead of a chain."""

    def encode_query(self, images, texts, reading=None):
        found = super().encode_query(images, texts, reading)
        return QueryOutput(found.embeddings, [EVIL] * len(texts), found.flags)


def written(results, tmp_path, **options):
    write_report(tmp_path / "out", results, **options)
    html = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    return html, Page(html), (tmp_path / "out/report.md").read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_loads_nothing(benchmark, tmp_path):
    html, page, _ = written([evaluate(Toy(), benchmark, benchmark.images())], tmp_path)
    assert page.well_formed
    assert {tag for tag, _ in page.tags}.isdisjoint(
        {"script", "link", "iframe", "object", "form", "base"}
    )
    for tag, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on")], (tag, attrs)
        for name in ("src", "href"):
            assert attrs.get(name, "data:").startswith("data:")
    assert "url(" not in html
    assert "@import" not in html
    (policy,) = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert policy.startswith("default-src 'none'")
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))
    assert "prefers-color-scheme: dark" in html
    assert page.all("html") == [{"lang": "en"}]


def test_markup_in_texts_and_chains_stays_text(benchmark, tmp_path):
    result = evaluate(Evil(), benchmark, benchmark.images())
    shown = [replace(record, text=EVIL) for record in result.benchmark.records]
    result = replace(result, benchmark=replace(result.benchmark, records=shown))
    html, page, words = written(
        [result], tmp_path, title=EVIL, tables=[Table(EVIL, [EVIL, "x"], [[EVIL, EVIL]], EVIL)]
    )
    assert page.well_formed
    assert not page.all("script")
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.all("img"))
    assert "".join(page.text).count("<script>alert('x')</script>") >= 12 + 6
    assert "<script" not in html
    assert "<script" not in words
    assert "<img" not in words
    assert not re.search(r"(?<!\\)\[link(?<!\\)\]", words)


def test_markup_in_an_image_id_stays_in_the_alternative_text():
    name = """answer 1: "><script>alert('x')</script>"""
    page = Page(webpage.document("t", [webpage.thumbnail(Image.new("RGB", (300, 2)), name)]))
    assert [image["alt"] for image in page.all("img")] == [name]
    assert not page.all("script")
    assert page.well_formed


@pytest.mark.parametrize(
    "text", ["a | b", "`a`", "*a*", "[a](b)", "# a", "line\nbreak", "\\", "<b>"]
)
def test_plain_leaves_no_markdown(text):
    escaped = plain(text)
    assert "\n" not in escaped
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*\[\]|#<>]", escaped)


def test_right_answers_are_marked_by_more_than_colour(benchmark, tmp_path):
    result = evaluate(Toy(), benchmark, benchmark.images())
    _, page, words = written([result], tmp_path, queries=50)
    marked = [attrs for attrs in page.all("li") if attrs.get("class") == "right"]
    assert len(marked) == 12  # one target each, shown at its rank or after the first answers
    assert "".join(page.text).count("✓ right") == 12
    alts = [image["alt"] for image in page.all("img")]
    assert all(alts)
    assert sum(alt.endswith("a right answer") for alt in alts) == 12
    assert sum(alt.startswith("reference: ") for alt in alts) == 12
    assert words.count("✓ right") == 12
    assert "Drawn by the seed: 6 of 6 missed, 6 of 6 found first." in words
    assert "".join(page.text).count("✓ found first") == 6
    assert "".join(page.text).count("✗ missed: the right answer is at rank") == 6


def test_the_right_answer_is_shown_where_it_is_not_listed(tmp_path):
    root = write_folder(tmp_path / "data", [query(0, 0, 1, 250)], range(256))
    (benchmark,) = load_benchmark("folder", root, "val")
    result = evaluate(Plain(), benchmark, benchmark.images())
    assert place(result, benchmark.records[0]) is None
    _, page, words = written([result], tmp_path)
    assert "✗ missed: the right answer is not among the first 100" in "".join(page.text)
    assert "not listed: s250" in "".join(page.text)
    assert "not listed: s250" in words


def test_failures_and_successes_are_drawn_by_the_seed(benchmark):
    result = evaluate(Toy(), benchmark, benchmark.images())
    drawn = [record.id for record in sample(result, 4, seed=0)]
    assert [int(name) % 2 for name in drawn] == [1, 1, 1, 1, 0, 0, 0, 0]
    assert drawn == [record.id for record in sample(result, 4, seed=0)]
    assert drawn != [record.id for record in sample(result, 4, seed=1)]
    assert len(sample(result, 50, seed=0)) == 12
    assert drawn_text(result, []) == "Drawn by the seed: 0 of 6 missed, 0 of 6 found first."


def test_chains_are_compared_with_the_annotation(benchmark, tmp_path):
    """The toy's chains agree with the annotation; a chain whose end is missing is called invalid and shown as it is."""
    _, page, words = written([evaluate(Toy(), benchmark, benchmark.images())], tmp_path)
    assert "conclusion ✓ as annotated" in "".join(page.text)
    assert "not as annotated" not in "".join(page.text)
    changed = replace(
        benchmark,
        records=[replace(r, cot=replace(r.cot, caption="other")) for r in benchmark.records],
    )
    _, page, words = written([evaluate(Toy(), changed, benchmark.images())], tmp_path)
    assert "caption ✗ not as annotated" in "".join(page.text)
    assert "the annotated caption: other" in words
    _, page, _ = written([evaluate(Toy(forgets=("8",)), benchmark, benchmark.images())], tmp_path)
    assert "not a valid chain" in "".join(page.text)


def test_tables_hold_every_reading_and_edit_type(benchmark, tmp_path):
    store = benchmark.images()
    results = [
        evaluate(Toy(), benchmark, store, reading=name) for name in ("full", "fast", "image_only")
    ]
    _, page, words = written(results, tmp_path)
    table = summary_table(results)
    assert [row[0] for row in table.rows] == [
        f"folder.val · {name}" for name in ("full", "fast", "image only")
    ]
    assert table.rows[0][1:4] == [12, 32, 50.0]
    assert "| folder.val · full | 12 | 32 | 50.00 |" in words
    assert "In percent. folder.val: reference removed, ties against the model." in words
    assert "R@1 by source, folder.val" in words
    assert "| toy/&lt;up&gt; | 1 | 100.00 |" in words
    assert len(page.all("rect")) == 2 * len(results)
    assert "folder.val · full: R@1 50.00" in "".join(page.text)


def test_categories_get_their_mean(benchmark):
    parts = [
        replace(benchmark, name="fashioniq", category=name, ks=(10, 20))
        for name in ("dress", "shirt")
    ]
    results = [evaluate(Toy(), part, part.images()) for part in parts]
    results[1] = replace(results[1], metrics={"R@10": 0.0, "R@20": 25.0})
    last = summary_table(results).rows[-1]
    assert last[0] == "fashioniq.val · full, mean of categories"
    assert last[3] == results[0].metrics["R@10"] / 2


def test_a_text_table_lines_up():
    table = Table("t", ["name", "R@1"], [["a", 100.0], ["longer", 5.25]])
    assert text_table(table) == "name       R@1\na       100.00\nlonger    5.25"
    assert text_table(replace(table, note="why")).endswith("5.25\nwhy")


def test_a_split_without_labels_is_reported_without_numbers(benchmark, tmp_path):
    unlabelled = replace(
        benchmark, records=[replace(record, targets=()) for record in benchmark.records]
    )
    result = evaluate(Toy(), unlabelled, benchmark.images())
    _, page, words = written([result], tmp_path)
    assert page.well_formed
    assert "| folder.val · full | 12 | 32 |" in words
    assert words.count("no published answer") == 6
    assert "✓ right" not in words
    assert "✓ found" not in words
    assert "Drawn by the seed: 6 of 12 without a published answer." in words


def test_the_same_results_give_the_same_bytes(benchmark):
    result = evaluate(Toy(), benchmark, benchmark.images())
    pages = [
        markdown("t", [summary_table([result])], [(result, sample(result, 2, 0))], [result])
        for _ in range(2)
    ]
    assert pages[0] == pages[1]
