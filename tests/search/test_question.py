"""A question in an address, and what is judged in it."""

import pytest

from cir_cot.errors import InputError
from cir_cot.search.question import MAX_ADDRESS, Question, caption_of, from_address, to_address

QUESTIONS = [
    Question("s020", "40", "full"),
    Question(
        "a b/ü&c=d?#%",
        "the same, “greener” + larger\n<b>",
        "mine full",
        "mine fast",
        {"price": {"lt": 50.5, "gte": 1}, "colour": ["räd", "a&b"], "new": [True]},
        ("a & b", "c = d", "e\nf"),
        ("x", "y"),
        ("z&like=q",),
    ),
]


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_comes_back_from_its_address(question):
    address = to_address(question)
    assert address.startswith("?ref=")
    assert address.isascii()
    assert not set(address[1:]) & set(" <>\"'#?")
    assert from_address(address) == question


def test_an_upload_is_no_part_of_an_address():
    assert "ref" not in to_address(Question("", "40", "full"))
    assert from_address("") == from_address("?") == Question("", "", "")


@pytest.mark.parametrize(
    ("query", "what"),
    [
        ("?text=" + "x" * MAX_ADDRESS, "more than"),
        ("?chain=a&chain=b", "2 sections"),
        ("?where={", "the address's filter"),
        ("?where=[1]", "a filter is an object"),
        ("?where=%7B%22a%22%3A%7B%22near%22%3A1%7D%7D", "is no bound"),
    ],
)
def test_what_is_wrong_with_an_address_is_said(query, what):
    with pytest.raises(InputError, match=what):
        from_address(query)


def test_a_question_too_long_for_an_address_has_none():
    frame = len(to_address(Question("s020", "x", "full"))) - 1
    longest = Question("s020", "x" * (MAX_ADDRESS - frame), "full")
    assert len(to_address(longest)) == MAX_ADDRESS
    assert from_address(to_address(longest)) == longest
    assert to_address(Question("s020", longest.text + "x", "full")) == "?"


def test_the_last_word_about_a_picture_counts():
    question = Question("a", "t", "full").judged("b", True).judged("c", False)
    assert (question.liked, question.disliked) == (("b",), ("c",))
    question = question.judged("b", False).judged("c", True).judged("c", True)
    assert (question.liked, question.disliked) == (("c",), ("b",))


def test_a_question_in_a_line_says_what_was_changed():
    assert caption_of(Question("a", "redder", "full")) == "redder"
    changed = Question("a", "redder", "full", chain=("a", "b", "c"), liked=("x", "y"))
    assert caption_of(changed) == "redder (chain corrected) + like x, y"
    assert caption_of(Question("a", "t", "full", disliked=("z",))) == "t − not z"
