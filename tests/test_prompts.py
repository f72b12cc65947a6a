"""The chain's template: a round trip for every chain, and nothing but a whole chain is read as one."""

import pytest

from cir_cot.prompts import QUERY, cot_to_text, query_prompt, score_prompt, text_to_cot
from cir_cot.records import Cot

CHAIN = Cot("a red dress,\nlong", "keep the cut; change red to blue (< 10 %)", "a long blue dress")


def test_a_chain_survives_the_round_trip():
    assert text_to_cot(cot_to_text(CHAIN)) == CHAIN
    assert text_to_cot(cot_to_text(CHAIN).replace("><", "> \n <")) == CHAIN


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "a red dress",
        "<caption>a</caption><reasoning>b</reasoning>",
        "<caption>a</caption><reasoning>b</reasoning><conclusion>c",
        "<reasoning>b</reasoning><caption>a</caption><conclusion>c</conclusion>",
        "<caption> </caption><reasoning>b</reasoning><conclusion>c</conclusion>",
        "<caption>a</caption><caption>a</caption><reasoning>b</reasoning><conclusion>c</conclusion>",
        "<caption>a</caption><reasoning>b<reasoning></reasoning><conclusion>c</conclusion>",
        "<caption>a</caption><reasoning>b</reasoning><conclusion>c</conclusion> and more",
        "<caption>a</caption><reasoning>b</reasoning><conclusion>c<ret></conclusion>",
    ],
)
def test_what_is_no_whole_chain_is_none(broken):
    assert text_to_cot(broken) is None


@pytest.mark.parametrize("tag", ["</conclusion>", "<ret>", "<caption>"])
def test_a_chain_with_a_tag_inside_is_refused(tag):
    with pytest.raises(ValueError, match=tag):
        cot_to_text(Cot("a", f"b {tag}", "c"))


def test_braces_of_a_text_or_a_conclusion_are_not_filled_in():
    asked = score_prompt("is {conclusion}", "a {text} dress")
    assert "with the request: is {conclusion}\n" in asked
    assert "was wanted: a {text} dress\n" in asked


def test_the_users_text_is_put_into_the_prompt_as_it_is():
    text = "{text} \\1 {0} %s"
    assert query_prompt(text) == QUERY.split("{text}")[0] + text + QUERY.split("{text}")[1]
