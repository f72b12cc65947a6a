"""Chain files: every line finds its record, and one that finds none or several is refused."""

import json

import pytest

from cir_cot.data.chain_files import attach_chains
from cir_cot.errors import InputError
from cir_cot.records import Cot, Record

GOOD = {"id": "1", "reference": "a", "text": "t", "targets": ["b"]}
COT = {"caption": "c", "reasoning": "r", "conclusion": "d"}


def lines(path, *objects):
    path.write_text("".join(json.dumps(obj) + "\n" for obj in objects))
    return path


QUERIES = [
    Record("0", "a", "t", ("b",)),
    Record("1", "a", "u", ("c", "d")),
    Record("0", "z", "t", ("b",)),
]
PAIR = {"reference": "a", "target": "d", "captions": ["x", "y"], **COT}
LINE = GOOD | {"id": "0", "cot": COT, "teacher": {"model": "m"}}


def test_chains_are_attached_by_id_and_by_pair(tmp_path):
    attached = attach_chains(
        QUERIES, lines(tmp_path / "c.jsonl", PAIR, LINE, LINE | {"reference": "z", "cot": COT})
    )
    assert [record.cot for record in attached] == [Cot("c", "r", "d")] * 3
    assert [record.teacher for record in attached] == [{"model": "m"}, None, {"model": "m"}]
    assert [record.text for record in attached] == ["t", "u", "t"]
    alone = attach_chains(QUERIES, lines(tmp_path / "one.jsonl", PAIR))
    assert [record.cot is None for record in alone] == [True, False, True]


BAD_CHAINS = {
    "another query": (LINE | {"reference": "q"}, "no records have ('0', 'q')"),
    "another pair": (PAIR | {"target": "q"}, "no records have ('a', 'q')"),
    "twice": (PAIR | {"target": "c"}, "record '1' already has the chain of line 1"),
    "null": (GOOD | {"cot": None}, "'cot' is null"),
    "a part missing": (
        {"reference": "a", "target": "b", "caption": "c"},
        "key 'reasoning' is missing",
    ),
    "unknown key": (PAIR | {"target": "b", "answer": ""}, "unknown key 'answer'"),
    "number": (PAIR | {"target": "b", "caption": 1}, "'caption' must be a string"),
}


@pytest.mark.parametrize(("line", "message"), BAD_CHAINS.values(), ids=BAD_CHAINS)
def test_a_chain_that_belongs_to_no_record_is_refused(tmp_path, line, message):
    with pytest.raises(InputError, match="c.jsonl:2: ") as error:
        attach_chains(QUERIES, lines(tmp_path / "c.jsonl", PAIR, line))
    assert message in str(error.value)


def test_a_pair_of_several_records_is_refused(tmp_path):
    twins = [Record("0", "a", "t", ("d",)), Record("1", "a", "u", ("d",))]
    with pytest.raises(InputError, match="c.jsonl:1: 2 records have"):
        attach_chains(twins, lines(tmp_path / "c.jsonl", PAIR))
