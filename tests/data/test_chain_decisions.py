"""Decisions of a review: the file, several writers at once, and what attaching it does."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import pytest

from cir_cot.data.chain_decisions import Decision, DecisionFile, last_decisions
from cir_cot.data.chain_files import attach_chains
from cir_cot.errors import InputError
from cir_cot.records import Cot, Record, write_records

OLD = Cot("a red dress", "it turns blue", "a blue dress")
NEW = Cot("a red dress", "it turns blue and long", "a long blue dress")


def decision(number=0, verdict="accept", cot=OLD, **facts):
    values = {"choice": "A", "teacher": {"model": "m"}, "reviewer": "ann", "time": "t"} | facts
    return Decision(f"q{number}", "r", verdict, cot=cot, **values)


def test_the_last_decision_of_a_row_wins_and_rejected_rows_have_no_chain(tmp_path):
    records = [Record(f"q{number}", "r", "is blue", ("t",)) for number in range(5)]
    write_records(tmp_path / "chains.jsonl", [Record(r.id, "r", "", ("t",), OLD) for r in records])
    file = DecisionFile(tmp_path / "decisions.jsonl")
    file.append(decision(0, "reject", None))
    file.append(decision(0, "edit", NEW))
    file.append(decision(1, "accept"))
    file.append(decision(1, "reject", None))
    file.append(decision(2, "again", None))
    file.append(decision(3, "accept"))

    chained = attach_chains(records, tmp_path / "chains.jsonl")
    reviewed = attach_chains(chained, file.path)
    assert [record.cot for record in reviewed] == [NEW, None, None, OLD, OLD]
    alone = attach_chains(records, file.path)
    assert [record.cot for record in alone] == [NEW, None, None, OLD, None]
    assert alone[0].teacher == {"model": "m"}
    assert last_decisions(file.path)["q1", "r"].decision == "reject"


def test_many_writers_lose_nothing_and_each_reads_the_others(tmp_path):
    path = tmp_path / "decisions.jsonl"
    reader = DecisionFile(path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: DecisionFile(path).append(decision(n)), range(64)))
    assert {one.id for one in reader.new()} == {f"q{n}" for n in range(64)}
    DecisionFile(path).append(decision(99))
    assert [one.id for one in reader.new()] == ["q99"]


def test_a_line_that_a_killed_process_left_incomplete_is_cut_off(tmp_path):
    path = tmp_path / "decisions.jsonl"
    DecisionFile(path).append(decision(1))
    with path.open("a") as file:
        file.write(json.dumps(asdict(decision(2)))[:40])
    assert [one.id for one in DecisionFile(path).new()] == ["q1"]
    DecisionFile(path).append(decision(3))
    assert [one.id for one in DecisionFile(path).new()] == ["q1", "q3"]


def test_a_foreign_file_stays_as_it_is(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("my notes")
    with pytest.raises(InputError, match="another --out"):
        DecisionFile(path).append(decision(1))
    assert path.read_text() == "my notes"


@pytest.mark.parametrize(
    ("facts", "what"),
    [
        ({"decision": "maybe"}, "is none of accept"),
        ({"decision": "reject"}, "must hold a chain"),
        ({"cot": None}, "must hold a chain"),
        ({"reviewer": " "}, "is blank"),
        ({"teacher": 3}, "an object or null"),
    ],
)
def test_bad_decisions_are_named(tmp_path, facts, what):
    path = tmp_path / "decisions.jsonl"
    path.write_text(json.dumps(asdict(decision()) | facts) + "\n")
    with pytest.raises(InputError, match=what):
        last_decisions(path)
    with pytest.raises(InputError, match="decisions.jsonl:1"):
        attach_chains([Record("q0", "r", "is blue", ("t",))], path)
