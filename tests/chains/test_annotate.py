"""The job: every row ends once, whatever is killed, full, locked, changed; its files; the whole command."""

import asyncio
import json
import math
import os
import random
import re
import selectors
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import fake_server
import pytest
from annotation_job import (
    ENV,
    QUARANTINE,
    SUMMARY,
    beside,
    command,
    lines,
    refusal,
    summary,
    write_dataset,
)
from fake_server import Reply, Server, answer, edit, good, pictures, stage
from PIL import Image

from cir_cot.chains.annotate import annotate as annotate_records
from cir_cot.chains.annotate import annotate_tasks
from cir_cot.chains.budget import Budget
from cir_cot.chains.job import Job, quarantine_reasons
from cir_cot.chains.journal import Journal, chain_of
from cir_cot.chains.openai_teacher import OpenAITeacher
from cir_cot.chains.teacher import Answer, Plan
from cir_cot.cli import PROBLEMS
from cir_cot.data import load_benchmark
from cir_cot.data.chain_decisions import Decision, DecisionFile
from cir_cot.errors import InputError
from cir_cot.images import ImageStore
from cir_cot.models.tiny_qwen import write_tiny
from cir_cot.records import Cot, Record, read_records, record_from_dict, write_records
from cir_cot.scripts.data_gen import annotate, check
from cir_cot.scripts.train import sft

COUNTS = [
    "total",
    "accepted",
    "repaired",
    "quarantined",
    "calls",
    "prompt_tokens",
    "completion_tokens",
    "seconds",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "set", 20)


# A whole job.


@pytest.mark.parametrize("stages", ["separate", "joint"])
def test_a_job_writes_records_that_training_takes_and_a_second_run_asks_nothing(
    data, tmp_path, capsys, stages
):
    out = tmp_path / "chains.jsonl"
    with Server(good) as server:
        argv = command(data, out, server.url, "--stages", stages, "--json")
        assert annotate.main(argv) == 0
        said = json.loads(capsys.readouterr().out)
        assert annotate.main(argv) == 0
        capsys.readouterr()
        calls = 20 * (3 if stages == "separate" else 1)
        assert server.requests == calls
    assert list(said) == COUNTS
    assert said["seconds"] > 0
    assert [said[key] for key in COUNTS[:7]] == [20, 20, 0, 0, calls, 100 * calls, 10 * calls]
    assert {key: summary(out)[key] for key in COUNTS[:7]} == {key: said[key] for key in COUNTS[:7]}
    made = {record.id: record for record in read_records(out)}
    for record in read_records(data / "records.train.jsonl"):
        chained = made.pop(record.id)
        assert (chained.reference, chained.text, chained.targets) == (
            record.reference,
            record.text,
            record.targets,
        )
        assert record.text in chained.cot.conclusion
        assert list(chained.teacher) == ["model", "prompts", "seen_target", "key"]
    assert made == {}
    assert lines(beside(out, QUARANTINE)) == []
    where = ["--benchmark", "folder", "--root", str(data), "--split", "train"]
    assert check.main([*where, "--chains", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parts"]["chains"] == {"chains": 20, "without": 0}


LEAK = "The cut stays the same and the cloth becomes wool, as was asked for; the target image shows it, so it is sure."
BAD_ROWS = {  # row -> (what the server does to it, the reason that must be told)
    1: (lambda r: Reply({"error": "down"}, 500), "http 500"),
    3: (lambda r: Reply(answer("x" * 99).body, cut=True), "connection lost"),
    4: (lambda r: Reply(b""), "not an answer"),
    5: (lambda r: Reply(b'{"choices": [{"mess'), "not an answer"),
    6: (lambda r: answer("x " * 5_000_000), "too large"),
    7: (lambda r: answer("<caption>all in one</caption>"), "json"),
    8: (lambda r: answer('{"caption": "a", "reasoning": "b"'), "json"),
    9: (lambda r: answer('{"caption": "a", "reasoning": "b"}'), "json"),
    10: (lambda r: fault(r, reasoning=LEAK), "target_image"),
    11: (lambda r: fault(r, reasoning="wool number eleven " * 12), "repetition"),
    12: (lambda r: answer(None, refusal="I'm sorry, but I cannot do this."), "json"),
    13: (lambda r: fault(r, conclusion="I cannot describe wool of people."), "refusal"),
    14: (lambda r: Reply({"error": "too long"}, 400), "http 400"),
    15: (lambda r: fault(r, caption="A garment <ret>"), "tags"),
}


def fault(request: dict, **parts: str) -> Reply:
    chain = json.loads(good(request).body["choices"][0]["message"]["content"])
    return answer(json.dumps(chain | parts))


def test_with_a_hostile_server_every_row_ends_with_the_right_reason(data, tmp_path, capsys):
    out, seen = tmp_path / "chains.jsonl", {}

    def script(request: dict) -> Reply:
        row = int(edit(request).rpartition(" ")[2])
        seen[row] = seen.get(row, 0) + 1
        if row == 16 and seen[row] == 1:
            return Reply({}, 429, {"retry-after": "0.2"})
        if row == 17 and seen[row] == 1:
            return Reply({}, 500)
        if row == 18 and seen[row] == 1:
            return fault(request, reasoning="Wool.")
        return BAD_ROWS[row][0](request) if row in BAD_ROWS else good(request)

    with Server(script) as server:
        argv = command(data, out, server.url, "--stages", "joint", "--retries", "1")
        assert annotate.main(argv) == 1
        asked = server.requests
        capsys.readouterr()
        assert annotate.main(argv) == 1  # quarantined rows are not tried again
        assert server.requests == asked
    told = capsys.readouterr().err
    assert "14 rows have no chain (json 4, not an answer 2, " in told
    assert str(beside(out, QUARANTINE)) in told
    quarantine = {line["id"]: line for line in lines(beside(out, QUARANTINE))}
    assert all(list(line) == ["id", "reason", "attempts", "raw"] for line in quarantine.values())
    expected = {f"q{row}": reason for row, (_, reason) in BAD_ROWS.items()}
    assert {
        name: line["reason"].partition(":")[0][: len(expected[name])]
        for name, line in quarantine.items()
    } == expected
    assert {record.id for record in read_records(out)} == {f"q{row}" for row in range(20)} - set(
        quarantine
    )
    assert {name: quarantine[name]["attempts"] for name in ("q1", "q14", "q7")} == {
        "q1": 2,
        "q14": 1,
        "q7": 3,
    }
    assert max(len(line["raw"]) for line in quarantine.values()) <= 2000
    counts = summary(out)
    assert [counts[key] for key in COUNTS[:4]] == [20, 6, 1, 14]
    assert counts["calls"] == asked == sum(seen.values())


def test_a_server_that_hangs_is_left_after_the_timeout(data, tmp_path):
    out = tmp_path / "chains.jsonl"
    with Server(lambda request: Reply(hang=True)) as server:
        argv = command(data, out, server.url, "--limit", "1", "--retries", "1", "--timeout", "0.5")
        assert annotate.main(argv) == 1
        assert server.requests == 2
    (line,) = lines(beside(out, QUARANTINE))
    assert line == {
        "id": "q0",
        "reason": "timeout: no answer within 0.5 s",
        "attempts": 2,
        "raw": "",
    }


def test_a_picture_that_cannot_be_read_is_a_row_in_quarantine(tmp_path):
    root, out = write_dataset(tmp_path / "set", 3), tmp_path / "chains.jsonl"
    (root / "images" / "p001.png").write_bytes(b"no picture")
    with Server(good) as server:
        assert annotate.main(command(root, out, server.url)) == 1
    (line,) = lines(beside(out, QUARANTINE))
    assert line["id"] == "q1"
    assert line["reason"].startswith("picture: ")
    assert summary(out)["accepted"] == 2


def test_rows_in_quarantine_are_asked_again_where_that_is_wanted(tmp_path):
    root, out = write_dataset(tmp_path / "set", 3), tmp_path / "chains.jsonl"
    for name in ("p001", "p002"):
        (root / "images" / f"{name}.png").write_bytes(b"no picture")
    with Server(good) as server:
        argv = command(root, out, server.url)
        assert annotate.main(argv) == 1
        Image.new("RGB", (8, 8)).save(root / "images" / "p001.png")
        assert annotate.main(argv) == 1
        assert summary(out)["accepted"] == 1, "not asked again by itself"
        assert annotate.main([*argv, "--retry-quarantine"]) == 1
        counts = summary(out)
        assert (counts["accepted"], counts["quarantined"]) == (2, 1)
        # The history stays, and each row has one chain.
        assert [line["id"] for line in lines(beside(out, QUARANTINE))].count("q2") == 2
        assert sorted(line["id"] for line in lines(out)) == ["q0", "q1"]
        assert quarantine_reasons(out) == [("picture", 1)]
        Image.new("RGB", (8, 8)).save(root / "images" / "p002.png")
        assert annotate.main([*argv, "--retry-quarantine"]) == 0
    assert len(lines(out)) == 3
    assert quarantine_reasons(out) == []


def test_a_budget_stops_the_job_and_a_larger_one_goes_on(data, tmp_path, capsys):
    out = tmp_path / "chains.jsonl"
    with Server(good) as server:
        argv = command(
            data, out, server.url, "--concurrency", "2", "--price", "1", "10", "--max-cost"
        )
        assert annotate.main([*argv, "0.009"]) == PROBLEMS
        said, first = capsys.readouterr(), summary(out)
        assert "the budget is spent" in said.err
        assert 0 < first["accepted"] < 20
        assert (first["prompt_tokens"] + 10 * first["completion_tokens"]) / 1e6 <= 0.009
        assert annotate.main([*argv, "0.009"]) == PROBLEMS  # the job's budget, not the run's
        second = summary(out)
        assert (second["prompt_tokens"] + 10 * second["completion_tokens"]) / 1e6 <= 0.009
        assert annotate.main([*argv, "1"]) == 0
    assert summary(out)["accepted"] == 20
    assert summary(out)["calls"] == server.requests


def test_an_estimate_asks_nobody(data, tmp_path, capsys):
    argv = command(data, tmp_path / "chains.jsonl", "", "--estimate", "--price", "1", "2", "--json")
    assert annotate.main([*argv, "--verify"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["rows"], facts["calls"]) == (20, 80)
    assert facts["cost"] == pytest.approx(
        (facts["prompt_tokens"] + 2 * facts["completion_tokens"]) / 1e6, abs=0.01
    )
    assert annotate.main([*argv, "--stages", "joint", "--limit", "5"]) == 0
    assert json.loads(capsys.readouterr().out)["calls"] == 5
    assert not (tmp_path / "chains.jsonl").exists()


def test_verification_and_the_target_are_part_of_the_record(data, tmp_path):
    out = tmp_path / "chains.jsonl"
    with Server(good, keep=True) as server:
        argv = command(
            data, out, server.url, "--limit", "3", "--see-target", "--verify", "--verifier", "judge"
        )
        assert annotate.main(argv) == 0
    assert [record.teacher["confidence"] for record in read_records(out)] == [0.9] * 3
    assert [record.teacher["seen_target"] for record in read_records(out)] == [True] * 3
    asked = [(request["model"], stage(request), len(pictures(request))) for request in server.seen]
    assert sorted(asked)[:3] == [("judge", "score", 2)] * 3
    assert asked.count(("m", "conclusion", 2)) == 3


class SkippedTime(asyncio.SelectorEventLoop):
    """A loop on which sleeping takes no time: its clock jumps to whatever comes next. Threads run at once."""

    def __init__(self):
        super().__init__(waiting := selectors.SelectSelector())
        self.skipped, look = 0.0, waiting.select
        waiting.select = lambda timeout=None: look(0) or self.skip(timeout or 0.0)

    def skip(self, seconds: float) -> list:
        self.skipped += seconds
        return []

    def time(self) -> float:
        return self.skipped

    def run_in_executor(self, executor, work, *arguments):
        done = self.create_future()
        done.set_result(work(*arguments))
        return done


class Sleeper:
    """A teacher whose answers are good and take log-normal times."""

    model = "sleeper"

    def __init__(self):
        self.rng, self.slept = random.Random(0), 0.0
        self.chain = list(fake_server.good_chain("is made of wool number 1", b"").values())

    async def ask(self, turns, max_tokens, schema=None) -> Answer:
        seconds = self.rng.lognormvariate(math.log(0.2), 0.67)
        self.slept += seconds
        await asyncio.sleep(seconds)
        return Answer(self.chain[len(turns) // 2 - 1])

    async def close(self) -> None:
        pass


def test_no_worker_waits_for_another(tmp_path):
    """With 16 in flight the job takes the sum of all latencies over 16, and what the last rows take."""
    root, out = write_dataset(tmp_path / "set", 500), tmp_path / "chains.jsonl"
    options = annotate.parse_arguments(
        command(root, out, "http://localhost:1/v1", "--concurrency", "16")
    )
    teacher, job = Sleeper(), Job(out, {}, Budget())
    with asyncio.Runner(loop_factory=SkippedTime) as runner:
        work = annotate_tasks(
            job, options.tasks(), teacher, options.plan(), options.concurrency, lambda: None
        )
        runner.run(work)
        ideal, makespan = teacher.slept / 16, runner.get_loop().time()
    job.close()
    assert len(lines(out)) == 500
    assert ideal <= makespan <= 1.1 * ideal


def test_a_few_rows_are_annotated_from_python_and_not_asked_for_again(data, tmp_path):
    out, records = tmp_path / "chains.jsonl", read_records(data / "records.train.jsonl")[:3]
    images, plan = ImageStore(data / "images"), Plan(see_target=True)
    with Server(good) as server:
        for _ in range(2):
            teacher = OpenAITeacher("m", [server.url])
            result = annotate_records(records, images, teacher, out, plan)
        assert server.requests == 9
    assert result.stopped == ""
    assert result.counts | {"seconds": 0} == summary(out) | {"seconds": 0}
    assert (result.counts["total"], result.counts["accepted"], result.counts["calls"]) == (3, 3, 9)
    assert [record.teacher["seen_target"] for record in read_records(out)] == [True] * 3
    teacher = OpenAITeacher("m", ["http://localhost:1/v1"], temperature=0.5)
    with pytest.raises(InputError, match="temperature 0.0, now 0.5"):
        annotate_records(records, images, teacher, out, plan)


def test_a_row_without_a_target_is_refused_before_anything_is_asked(data, tmp_path):
    records = [Record("q", "p000", "is red", ())]
    teacher, out = OpenAITeacher("m", ["http://localhost:1/v1"]), tmp_path / "chains.jsonl"
    with pytest.raises(InputError, match="query 'q' has no target to show"):
        annotate_records(records, ImageStore(data / "images"), teacher, out, Plan(see_target=True))
    assert not out.exists()


# What survives.


def kill_and_rerun(root: Path, out: Path, rows: int, kills: int, seed: int) -> None:
    """Kill the job `kills` times at random moments, let it end, and compare with one that nobody killed."""
    rng, answered, concurrency = random.Random(seed), set(), 8
    again = 0

    def script(request: dict) -> Reply:
        nonlocal again
        if stage(request) == "conclusion":
            again += edit(request) in answered
            answered.add(edit(request))
        reply = good(request)
        reply.wait = 0.01
        return reply

    with Server(script) as server:
        argv = command(root, out, server.url, "--concurrency", str(concurrency))
        for kill in range(kills):
            job = subprocess.Popen(
                [sys.executable, "-m", "cir_cot.cli", "annotate", *argv], env=ENV
            )
            goal = rows * (kill + rng.random()) / kills
            while job.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") < goal):
                time.sleep(0.002)
            time.sleep(rng.random() * 0.05)
            job.send_signal(signal.SIGKILL)
            assert job.wait() == -signal.SIGKILL, "the job ended before it was killed"
            assert len(answered) - out.read_bytes().count(b"\n") <= concurrency
        assert annotate.main(argv) == 0
        assert again <= kills * concurrency
        fresh = out.with_name("fresh.jsonl")
        assert annotate.main(command(root, fresh, server.url)) == 0
    assert len(lines(out)) == rows
    assert set(out.read_text().splitlines()) == set(fresh.read_text().splitlines())
    assert summary(out)["accepted"] == rows


def test_kill_9_loses_what_was_in_flight_and_doubles_nothing(tmp_path):
    kill_and_rerun(
        write_dataset(tmp_path / "set", 40), tmp_path / "chains.jsonl", rows=40, kills=2, seed=1
    )


@pytest.mark.slow
def test_kill_9_at_ten_random_moments_of_500_rows(tmp_path):
    kill_and_rerun(
        write_dataset(tmp_path / "set", 500), tmp_path / "chains.jsonl", rows=500, kills=10, seed=2
    )


def test_ctrl_c_ends_in_one_line_and_keeps_what_is_done(data, tmp_path):
    out = tmp_path / "chains.jsonl"
    with Server(fake_server.slow(0.1, 0.1, 0)) as server:
        argv = [
            sys.executable,
            "-m",
            "cir_cot.cli",
            "annotate",
            *command(data, out, server.url, "--concurrency", "2"),
        ]
        hear = partial(
            signal.signal, signal.SIGINT, signal.SIG_DFL
        )  # a shell's background jobs ignore it
        job = subprocess.Popen(argv, env=ENV, stderr=subprocess.PIPE, text=True, preexec_fn=hear)
        while not out.exists() or not out.read_bytes():
            time.sleep(0.01)
        job.send_signal(signal.SIGINT)
        kept = f"finished rows are kept in {out}; the same command goes on"
        assert job.communicate()[1] == f"interrupted: {kept}\n"
        assert job.returncode == 130
    assert summary(out)["accepted"] == len(lines(out)) > 0


@pytest.mark.parametrize(
    ("tail", "kept"), [('{"id": "q1", "refer', 1), ("\udcff\udcfe", 1), ("", 1)]
)
def test_a_torn_last_line_is_cut_off(data, tmp_path, tail, kept):
    out = tmp_path / "chains.jsonl"
    with Server(good) as server:
        assert annotate.main(command(data, out, server.url, "--limit", str(kept))) == 0
        whole = out.read_bytes()
        out.write_bytes(whole + tail.encode("utf-8", "surrogateescape"))
        assert annotate.main(command(data, out, server.url, "--limit", "2")) == 0
        assert server.requests == 6
    assert out.read_bytes().startswith(whole)
    assert [record.id for record in read_records(out)] == ["q0", "q1"]


def test_a_whole_last_line_without_its_end_is_kept(data, tmp_path):
    out = tmp_path / "chains.jsonl"
    with Server(good) as server:
        assert annotate.main(command(data, out, server.url, "--limit", "1")) == 0
        out.write_bytes(out.read_bytes().rstrip(b"\n"))
        assert annotate.main(command(data, out, server.url, "--limit", "2")) == 0
        assert server.requests == 6
    assert [record.id for record in read_records(out)] == ["q0", "q1"]


def test_two_jobs_on_one_output_refuse_each_other(data, tmp_path, capsys):
    out = tmp_path / "chains.jsonl"
    job = Job(out, {}, Budget())
    assert "another process is writing it" in refusal(
        capsys, command(data, out, "http://localhost:1/v1")
    )
    job.close()
    Job(out, {}, Budget()).close()


def test_other_settings_on_one_output_are_refused_and_so_are_other_texts(tmp_path, capsys):
    root, out = write_dataset(tmp_path / "set", 2), tmp_path / "chains.jsonl"
    with Server(good) as server:
        assert annotate.main(command(root, out, server.url)) == 0
        error = refusal(capsys, [*command(root, out, server.url), "--temperature", "0.5"])
        assert "temperature 0.0, now 0.5" in error
        records = [
            json.loads(line) for line in (root / "records.train.jsonl").read_text().splitlines()
        ]
        records[1]["text"] = "is another text"
        write_records(
            root / "records.train.jsonl", [record_from_dict(record, "x") for record in records]
        )
        error = refusal(capsys, command(root, out, server.url))
        assert "'q1' has a chain made from another text" in error
        assert server.requests == 6


FULL = """
import resource, signal, sys
from pathlib import Path
from cir_cot.chains.journal import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
journal = Journal(Path(sys.argv[1]), lambda obj, where: obj)
for number in range(9):
    journal.append({"number": number, "text": "x" * 20})
"""


def test_a_full_disk_is_an_error_and_no_torn_line(tmp_path):
    """A limit on the size of files stands for the disk: the write that meets it is cut short."""
    path = tmp_path / "chains.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], env=ENV, capture_output=True, text=True
    )
    assert "InputError" in done.stderr
    assert "make room and run again" in done.stderr
    assert [line["number"] for line in lines(path)] == [0, 1]
    Journal(path, chain_of).close()  # its last line is whole, so nothing is looked at
    assert len(lines(path)) == 2


def test_what_other_processes_wrote_is_merged_once(tmp_path):
    out, share = tmp_path / "chains.jsonl", tmp_path / "chains.jsonl.rank1"
    first, second = Job(out, {}, Budget()), Job(share, {}, Budget())
    rows = [
        Record(f"q{n}", "r", "t", (), Cot("a", "b", "c"), teacher={"key": f"k{n}"})
        for n in range(4)
    ]
    for job, record in (
        (first, rows[0]),
        (second, rows[0]),
        (second, rows[1]),
        (second, rows[1]),
        (second, rows[2]),
    ):
        job.accept(record, True)
    first.quarantine("q8", "why", 1, "")
    for name in ("q8", "q9", "q9"):
        second.quarantine(name, "why", 1, "")
    second.budget.calls = 7
    second.close()
    share.write_bytes(share.read_bytes() + b'{"torn')
    first.merge_ranks()
    assert [record.id for record in read_records(out)] == ["q0", "q1", "q2"]
    assert [line["id"] for line in lines(beside(out, QUARANTINE))] == ["q8", "q9"]
    assert first.summary()["calls"] == 7
    first.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"chains.jsonl{part}" for part in ("", ".lock", QUARANTINE, SUMMARY)
    ]


# What is refused.

REFUSED = {
    "target on val": (["--split", "val", "--see-target"], "training splits"),
    "target on test": (["--split", "test1", "--see-target"], "training splits"),
    "no server": (["--base-url"], "expected at least one"),
    "cost without price": (["--max-cost", "3"], "--price"),
    "verifier alone": (["--verifier", "x"], "--verify"),
    "joint at home": (["--teacher", "transformers", "--stages", "joint"], "schema"),
    "no folder": (["--out", "nowhere/chains.jsonl"], "does not exist"),
    "no rows": (["--limit", "0"], "less than 1"),
    "no time": (["--timeout", "0"], "--timeout"),
    "endless time": (["--timeout", "inf"], "--timeout"),
    "no temperature": (["--temperature", "nan"], "--temperature"),
    "no price": (["--price", "1", "nan"], "prices"),
    "no proxy": (["--proxy", "localhost"], "proxy 'localhost' is no http"),
    "no address": (["--base-url", "http://localhost:99999/v1"], "base-url"),
    "a folder": (["--out", "."], "no regular file"),
    "a device": (["--out", os.devnull], "no regular file"),
}


@pytest.mark.parametrize(("more", "said"), REFUSED.values(), ids=REFUSED)
def test_unusable_arguments_end_in_one_line(data, tmp_path, capsys, more, said):
    error = refusal(
        capsys, [*command(data, tmp_path / "chains.jsonl", "http://localhost:1/v1"), *more]
    )
    assert said in error
    assert "Traceback" not in error


def test_no_server_is_a_clear_refusal(data, tmp_path, capsys):
    argv = command(data, tmp_path / "chains.jsonl", "")
    assert "pictures go to servers that are named" in refusal(capsys, argv)


def test_a_split_without_targets_cannot_be_verified(tmp_path, capsys):
    root = tmp_path / "set"
    (root / "images").mkdir(parents=True)
    (root / "gallery.train.txt").write_text("p\n")
    write_records(root / "records.train.jsonl", [Record("q", "p", "t", ())])
    assert "no target" in refusal(
        capsys, [*command(root, tmp_path / "c.jsonl", "http://localhost:1/v1"), "--verify"]
    )


# Real pictures, real models.


def wardrobe(shared_data: Path, out: Path, *more: str) -> list[str]:
    root = str(shared_data / "wardrobe")
    return [
        "--benchmark",
        "fashioniq",
        "--root",
        root,
        "--split",
        "train",
        "--out",
        str(out),
        *more,
    ]


def test_wardrobe_goes_through_http_to_a_real_tiny_model(shared_data, tmp_path):
    out, tiny = tmp_path / "chains.jsonl", write_tiny(tmp_path / "tiny")
    with Server(fake_server.TinyModel(str(tiny))) as server:
        argv = wardrobe(
            shared_data, out, "--teacher", "openai", "--model", "tiny", "--base-url", server.url
        )
        assert annotate.main([*argv, "--limit", "2", "--repairs", "0", "--max-pixels", "7056"]) == 1
    counts = summary(out)
    assert (
        counts["total"] == counts["accepted"] + counts["quarantined"] == 2
    )  # it babbles: the filters see to that
    assert counts["prompt_tokens"] > counts["calls"] > 0
    assert all(re.match(r"[a-z_]+: ", line["reason"]) for line in lines(beside(out, QUARANTINE)))


@pytest.mark.slow
def test_two_processes_share_the_rows_and_merge_one_output(shared_data, tmp_path):
    out, tiny = tmp_path / "chains.jsonl", write_tiny(tmp_path / "tiny")
    more = [
        "--teacher",
        "transformers",
        "--model",
        str(tiny),
        "--dtype",
        "float32",
        "--repairs",
        "0",
        "--limit",
        "6",
    ]
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--num_processes",
        "2",
        "--cpu",
        "--mixed_precision",
        "no",
    ]
    script = Path(__file__).resolve().parents[2] / "data_gen" / "annotate.py"
    argv = [sys.executable, *launch, str(script), *wardrobe(shared_data, out, *more)]
    done = subprocess.run(argv, env=ENV, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    ended = [record.id for record in read_records(out)] + [
        line["id"] for line in lines(beside(out, QUARANTINE))
    ]
    assert sorted(ended) == [str(number) for number in range(6)]
    assert summary(out)["total"] == summary(out)["accepted"] + summary(out)["quarantined"] == 6
    assert not list(tmp_path.glob("*.rank*"))


@pytest.mark.slow
def test_training_runs_on_the_chains_of_a_good_teacher(shared_data, tmp_path):
    out, tiny = tmp_path / "chains.jsonl", write_tiny(tmp_path / "tiny")
    with Server(good) as server:
        argv = wardrobe(
            shared_data, out, "--teacher", "openai", "--model", "m", "--base-url", server.url
        )
        assert annotate.main([*argv, "--see-target", "--verify"]) == 0
    assert summary(out)["accepted"] == 24
    where = [
        "--benchmark",
        "fashioniq",
        "--root",
        str(shared_data / "wardrobe"),
        "--chains",
        str(out),
    ]
    quick = [
        "--max_steps",
        "3",
        "--per_device_train_batch_size",
        "4",
        "--logging_steps",
        "1",
        "--report_to",
        "none",
    ]
    assert (
        sft.main(["--model", str(tiny), *where, *quick, "--output_dir", str(tmp_path / "run")]) == 0
    )
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    losses = [row["loss"] for row in metrics["history"] if "loss" in row]
    assert len(losses) == 3
    assert all(0 < loss < 100 for loss in losses)


def test_the_key_is_in_no_file_of_a_job(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-the-test")
    out = tmp_path / "chains.jsonl"

    def script(request: dict) -> Reply:
        if edit(request).endswith("1"):
            return Reply({"error": "sk-secret-of-the-test is wrong"}, 400)
        return fault(request, caption="A garment sk-secret-of-the-test of a plain kind.")

    with Server(script, keep=True) as server:
        assert (
            annotate.main(command(data, out, server.url, "--stages", "joint", "--limit", "4")) == 1
        )
    assert "Bearer sk-secret-of-the-test" in server.headers[0]
    said = capsys.readouterr()
    files = "".join(path.read_text() for path in tmp_path.iterdir() if path.is_file())
    assert "[key]" in files
    assert "sk-secret" not in files + said.out + said.err


def test_the_error_of_a_lost_server_names_it_and_keeps_the_rows(data, tmp_path):
    with Server(good) as gone:
        url = gone.url
    out = tmp_path / "chains.jsonl"
    options = annotate.parse_arguments(command(data, out, url))
    teacher, plan = options.open_teacher(Budget())
    teacher.startup = 0.0
    job = Job(out, {}, Budget())
    tasks = options.tasks()
    with pytest.raises(InputError, match=f"no server answers at {re.escape(url)}"):
        asyncio.run(annotate_tasks(job, tasks, teacher, plan, 4, lambda: None))
    job.close()
    assert lines(beside(out, QUARANTINE)) == []


def test_rows_that_reviewers_want_asked_again_are_the_only_ones(data, tmp_path):
    decisions = DecisionFile(tmp_path / "decisions.jsonl")
    records = load_benchmark("folder", data, "train")[0].records
    for record, verdict in zip(records[:4], ("again", "reject", "again", "again"), strict=True):
        now = "2026-01-01T00:00:00+00:00"
        decisions.append(Decision(record.id, record.reference, verdict, "", None, None, "ann", now))
    last = records[3]
    decisions.append(Decision(last.id, last.reference, "reject", "", None, None, "ann", now))
    out = tmp_path / "again.jsonl"
    with Server(good) as server:
        argv = command(data, out, server.url, "--again", str(decisions.path))
        assert annotate.main(argv) == 0
    assert sorted(row["id"] for row in lines(out)) == [records[0].id, records[2].id]


def test_rows_asked_again_do_not_go_into_the_file_that_holds_their_chains(data, tmp_path):
    out = tmp_path / "chains.jsonl"
    record = load_benchmark("folder", data, "train")[0].records[0]
    decisions = DecisionFile(tmp_path / "decisions.jsonl")
    now = "2026-01-01T00:00:00+00:00"
    decisions.append(Decision(record.id, record.reference, "again", "", None, None, "ann", now))
    with Server(good) as server:
        assert annotate.main(command(data, out, server.url)) == 0
        before = out.read_bytes()
        again = ("--again", str(decisions.path))
        # There every row counts as done, and nothing would be asked.
        with pytest.raises(InputError, match=r"chains\.jsonl:[12]: .* not to be asked again"):
            annotate.main(command(data, out, server.url, *again))
        assert out.read_bytes() == before
        # A job of its own goes on where it stopped.
        other = tmp_path / "again.jsonl"
        assert annotate.main(command(data, other, server.url, *again)) == 0
        assert annotate.main(command(data, other, server.url, *again)) == 0
    assert [row["id"] for row in lines(other)] == [record.id]
