"""What the events of the demo's page answer: one complete screen each."""

import math
from types import SimpleNamespace

import pytest
import torch
from demo_dialogue import make_dialogue, png
from toy_retriever import point

from cir_cot.prompts import PARTS, cot_to_text
from cir_cot.records import Cot, Record
from cir_cot.search.chain_difference import difference, marked
from cir_cot.search.dialogue import empty_state
from cir_cot.search.feedback import DISLIKED, LIKED, moved
from cir_cot.search.question import Question, to_address

pytest.importorskip("gradio")
from cir_cot.search.demo_events import SCREEN, Buttons  # noqa: E402


@pytest.fixture(scope="module")
def do(tmp_path_factory):
    payloads = {
        f"s{shade:03}": {"dark": shade < 100, "shade": shade} for shade in range(0, 250, 10)
    }
    return Buttons(make_dialogue(tmp_path_factory.mktemp("do"), payloads=payloads))


SKIP = {"__type__": "update"}


def named(screen):
    """What a screen changes, by name; the filters are a list."""
    values = list(screen)
    changes = dict(zip(SCREEN, values, strict=False)) | {"filters": values[len(SCREEN) :]}
    return {name: value for name, value in changes.items() if value not in (SKIP, [SKIP] * 3, [])}


def shown(screens):
    """What the page shows after several screens, apart from selections."""
    page = {}
    for screen in screens:
        for name, value in named(screen).items():
            if not (isinstance(value, dict) and "selected_index" in value):
                page[name] = value
    return page


def clicked(index):
    return SimpleNamespace(index=index)


def found(screen):
    return [caption.rpartition(" ")[2] for _, caption in screen["found"]["value"]]


def searched(do, reference="s020", text="40", mode="full", other="", filters=(None,) * 3):
    state = named(do.named(reference))["state"]
    return shown(do.search(state, text, mode, other, *filters))


def test_a_search_answers_with_a_complete_screen(do):
    screen = searched(do)
    assert set(screen) == set(SCREEN) - {"judged"} | {"filters"}
    assert found(screen)[0] == "s060"
    assert screen["address"] == "?ref=s020&text=40&mode=full"
    assert [screen[part] for part in PARTS] == ["shade 20", "add 40", "shade 60"]
    (turn,) = screen["history"]["value"]
    assert turn[1] == "1. 40 → s060"
    assert screen["choose"]["open"] is False


def test_nothing_of_an_earlier_search_stays(do):
    compared = searched(do, other="fast")
    assert len(compared["second"]["value"]) == 12
    assert "Both chains" in compared["difference"]
    searching = list(do.search(compared["state"], "30", "full", "", None, None, None))
    after = shown(searching)
    # Galleries keep a selected place until another one outside of them is selected, in an update of its own.
    places = set()
    for screens in (searching, list(do.search(compared["state"], "3", "full", "", *[None] * 3))):
        end = named(screens[-1])
        assert set(end) == {"found", "second", "history"}
        assert all(list(value) == ["selected_index", "__type__"] for value in end.values())
        places.add(end["found"]["selected_index"])
    assert len(places) == 2
    assert min(places) >= 25
    assert after["second"]["value"] == []
    assert not after["second"]["visible"]
    assert after["difference"] == ""
    assert not after["judge"]["visible"]
    assert after["state"]["chosen"] == ""
    # Another reference: no hit, no chain, no comparison of the one before.
    chosen = named(do.named("s100"))
    assert chosen["found"]["value"] == chosen["second"]["value"] == []
    assert [chosen[part] for part in PARTS] == [""] * 3
    assert not chosen["chain"]["visible"]


def test_the_filters_of_the_page_hold_for_both_searches(do):
    screen = searched(do, other="fast", filters=(["no such", False], None, 150))
    shades = [int(name[1:]) for name in found(screen)]
    assert shades
    assert all(100 <= shade <= 150 for shade in shades)
    others = [int(caption[-3:]) for _, caption in screen["second"]["value"]]
    assert sorted(others) == sorted(shades)
    assert screen["filters"] == [[False], None, 150]
    assert "where=" in screen["address"]


def test_an_address_is_answered_as_the_search_that_it_came_from(do):
    screen = searched(do, other="fast", filters=([True], 10, None))
    opened = shown(do.opened(screen["address"]))
    for name in ("text", "mode", "other", "difference", "address", "filters", *PARTS):
        assert opened[name] == screen[name]
    assert found(opened) == found(screen)
    question = Question("s020", "40", "full", chain=("a", "b", "shade 200"), disliked=("s200",))
    opened = shown(do.opened(to_address(question)))
    assert found(opened)[0] == "s190"
    assert "full, with your chain, moved by 1 judged: read in" in opened["status"]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("?ref=../x&text=40", "not in the gallery"),
        ("?ref=s020&text=40&mode=slow", "is no mode here"),
        ("?ref=s020&text=40&mode=full&other=slow", "is no mode here"),
        ("?ref=s020&text=40&like=/etc/passwd", "not in the gallery"),
        ("?text=40", "names no picture"),
        ("?ref=s020&text=a%00b", "the change"),
        ("?chain=1", "1 sections"),
        ("?ref=s020&text=40&" + "&".join(f"like=s{n:03}" for n in range(0, 90, 10)), "at most 8"),
    ],
)
def test_a_bad_address_is_a_line_in_the_status(do, query, words):
    screen = shown(do.opened(query))
    assert 'role="alert"' in screen["status"]
    assert words in screen["status"]


def test_a_page_without_a_question_stays_as_it_is(do):
    assert [named(screen) for screen in do.opened("")] == [{}]


def test_a_result_is_judged_without_a_new_chain(do):
    screen = searched(do)
    chosen = named(do.hit(screen["state"], clicked(3)))
    name = found(screen)[3]
    assert chosen["state"]["chosen"] == name
    assert name in chosen["judged"]
    assert chosen["judge"]["visible"]
    # The query moves towards a picture that is liked …
    liked = shown(do.like(chosen["state"]))
    first, there = 60, int(name[1:])
    best = int(found(liked)[0][1:])
    assert min(first, there) <= best <= max(first, there)
    assert liked["address"].endswith(f"&like={name}")
    # … and leaves out the one that is not.
    again = liked["state"] | {"chosen": "s060"}
    other = shown(do.dislike(again))
    assert "s060" not in found(other)
    assert other["state"]["question"].disliked == ("s060",)
    assert other["history"]["value"][-1][1].startswith(f"3. 40 + like {name} − not s060 → ")
    # Nothing chosen, nothing judged.
    assert "found first" in shown(do.like(empty_state()))["status"]


def test_a_query_moves_by_rocchios_rule():
    query, liked, disliked = (torch.tensor(point(shade)) for shade in (0, 255, 128))
    empty = torch.empty(0, 2)
    assert torch.equal(moved(query, empty, empty), query)
    towards = moved(query, liked[None], empty)
    assert math.isclose(towards[1] / towards[0], LIKED, rel_tol=1e-5)
    # The mean of several counts, not their sum.
    twice = moved(query, torch.stack([liked, liked]), empty)
    assert torch.allclose(twice, towards)
    away = moved(query, empty, disliked[None])
    assert away[1] < 0
    assert math.isclose(away.norm(), 1, rel_tol=1e-6)
    assert DISLIKED < LIKED


def test_the_history_leads_back_to_every_turn(do):
    first = searched(do, other="fast", filters=([True], None, None))
    state = named(do.start_from_hit(first["state"] | {"chosen": "s060"}))["state"]
    assert state["id"] == "s060"
    second = shown(do.search(state, "50", "full", "", None, None, None))
    back = shown(do.turn(second["state"], clicked(0)))
    for name in ("text", "mode", "other", "difference", "address", "filters", *PARTS):
        assert back[name] == first[name]
    assert found(back) == found(first)
    assert back["state"]["id"] == "s020"
    assert len(back["history"]["value"]) == 2
    assert "Back to turn 1." in back["status"]


def test_the_history_leads_back_to_an_upload(do):
    state = named(do.upload(png(30)))["state"]
    first = shown(do.search(state, "40", "full", "", None, None, None))
    assert first["address"] == "?text=40&mode=full"
    other = searched(do)["state"] | {"turns": first["state"]["turns"]}
    back = shown(do.turn(other, clicked(0)))
    assert back["state"]["picture"].getpixel((0, 0)) == (30, 30, 30)
    assert found(back)[0] == "s070"


def test_an_example_is_searched_at_once(tmp_path):
    do = Buttons(make_dialogue(tmp_path), [Record("1", "s100", "50", ("s150",))])
    screen = shown(do.example("full", clicked(0)))
    assert (screen["text"], found(screen)[0]) == ("50", "s150")


# ---- two chains


def test_words_that_differ_are_marked_and_markup_is_text():
    left, right = marked("A blue <b> shirt, long.", "a red shirt, long & wide.")
    assert left == "A <mark>blue &lt;b&gt;</mark> shirt, long."
    assert right == "a <mark>red</mark> shirt, long <mark>&amp; wide</mark>."
    assert marked("Same words.", "same words.") == ("Same words.", "same words.")
    assert marked("", "x") == ("", "<mark>x</mark>")


def test_two_chains_stand_side_by_side():
    first = cot_to_text(Cot("a", "b", "<script>"))
    html = difference(first, cot_to_text(Cot("a", "c", "d")), ("<full>", "short"))
    assert "<mark>b</mark>" in html
    assert "<mark>c</mark>" in html
    assert "<script" not in html
    assert "&lt;full&gt;" in html
    # A reading that writes the conclusion only lacks the other sections; they are not marked.
    short = difference(first, "<conclusion>e</conclusion>", ("full", "short"))
    assert short.count("<mark>") == 2
    assert short.count("<td>–</td>") == 2
    alone = difference(first, "", ("full", "fast"))
    assert "Only one" in alone
    assert "<mark" not in alone
    assert "<script" not in alone
    assert difference("", "no chain", ("fast", "x")) == ""
