"""Rows of a review: what is shown, what is decided, by several people at once, and what training makes of it."""

import json
import multiprocessing
from dataclasses import asdict

import pytest
from conftest_review import command, dataset_records, queue_of

from cir_cot.data.chain_files import attach_chains
from cir_cot.errors import InputError
from cir_cot.records import Cot
from cir_cot.review import queue as module
from cir_cot.scripts.data_gen import review

EDITED = Cot("a picture", "the bar changes, the ground stays", "a ground with a red bar")


def test_rows_have_a_chain_or_a_reason(folder):
    queue = queue_of(folder)
    # Of nine records three have no chain; one of them was quarantined.
    assert [row.record.id for row in queue.rows] == ["0", "1", "2", "3", "4", "6", "7"]
    said = {"reason": "no answer", "answer": "I see <b>a bar</b>"}
    assert queue.row(2)["quarantined"] == said
    assert queue.row(0)["quarantined"] is None
    shown = queue.row(1)
    assert set(shown["chains"]["A"]["findings"]) >= {"refusal", "target_image"}
    assert shown["chains"]["A"]["teacher"] == "teacher/a"
    assert shown["decision"] is None
    two = queue_of(folder, "ann", "--second", folder / "second.jsonl")
    assert list(two.row(0)["chains"]) == ["A", "B"]
    assert [chain["seen_target"] for chain in two.row(0)["chains"].values()] == [False, True]


def test_queues_by_state(folder):
    queue = queue_of(folder)
    assert queue.page("all", 0, 3) == ([0, 1, 2], 3)
    assert queue.page("all", 3, 9) == ([3, 4, 5, 6], 7)
    assert queue.page("quarantined", 0, 9) == ([2], 7)
    assert 1 in queue.page("flagged", 0, 9)[0]
    queue.decide(0, "accept", "A", None)
    queue.decide(3, "again", "A", None)
    assert queue.page("open", 0, 2) == ([1, 2], 3)
    assert queue.page("accept", 0, 9) == ([0], 7)
    assert queue.counts() == {
        "accept": 1, "edit": 0, "reject": 0, "again": 1, "open": 5, "quarantined": 1, "all": 7,
    }  # fmt: skip
    with pytest.raises(InputError, match="is none of open, independent, all"):
        queue.page("later", 0, 1)


def test_a_request_for_flagged_rows_looks_at_so_many_at_most(folder, monkeypatch):
    monkeypatch.setattr(module, "SCANNED", 1)
    queue = queue_of(folder)
    assert queue.page("flagged", 4, 9)[1] == 5
    looked = queue.page("flagged", 1, 9)
    assert looked == ([1], 2)


def test_decisions_are_what_training_reads(folder):
    queue = queue_of(folder)
    queue.decide(0, "accept", "A", None)
    queue.decide(1, "edit", "A", asdict(EDITED))
    queue.decide(2, "edit", "", asdict(EDITED))  # a row without any chain is written by hand
    queue.decide(3, "reject", "A", None)
    queue.decide(4, "again", "A", None)
    queue.decide(4, "accept", "A", None)  # the last one counts
    chains = attach_chains(dataset_records(folder), folder / "chains.jsonl")
    found = {row.id: row for row in attach_chains(chains, folder / "decisions.jsonl")}
    written = {row.id: row for row in chains}
    assert found["0"].cot == written["0"].cot
    assert found["1"].cot == found["2"].cot == EDITED
    assert found["3"].cot is None
    assert found["4"].cot == written["4"].cot
    assert found["6"].cot == written["6"].cot
    assert queue.row(1)["decision"]["reviewer"] == "ann"


def test_what_cannot_be_decided_is_named_and_nothing_is_written(folder):
    queue = queue_of(folder)
    for number, verdict, choice, cot, words in (
        (7, "accept", "A", None, "row 7 is not one of 7"),
        (0, "maybe", "A", None, "'maybe' is none of accept, edit"),
        (0, "accept", "B", None, "chain 'B' is not there"),
        (2, "accept", "", None, "is not there"),
        (0, "edit", "A", {"caption": "a"}, "reasoning"),
        (0, "edit", "A", asdict(Cot("a", "b", "<ret>")), "<ret>"),
        (0, "edit", "A", asdict(Cot("a", "b", "x" * 20_000)), "edited chain"),
    ):
        with pytest.raises(InputError, match=words):
            queue.decide(number, verdict, choice, cot)
    assert not (folder / "decisions.jsonl").exists()


def decide_many(folder, reviewer, rows):
    queue = queue_of(folder, reviewer)
    for number in rows:
        queue.decide(number, "accept" if reviewer == "ann" else "reject", "A", None)


def test_two_people_at_once_lose_nothing(folder):
    context = multiprocessing.get_context("spawn")
    work = [0, 1, 3, 4, 5, 6] * 5
    people = [
        context.Process(target=decide_many, args=(folder, name, work)) for name in ("ann", "bob")
    ]
    for person in people:
        person.start()
    for person in people:
        person.join()
    lines = [json.loads(line) for line in (folder / "decisions.jsonl").read_text().splitlines()]
    assert len(lines) == 60
    assert sum(line["reviewer"] == "bob" for line in lines) == 30
    queue = queue_of(folder)
    found = queue.agreement()
    assert found["rows"] == 6
    assert found["alpha"] < 0
    assert found["kappa"] == {"ann, bob": 0.0}


def test_which_teacher_is_kept(folder):
    queue = queue_of(folder, "ann", "--second", folder / "second.jsonl")
    queue.decide(0, "accept", "B", None)
    queue.decide(1, "accept", "B", None)
    queue.decide(3, "accept", "A", None)  # has one chain only
    assert queue.agreement()["chosen"] == {"B": 2}
    kept = attach_chains(dataset_records(folder), folder / "decisions.jsonl")[0]
    assert kept.teacher == {"model": "teacher/b", "seen_target": True}


def test_decisions_about_other_rows_and_files_without_chains_are_refused(folder):
    queue_of(folder).decide(0, "reject", "A", None)
    path = folder / "decisions.jsonl"
    path.write_text(path.read_text().replace('"id": "0"', '"id": "99"'))
    with pytest.raises(InputError, match="no row of this review"):
        queue_of(folder)
    (folder / "chains.jsonl").write_text("")
    (folder / "chains.jsonl.quarantine.jsonl").unlink()
    with pytest.raises(InputError, match="no chain of folder train to review"):
        review.main(command(folder))


def test_reviewers_who_keep_other_chains_do_not_agree(folder):
    second = ("--second", folder / "second.jsonl")
    ann = queue_of(folder, "ann", *second)
    bob = queue_of(folder, "bob", *second)
    for number, choice in ((0, "A"), (1, "B")):
        ann.decide(number, "accept", choice, None)
        bob.decide(number, "accept", "BA"["AB".index(choice)], None)
    # Both accept both rows, and never the same chain.
    assert bob.agreement()["kappa"] == {"ann, bob": -1.0}
    assert bob.agreement()["alpha"] == pytest.approx(-0.5)


def test_an_independent_judgement_sees_no_other(folder):
    ann = queue_of(folder, "ann")
    ann.decide(0, "reject", "", None)
    bob = queue_of(folder, "bob")
    assert bob.page("open", 0, 9)[0][0] == 1
    assert bob.page("independent", 0, 2)[0] == [0, 1]
    assert bob.row(0, "independent")["decision"] is None
    assert bob.row(0)["decision"]["reviewer"] == "ann"
    bob.decide(0, "accept", "A", None)
    ann.refresh()
    assert ann.row(0, "independent")["decision"]["reviewer"] == "ann"
    assert bob.page("independent", 0, 1)[0] == [1]


def test_a_review_that_began_later_may_hold_more_rows(folder):
    chains = folder / "chains.jsonl"
    complete = chains.read_text()
    chains.write_text("".join(complete.splitlines(keepends=True)[:2]))
    early = queue_of(folder)
    chains.write_text(complete)
    late = queue_of(folder, "bob")
    late.decide(6, "reject", "", None)
    early.decide(0, "accept", "A", None)
    late.refresh()
    assert (len(early.decided), len(late.decided)) == (1, 2)
