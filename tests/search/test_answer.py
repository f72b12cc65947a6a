"""What a notebook shows of answers, chains and results: everything escaped, pictures inside."""

import pytest
from toy_retriever import Plain, write_shades

from cir_cot.records import Cot
from cir_cot.search.answer import Answer
from cir_cot.search.search import Search

pandas = pytest.importorskip("pandas")
CHAIN = "<caption>a & b</caption><reasoning>c</reasoning><conclusion><i>d</conclusion>"


@pytest.fixture(scope="module")
def shades(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answer")
    write_shades(folder / "images", range(0, 100, 20))
    return folder


def test_an_answer_shows_its_chain_and_its_pictures_escaped(shades):
    paths = sorted((shades / "images").iterdir())
    search = Search.from_images(Plain(), paths)
    answer = search.one(paths[0], "20", k=3)
    page = answer._repr_html_()
    assert page.count('<img src="data:image/jpeg;base64,') == 3
    assert page.index("1. ") < page.index("2. ") < page.index("3. ")
    odd = Answer(
        [("<b>.png", 0.5)], CHAIN, "<script>", {}, 0, 0, path_of=lambda name: shades / "no"
    )
    page = odd._repr_html_()
    assert "a &amp; b" in page
    assert "&lt;b&gt;.png (0.500)" in page
    assert "&lt;script&gt;" in page
    assert "<b>" not in page
    assert "<img" not in page  # its file is not there
    frame = answer.to_pandas()
    assert list(frame.columns) == ["rank", "id", "score"]
    assert list(frame["id"]) == [name for name, _ in answer.hits]


def test_a_chain_shows_its_parts():
    page = Cot("a < b", "c", "d")._repr_html_()
    assert "<dt>caption</dt><dd>a &lt; b</dd>" in page
    assert page.index("caption") < page.index("reasoning") < page.index("conclusion")
