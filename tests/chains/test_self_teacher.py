"""Self-taught chains: which drawn chain is kept, and the job that draws them with a trained retriever."""

import numpy as np
import pytest
import torch
from annotation_job import QUARANTINE, beside, lines, refusal, summary
from tiny_training import records, tiny_head, write_dataset

from cir_cot.chains import self_teacher
from cir_cot.chains.self_teacher import Drawn, Gallery, choose, judged, refusal_reason
from cir_cot.cli import DONE, PROBLEMS
from cir_cot.heads.base import save_retriever
from cir_cot.heads.cot import CotRetriever
from cir_cot.prompts import cot_to_text
from cir_cot.records import Cot, Record, read_records
from cir_cot.retriever import QueryOutput
from cir_cot.scripts.data_gen import annotate

# Chains that pass the filters; the first is the shortest.
LONG = "the bar changes its colour as the text asks, and all the rest of the picture stays as it is"
WORDS = ("", " now", " here now", " still here now")


def drawn(rank, words=1, problem=""):
    return Drawn("", Cot("a b c", "d " * words, "e"), rank, problem)


def test_the_best_rank_is_kept_and_the_shortest_of_equals():
    long, short, worse = drawn(2, 9), drawn(2, 3), drawn(4, 1)
    assert choose([worse, long, short], 5) is short
    assert choose([long, drawn(1, 20)], 5).rank == 1
    assert choose([drawn(1, 1, "length: 1 word"), long], 5) is long


def test_a_chain_must_rank_the_target_better_than_none_or_first_as_before():
    assert choose([drawn(3), drawn(4)], 3) is None
    assert choose([drawn(1, 9), drawn(1, 2), drawn(2, 1)], 1).length == drawn(1, 2).length
    assert choose([drawn(2)], 1) is None
    assert choose([drawn(4), drawn(3)], 3, keep_better=False).rank == 3
    assert choose([drawn(1, 1, "blank: x")], 3, keep_better=False) is None


def test_the_reason_names_the_filter_or_the_ranks():
    assert refusal_reason([drawn(1, 1, "blank: x"), drawn(1, 1, "tags: y")], 3) == "blank: x"
    ranks = refusal_reason([drawn(9), drawn(1, 1, "tags: y"), drawn(7)], 6)
    assert ranks == "rank: the target is at 7 with the best chain and at 6 without one"


def test_filters_apply_but_that_of_length():
    record = Record("q", "a", "make it red", ("b",))
    short = cot_to_text(Cot("a blue bar", "bar: red", "a red bar"))
    loop = cot_to_text(Cot("a blue bar", "bar red bar red bar red bar red", "a red bar"))
    assert judged(record, short, "", 1).problem == ""
    assert judged(record, loop, "", 1).problem.startswith("repetition: ")
    assert judged(record, short, "cut", 1).problem == "form: cut"


def test_ranks_count_ties_against_the_target_and_no_other_target():
    vectors = np.eye(4, dtype=np.float32)
    vectors[3] = vectors[1]
    gallery = Gallery({"a": 0, "b": 1, "c": 2, "d": 3}, vectors)
    queries = torch.tensor([[0.5, 0.9, 0.1, 0], [0.9, 0.1, 0.2, 0]])
    assert gallery.ranks(Record("q", "a", "x", ("b",)), queries) == [2, 4]
    assert gallery.ranks(Record("q", "a", "x", ("c", "a")), queries) == [3, 1]


@pytest.fixture
def place(tmp_path):
    """A dataset of eight queries, and a saved chain head with random weights."""
    write_dataset(tmp_path / "data", records(8))
    save_retriever(tiny_head(lora=False, max_new_tokens=16), tmp_path / "model")
    return tmp_path


def command(place, *more, split="train"):
    where = ["--benchmark", "folder", "--root", str(place / "data"), "--split", split]
    model = ["--teacher", "self", "--model", str(place / "model"), "--dtype", "float32"]
    return [*where, *model, "--samples", "3", "--out", str(place / "chains.jsonl"), *more]


def write_well(monkeypatch):
    """Have the retriever draw chains that pass the filters; it reads them itself."""

    def sample(head, images, texts, sampling, reading="full"):
        cots = []
        for text, seed in zip(texts, sampling.seeds, strict=True):
            added = WORDS[seed % len(WORDS)]
            cots.append(Cot("a picture" + added, LONG + added, f"{text}{added}"))
        vectors = head.embed_with(images, texts, cots).embeddings
        return QueryOutput(vectors, [cot_to_text(cot) for cot in cots], [""] * len(cots))

    monkeypatch.setattr(CotRetriever, "sample_query", sample)


def test_chains_of_a_model_that_writes_at_random_are_quarantined_with_the_reason(place):
    assert annotate.main(command(place, "--batch-size", "3")) == PROBLEMS
    assert not (place / "chains.jsonl").read_text()
    failed = lines(beside(place / "chains.jsonl", QUARANTINE))
    assert [row["id"] for row in failed] == [str(number) for number in range(8)]
    assert all(row["reason"].startswith("form: ") and row["attempts"] == 3 for row in failed)
    counts = summary(place / "chains.jsonl")
    assert (counts["total"], counts["quarantined"], counts["calls"]) == (8, 8, 24)
    assert counts["prompt_tokens"] > 0
    assert counts["completion_tokens"] > 0


def test_kept_chains_rank_better_and_do_not_depend_on_groups(place, monkeypatch):
    write_well(monkeypatch)
    out = place / "chains.jsonl"
    assert annotate.main(command(place)) == PROBLEMS
    kept = read_records(out)
    failed = lines(beside(out, QUARANTINE))
    assert kept
    assert failed
    assert len(kept) + len(failed) == 8
    assert all(row["reason"].startswith("rank: ") for row in failed)
    for record in kept:
        facts = record.teacher
        assert facts["rank"] < facts["rank_without"] or facts["rank"] == 1
        assert facts["samples"] == 3
    whole = out.read_text()
    for path in place.glob("chains.jsonl*"):
        path.unlink()
    assert annotate.main(command(place, "--batch-size", "3")) == PROBLEMS
    assert out.read_text() == whole


def test_without_the_pair_aware_rule_every_query_keeps_a_chain(place, monkeypatch):
    write_well(monkeypatch)
    assert annotate.main(command(place, "--no-keep-better")) == DONE
    assert len(read_records(place / "chains.jsonl")) == 8


def test_an_interrupted_job_continues_and_ends_as_an_uninterrupted_one(place, monkeypatch):
    write_well(monkeypatch)
    argv = command(place, "--batch-size", "2", "--no-keep-better")
    out = place / "chains.jsonl"
    assert annotate.main(argv) == DONE
    whole = out.read_text()
    # What a kill in the middle of the fourth line leaves.
    rows = whole.splitlines(keepends=True)
    out.write_text("".join(rows[:3]) + rows[3][:40])
    asked = []
    plain = self_teacher.SelfTeacher._annotate
    monkeypatch.setattr(
        self_teacher.SelfTeacher,
        "_annotate",
        lambda self, job, group, *rest: (
            asked.extend(task.name for task in group) or plain(self, job, group, *rest)
        ),
    )
    assert annotate.main(argv) == DONE
    assert asked == ["3", "4", "5", "6", "7"]
    assert out.read_text() == whole


def test_a_budget_ends_the_job_and_a_larger_one_continues_it(place, capsys):
    argv = command(place, "--batch-size", "4")
    assert annotate.main([*argv, "--max-tokens", "1500"]) == PROBLEMS
    assert "the budget is spent" in capsys.readouterr().err
    counts = summary(place / "chains.jsonl")
    assert 0 < counts["quarantined"] < 8
    assert counts["prompt_tokens"] + counts["completion_tokens"] <= 1500
    assert annotate.main(argv) == PROBLEMS
    assert summary(place / "chains.jsonl")["quarantined"] == 8


def test_what_it_cannot_do_is_refused(place, capsys):
    assert "training splits, not 'val'" in refusal(capsys, command(place, split="val"))
    assert "--verify is for other teachers" in refusal(capsys, command(place, "--verify"))
    assert "--see-target is for" in refusal(capsys, command(place, "--see-target"))
    assert "--estimate is for" in refusal(capsys, command(place, "--estimate"))
    assert "above 0, such as 0.7" in refusal(capsys, command(place, "--temperature", "0"))
