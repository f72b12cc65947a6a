"""Bounds of a dialogue, and what is said and shown of an answer."""

import pytest
from demo_dialogue import make_dialogue, png
from PIL import Image

from cir_cot.errors import InputError
from cir_cot.records import MAX_PART, MAX_TEXT, Cot
from cir_cot.search.answer import Answer, status_line
from cir_cot.search.dialogue import (
    MAX_BYTES,
    SIDE,
    TURNS,
    after_search,
    checked_chain,
    checked_text,
    empty_state,
)
from cir_cot.search.question import Question


def answer(**facts) -> Answer:
    values = {
        "hits": [("s060", 0.9876), ("gone", 0.5), ("s070", 0.25)],
        "explanation": "",
        "flag": "",
        "routing": {},
    }
    return Answer(**values | {"encode_seconds": 1.234, "search_seconds": 0.0056} | facts)


def test_a_picture_in_too_many_bytes_is_refused_before_it_is_decoded(tmp_path):
    page = make_dialogue(tmp_path)
    small = png(30)
    whole = small + bytes(MAX_BYTES - len(small))  # what follows a picture's end is not read
    assert page.upload(whole)["picture"].size == (8, 6)
    with pytest.raises(InputError, match="more than 10 MB"):
        page.upload(whole + b"\0")


def test_pictures_are_shown_with_place_score_and_id_and_what_the_folder_lacks_is_left_out(tmp_path):
    shown = make_dialogue(tmp_path).pictures(answer())
    assert [words for _, words in shown] == ["1 · 0.988 · s060", "3 · 0.250 · s070"]
    assert [picture.getpixel((0, 0))[0] for picture, _ in shown] == [60, 70]


def test_the_longest_text_is_read_and_no_longer_one():
    assert checked_text(f"  {'x' * MAX_TEXT} ") == "x" * MAX_TEXT
    with pytest.raises(InputError, match="the change has 4001 characters, more than the 4000"):
        checked_text("x" * (MAX_TEXT + 1))
    # A section of a chain has the limit that it has in records.
    sections = ["a", "x" * MAX_PART, "c"]
    assert checked_chain(sections) == Cot(*sections)
    with pytest.raises(InputError, match="the reasoning has 10001 characters, more than the 10000"):
        checked_chain(["a", "x" * (MAX_PART + 1), "c"])


def test_the_last_turns_are_remembered_with_small_pictures():
    state = empty_state() | {"picture": Image.new("RGB", (4 * SIDE, 2 * SIDE))}
    for turn in range(TURNS + 3):
        state = after_search(state, Question("s020", str(turn), "full"), answer())
    assert [turn["text"] for turn in state["turns"]] == [str(turn) for turn in range(3, TURNS + 3)]
    assert {turn["picture"].size for turn in state["turns"]} == {(SIDE, SIDE // 2)}
    assert state["picture"].size == (4 * SIDE, 2 * SIDE)
    assert state["answer"].hits[0][0] == "s060"
    nothing = after_search(state, Question("s020", "x", "full"), answer(hits=[]))
    assert nothing["turns"][-1]["first"] == "nothing"


def test_an_answer_is_told_with_times_flag_and_the_parts_that_took_a_share():
    words = status_line(
        answer(flag="cut", routing={"a": 0.75, "b": 0.0, "c": 0.25}, explanation="x"), "fast", 1234
    )
    assert (
        words
        == "fast: read in 1.23 s, 1,234 pictures searched in 5.6 ms. Note: cut. Chosen: a 75%, c 25%"
    )
    assert status_line(answer(explanation="the words weigh 0.5"), "own", 1).endswith(
        " ms. the words weigh 0.5"
    )
    assert status_line(answer(explanation="<caption>a</caption>"), "own", 1).endswith(" ms.")
