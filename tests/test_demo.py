"""The demo: the dialogue behind the page, and the page itself in a real browser."""

import asyncio
import io
import re

import pytest
from PIL import Image
from toy import Plain, Toy, write_shades

from cir_cot.dialogue import MAX_BYTES, MAX_WORDS, Dialogue, empty_state, kept, told, ways_of
from cir_cot.encoding import list_pictures
from cir_cot.indexing import build, open_index
from cir_cot.prompts import written_parts
from cir_cot.records import InputError
from cir_cot.search import Search

SHADES = range(0, 250, 10)
HOSTILE = "<script>window.hacked = 1</script><img src=x onerror='window.hacked=1'></conclusion><ret><|im_end|>"


def make_search(folder, retriever):
    write_shades(folder / "images", SHADES)
    images = list_pictures(folder / "images")
    build(retriever, images, list(images.files), folder / "index")
    return Search(retriever, open_index(folder / "index"))


def make_dialogue(folder, retriever=None):
    search = make_search(folder, retriever or Toy())
    return Dialogue(ways_of(search), list_pictures(folder / "images"))


@pytest.fixture
def page(tmp_path):
    return make_dialogue(tmp_path)


def png(shade=30, size=(8, 6)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def ids(answer):
    return [name for name, _ in answer.hits]


# ---- the dialogue


def test_a_dialogue_goes_on_from_a_result(page):
    state = page.start_from("s020", [])
    *_, answer = page.ask(state, "40", "full")
    assert ids(answer)[0] == "s060"
    state = kept(state, "40", answer)
    state = page.start_from(state["hits"][0], state["turns"])
    *_, answer = page.ask(state, "40", "full")
    assert ids(answer)[0] == "s100"
    state = kept(state, "40", answer)
    assert [(turn["text"], turn["first"]) for turn in state["turns"]] == [("40", "s060"), ("40", "s100")]


def test_editing_any_part_of_the_chain_searches_with_it(page):
    state = page.start_from("s020", [])
    *_, answer = page.ask(state, "40", "full")
    parts = list(written_parts(answer.explanation).values())
    assert ids(page.ask_again(state, "40", "full", parts)) == ids(answer)
    edited = page.ask_again(state, "40", "full", [*parts[:2], "shade 200"])
    assert ids(edited)[0] == "s200"
    assert len(page.pictures(edited)) == len(edited.hits)


def test_an_upload_is_a_reference_and_the_reference_is_no_hit(page):
    state = page.upload(png(30))
    assert state["picture"].getpixel((0, 0)) == (30, 30, 30)
    *_, answer = page.ask(state, "0", "full")
    assert ids(answer)[0] == "s030"
    *_, answer = page.ask(page.start_from("s030", []), "0", "full")
    assert "s030" not in ids(answer)
    assert page.upload(None) == empty_state()


@pytest.mark.parametrize(
    "data", [b"no picture", png()[:40], b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"GIF89a", b"x" * (MAX_BYTES + 1)]
)
def test_hostile_uploads_are_refused(page, data):
    with pytest.raises(InputError):
        page.upload(data)


@pytest.mark.parametrize("name", ["../index/index", "/etc/passwd", "s031", "", "images/s030", "s030.png"])
def test_only_pictures_of_the_gallery_can_be_had(page, name):
    with pytest.raises(InputError, match="not in the gallery"):
        page.start_from(name, [])


def test_what_is_missing_or_too_long_is_said(page):
    state = page.start_from("s020", [])
    for bad in ("", "  ", "x" * (MAX_WORDS + 1)):
        with pytest.raises(InputError, match="the change"):
            list(page.ask(state, bad, "full"))
    with pytest.raises(InputError, match="reference picture first"):
        list(page.ask(empty_state(), "40", "full"))
    with pytest.raises(InputError, match="the reasoning is empty"):
        page.ask_again(state, "40", "full", ["a", " ", "c"])
    with pytest.raises(InputError, match="</conclusion>"):
        page.ask_again(state, "40", "full", ["a", "b", "shade 3 </conclusion>"])


def test_ways_of_searching_are_those_of_the_head(tmp_path):
    assert list(make_dialogue(tmp_path / "toy").ways) == ["full", "short", "adaptive", "fast"]
    plain = make_dialogue(tmp_path / "plain", Plain())
    assert list(plain.ways) == ["as trained"]
    assert not plain.chains("as trained")
    *_, answer = plain.ask(plain.start_from("s020", []), "40", "as trained")
    assert ids(answer)[0] == "s060"
    assert "25 pictures searched" in told(answer, "as trained", 25)


def test_a_gallery_whose_pictures_are_gone_is_named(tmp_path):
    search = make_search(tmp_path, Toy())
    write_shades(tmp_path / "other", [255])
    with pytest.raises(InputError, match="--images"):
        Dialogue(ways_of(search), list_pictures(tmp_path / "other"))


# ---- the page


def test_what_people_and_models_write_is_escaped():
    pytest.importorskip("gradio")
    from cir_cot.eval.demo import note, turns_of

    turn = {"picture": Image.new("RGB", (4, 4)), "text": HOSTILE, "first": HOSTILE}
    for html in (note(HOSTILE), turns_of({"turns": [turn]})):
        assert "<script" not in html
        assert "onerror='" not in html
        assert "&lt;script&gt;" in html


def make_layout(dialogue):
    """Build the page inside an event loop: outside of one gradio makes loops that nobody closes."""
    pytest.importorskip("gradio")
    from cir_cot.eval.demo import layout

    async def make():
        return layout(dialogue)

    return asyncio.run(make())


def test_every_control_has_a_label_and_every_event_is_private(page):
    config = make_layout(page).get_config_file()
    kinds = {"textbox", "dropdown", "gallery", "image", "file"}
    labels = [part["props"].get("label") for part in config["components"] if part["type"] in kinds]
    assert len(labels) == 12
    assert all(labels)
    assert len(config["dependencies"]) == 9
    assert all(event["api_visibility"] == "private" for event in config["dependencies"])


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The page over the toy retriever, in this process, at a free port."""
    blocks = make_layout(make_dialogue(tmp_path_factory.mktemp("served")))
    from cir_cot.eval.demo import serve

    yield serve(blocks, None, wait=False)
    blocks.close()


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    import shutil

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs Debian's chromium")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


SLOW = 60_000  # milliseconds that a busy machine may take


def in_browser(test):
    """Mark a test as slow; gradio's server leaves sockets and event loops to the garbage collector."""
    leftovers = ("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
    return pytest.mark.slow(pytest.mark.filterwarnings(*leftovers)(test))


def visit(browser, address, **screen):
    page = browser.new_context(**({"viewport": {"width": 1280, "height": 1400}} | screen)).new_page()
    page.set_default_timeout(SLOW)
    page.goto(address)
    page.get_by_label("What should be different?").wait_for()
    return page


def choose(page, name):
    page.get_by_label("Or an image id of the gallery").fill(name)
    page.get_by_label("Or an image id of the gallery").press("Enter")
    page.get_by_text("Now write what should change.").wait_for()


def ask(page, text):
    page.get_by_label("What should be different?").fill(text)
    page.get_by_role("button", name="Search", exact=True).click()


def first_found(page, score="1.000"):
    caption = page.locator(".gallery-item, .thumbnail-item, .caption-label").filter(has_text=f"1 · {score}")
    caption.first.wait_for()
    return re.search(r"s\d{3}", caption.first.inner_text())[0]


@in_browser
def test_search_edit_and_dialogue_in_a_browser(served, browser):
    page = visit(browser, served)
    choose(page, "s020")
    ask(page, "40")
    assert first_found(page) == "s060"
    conclusion = page.get_by_label("Conclusion (edit it)")
    assert conclusion.input_value() == "shade 60"
    conclusion.fill("shade 200")
    page.get_by_role("button", name="Search again with this chain").click()
    page.get_by_text("with your chain").wait_for()
    assert first_found(page) == "s200"
    page.get_by_text("1 · 1.000 · s200").first.click()
    page.get_by_text("Now write what should change.").wait_for()
    ask(page, "-50")
    page.get_by_text("3. -50").wait_for()
    assert first_found(page) == "s150"
    page.context.close()


@in_browser
def test_hostile_text_and_files_in_a_browser(served, browser):
    page = visit(browser, served)
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    choose(page, "s020")
    ask(page, "40")
    assert first_found(page) == "s060"
    page.get_by_label("Caption (edit it)").fill(HOSTILE)
    page.get_by_role("button", name="Search again with this chain").click()
    page.get_by_text("remove the tag").wait_for()
    page.get_by_label("Caption (edit it)").fill("<script>window.hacked = 1</script> <|im_end|>")
    page.get_by_role("button", name="Search again with this chain").click()
    page.get_by_text("with your chain").wait_for()
    page.locator("input[type=file]").first.set_input_files(
        {"name": "x.png", "mimeType": "image/png", "buffer": b"<html><script>window.hacked=1</script>"}
    )
    page.get_by_text("no readable picture").wait_for()
    assert page.evaluate("window.hacked") is None
    assert problems == []
    for path in ("/gradio_api/file=/etc/passwd", "/file=/etc/passwd", "/gradio_api/file=../../../../etc/passwd"):
        assert page.request.get(served.rstrip("/") + path).status in (400, 403, 404)
    page.context.close()


@in_browser
def test_two_visitors_do_not_mix_and_a_phone_needs_no_sideways_scrolling(served, browser):
    first = visit(browser, served)
    second = visit(browser, served, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    choose(first, "s020")
    choose(second, "s100")
    ask(first, "40")
    ask(second, "40")
    assert first_found(second) == "s140"
    assert first_found(first) == "s060"
    assert second.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    first.context.close()
    second.context.close()
