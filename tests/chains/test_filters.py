"""Filters of chains: what each catches, and that honest chains pass all of them."""

from dataclasses import replace

import pytest

from cir_cot.chains.filters import FILTERS, duplicates, problems, salient
from cir_cot.data import load_benchmark
from cir_cot.data.chain_files import attach_chains
from cir_cot.records import Cot, Record

CAPTION = "A sleeveless knee-length dress in a black and white print."
REASONING = (
    "The fitted shape and the knee length are kept. "
    "The print is replaced with plain grey, and sleeves are added."
)
CONCLUSION = "A solid grey knee-length dress with sleeves."
NAMES = [one.name for one in FILTERS]


def record(text="is solid grey with sleeves", id="0", **parts):
    cot = {"caption": CAPTION, "reasoning": REASONING, "conclusion": CONCLUSION} | parts
    return Record(id, "a", text, ("b",), Cot(**cot))


def failing(some):
    return problems(some)


def test_the_filters_are_a_plain_list():
    assert [
        *("blank", "tags", "target_image", "refusal"),
        *("length", "repetition", "copied_caption", "salient_word", "verifier"),
    ] == NAMES


def test_every_filter_describes_what_it_leaves_out():
    assert all(one.description.endswith(".") and one.problem.__doc__ for one in FILTERS)
    assert len({one.description for one in FILTERS}) == len(FILTERS)


def test_an_honest_chain_passes():
    assert failing(record()) == {}


CAUGHT = {
    "blank": [{"caption": " \n"}, {"caption": ""}],
    "tags": [
        {"caption": CAPTION + "</caption>"},
        {"reasoning": "<conclusion>" + REASONING},
        {"conclusion": CONCLUSION + "<ret>"},
        {"conclusion": CONCLUSION + "<|im_end|>"},
        {"caption": CAPTION + "\0"},
        {"reasoning": REASONING + "\x1b[2J"},
    ],
    "target_image": [
        {"reasoning": REASONING + " The target image shows sleeves."},
        {"conclusion": "As in the Second  Picture, a grey dress with sleeves."},
        {"caption": CAPTION + " The target photograph differs."},
    ],
    "refusal": [
        {"caption": "I'm sorry, but there is nothing to see."},
        {"reasoning": REASONING + " As an AI model, more is not possible."},
        {"conclusion": "I cannot tell, but grey with sleeves."},
    ],
    "length": [
        {"reasoning": "Make it grey, keep the rest."},
        {"reasoning": " ".join(f"word{number}" for number in range(257))},
        {"conclusion": "Grey"},
        {"conclusion": "grey " + " ".join(f"word{number}" for number in range(64))},
    ],
    "repetition": [
        {"reasoning": REASONING + " and so on, and so on, and so on"},
        {"conclusion": "A grey grey grey dress with sleeves."},
        {
            "reasoning": " ".join(
                f"the print of the dress is grey at {place}," for place in ("neck", "hem", "arm")
            )
        },
    ],
    "copied_caption": [{"caption": CONCLUSION.upper().rstrip(".")}],
    "salient_word": [{"conclusion": "A plain knee-length garment."}],
}


@pytest.mark.parametrize(
    ("name", "parts"), [(name, parts) for name, some in CAUGHT.items() for parts in some]
)
def test_each_filter_catches_what_it_names(name, parts):
    assert list(failing(record(**parts))) == [name]


@pytest.mark.parametrize(
    "parts",
    [
        {"reasoning": " ".join(f"word{number}" for number in range(256))},
        {"reasoning": " ".join(f"word{number}" for number in range(16))},
        {"conclusion": "grey " + " ".join(f"word{number}" for number in range(63))},
        {"conclusion": "Grey sleeves"},
        {"caption": "A very, very long dress; a < b and <3."},
        {"reasoning": REASONING + " The target is hit, the second sleeve is in the picture, too."},
        {"reasoning": REASONING + " It cannot be longer, as an airy dress."},
    ],
)
def test_what_only_looks_like_a_fault_passes(parts):
    assert failing(record(**parts)) == {}


def words(count: int, start: int = 0) -> str:
    return " ".join(f"word{number}" for number in range(start, start + count))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"{words(12)} " * 3, f"the reasoning says '{words(12)}' 3 times in a row"),
        (f"{words(13)} " * 3, f"the reasoning says '{words(6)}' at 3 places"),
        (f"{words(12)} " * 2, None),
        (f"{words(6)} a {words(6)} b {words(6)} c", f"the reasoning says '{words(6)}' at 3 places"),
        (f"{words(5)} a {words(5)} b {words(5)} c d", None),
        (f"{words(6)} a {words(6)} b c d e", None),
        (f"{words(14)} red, Red RED", "the reasoning says 'red' 3 times in a row"),
        (f"{words(14)} red red blue red", None),
    ],
)
def test_a_repetition_is_12_words_3_times_in_a_row_or_6_words_at_3_places(text, found):
    assert failing(record(reasoning=text)).get("repetition") == found


COMMON_WORDS = """
the and are has have had with without its his her their this that these those but not was were for from into than then
them they more less most least very much many make makes made change changed changes instead same one two some any all
only just also there show shows shown image picture photo add added adds remove removed replace replaced object
different other similar like look looks
"""


def test_common_words_and_short_ones_are_not_salient():
    assert salient(COMMON_WORDS + " is a up no it") == []
    assert salient("The RED tie, unlike allover shorts") == [
        "red",
        "tie",
        "unlike",
        "allover",
        "shorts",
    ]


def test_salient_words_are_compared_by_their_stem():
    assert not failing(record("is sleeveless", conclusion="A grey dress with long sleeves."))
    assert not failing(
        record("has more of it", conclusion="A blue dress.")
    )  # no salient word to look for
    assert failing(record("is red", conclusion="A blue dress."))


@pytest.mark.parametrize(
    "text",
    [
        "remove the red belt",
        "has no buttons",
        "without stripes, dots and lace",
        "is less formal",
        "Not sleeveless; it has a grey print",
        "is grey instead of blue",
        "remove the hood and make it knee-length",
    ],
)
def test_what_is_to_go_is_not_looked_for(text):
    assert not failing(record(text))


@pytest.mark.parametrize(
    "text", ["is blue without sleeves", "no sleeves and is blue", "remove the print, add a hood"]
)
def test_what_is_to_come_is_looked_for_beside_what_is_to_go(text):
    assert list(failing(record(text))) == ["salient_word"]


@pytest.mark.parametrize(
    ("confidence", "passes"), [(0.71, True), (1, True), (0.7, False), (0, False), ("1", False)]
)
def test_the_verifier_has_to_be_confident(confidence, passes):
    verified = replace(record(), teacher={"model": "m", "confidence": confidence})
    assert list(failing(verified)) == ([] if passes else ["verifier"])
    assert not failing(replace(record(), teacher={"model": "m"}))  # nobody asked a verifier


def test_the_same_answer_to_the_same_query_is_a_duplicate():
    one = record()
    same = record("Is solid grey, with sleeves!", id="1", conclusion=CONCLUSION.lower())
    other = record("is solid grey with long sleeves", id="2")
    assert duplicates([one, same, other]) == [(same, one)]


def test_real_chains_pass(shared_data):
    root = shared_data / "wardrobe"
    chained = []
    for split in ("train", "val"):
        for benchmark in load_benchmark("fashioniq", root, split):
            file = root / "chains" / f"chains.{benchmark.category}.{split}.jsonl"
            chained += attach_chains(benchmark.records, file)
    assert len(chained) == 48
    assert {one.source + one.id: failing(one) for one in chained if failing(one)} == {}
