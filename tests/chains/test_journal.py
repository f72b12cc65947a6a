"""The files of a job: what is cut off, what is left alone; broken files, full disks, the order of fsync."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

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
from fake_server import Server, good
from recorded_os import recorded_os

from cir_cot.chains.budget import Budget
from cir_cot.chains.job import Job
from cir_cot.chains.journal import LONGEST, Journal, chain_of, name_of, settings_that_differ, stream
from cir_cot.errors import InputError
from cir_cot.records import Cot, Record, record_to_dict
from cir_cot.scripts.data_gen import annotate


def record(number: int, **facts) -> Record:
    return Record(
        f"q{number}", "r", "t", (), Cot("a", "b", "c"), teacher={"key": f"k{number}"} | facts
    )


LINE = json.dumps(record_to_dict(record(1))) + "\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "set", 3)


# Nothing of a user's is cut.

FOREIGN = {
    "a note": b"my only copy",
    "a number": b"12345",
    "lines of text": b"one\ntwo\nthree",
    "another JSONL": b'{"text": "a"}\n{"text": "b',
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
    "records without chains": b'{"id": "1", "reference": "r", "text": "t", "targets": []}\n{"id": "2", "ref',
    "chains by hand": json.dumps(record_to_dict(record(1)) | {"teacher": None}).encode()
    + b'\n{"id": "2',
    "one endless line": b'{"id": "' + b"x" * LONGEST,
    "an endless last line": LINE.encode() + b"x" * LONGEST,
    "zeros": bytes(100),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_a_file_that_is_no_journal_is_refused_and_left_as_it_is(data, tmp_path, capsys, content):
    out = tmp_path / "chains.jsonl"
    out.write_bytes(content)
    error = refusal(capsys, command(data, out, "http://localhost:1/v1"))
    assert str(out) in error
    assert len(error) < 1000
    assert out.read_bytes() == content


@pytest.mark.parametrize(
    "tail", [b'{"id": "q2", "ref', b"{", b"\xff\xfe", bytes(512), b"[" * 100_000]
)
@pytest.mark.parametrize("before", ["", LINE])
def test_a_torn_last_line_is_cut_off_and_nothing_else(tmp_path, before, tail):
    path = tmp_path / "chains.jsonl"
    path.write_bytes(before.encode() + tail)
    if not before and not tail.startswith(b"{"):
        with pytest.raises(InputError, match="something else"):
            Journal(path, chain_of)
        return
    Journal(path, chain_of).close()
    assert path.read_text() == before


def test_a_whole_last_line_gets_its_end_before_the_next_one(tmp_path):
    path = tmp_path / "chains.jsonl"
    path.write_text(LINE.rstrip("\n"))
    journal = Journal(path, chain_of)
    journal.append({"id": "2"})
    journal.close()
    assert path.read_text() == LINE + '{"id": "2"}\n'


# Broken files.

BROKEN = {  # file -> content, and what is said of it
    "cot null": (
        "",
        LINE.replace('{"caption": "a", "reasoning": "b", "conclusion": "c"}', "null"),
        "'q1' has no chain",
    ),
    "no key": ("", LINE.replace('{"key": "k1"}', '{"model": "m"}'), "'q1' has no key"),
    "a key of lists": ("", LINE.replace('"k1"', '["k1"]'), "'q1' has no key"),
    "teacher null": ("", LINE.replace('{"key": "k1"}', "null"), "'q1' has no key"),
    "teacher a string": ("", LINE.replace('{"key": "k1"}', '"k1"'), "'teacher' must be an object"),
    "half a surrogate": ("", LINE.replace('"a"', '"\\ud800"'), "half a surrogate"),
    "a target that is half a surrogate": (
        "",
        LINE.replace("[]", '["\\ud800"]'),
        "half a surrogate",
    ),
    "NUL": ("", LINE.replace('"a"', '"\\u0000"'), "NUL"),
    "a raw NUL": ("", LINE.replace('"a"', '"\0"'), "not valid JSON"),
    "no object": ("", "5\n", "a record is a JSON object"),
    "a list": ("", "[]\n", "a record is a JSON object"),
    "torn in the middle": ("", LINE[:40] + "\n" + LINE, "not valid JSON"),
    "a key twice": ("", LINE.replace('{"id"', '{"id": "x", "id"'), "occurs twice"),
    "deep": ("", "[" * 10_000 + "\n", "not valid JSON"),
    "digits": ("", "9" * 10_000 + "\n", "10000 digits"),
    "bad UTF-8": ("", "\udcff\n", "not valid JSON"),
    "quarantine of a number": (QUARANTINE, "5\n", "no line of a quarantine"),
    "quarantine without id": (QUARANTINE, '{"reason": "x"}\n', "no line of a quarantine"),
    "quarantine with a list as id": (QUARANTINE, '{"id": ["q1"]}\n', "no line of a quarantine"),
    "quarantine torn": (QUARANTINE, '{"id": \n{"id": "q1"}\n', "not valid JSON"),
    "summary empty": (SUMMARY, "", "not valid JSON"),
    "summary a list": (SUMMARY, "[1]", "no summary of a job"),
    "summary of strings": (SUMMARY, '{"repaired": "1"}', "no summary of a job"),
    "summary of booleans": (
        SUMMARY,
        json.dumps(dict.fromkeys(("repaired", "calls"), True)),
        "no summary of a job",
    ),
    "summary negative": (SUMMARY, "calls -1", "no summary of a job"),
    "summary huge": (SUMMARY, "calls 1e300", "no summary of a job"),
    "summary NaN": (SUMMARY, "calls NaN", "NaN is not JSON"),
    "settings": (".lock", "\udcff{not JSON", "made with"),
}


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    """The folder of a job that has done the first of three rows."""
    folder = tmp_path_factory.mktemp("finished")
    with Server(good) as server:
        assert (
            annotate.main(command(data, folder / "chains.jsonl", server.url, "--limit", "1")) == 0
        )
    return folder


@pytest.mark.parametrize(("part", "content", "said"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_of_a_job_is_refused_in_one_line(
    data, finished, tmp_path, capsys, part, content, said
):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    out = tmp_path / "chains.jsonl"
    if content.startswith("calls "):
        content = json.dumps(summary(out)).replace(
            '"calls": 3', f'"calls": {content.partition(" ")[2]}'
        )
    path = beside(out, part) if part else out
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    error = refusal(capsys, command(data, out, "http://localhost:1/v1"))
    assert said in error
    assert str(out) in error
    assert error.count("\n") == 1
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_settings_that_differ_are_named_with_both_values():
    held = json.dumps({"model": "a", "repairs": 2, "split": "train"})
    wanted = {"model": "b", "split": "train", "verifier": None}
    assert settings_that_differ(held, wanted) == (
        'made with model "a", now "b"; repairs 2, now not set; verifier not set, now null'
    )
    assert "which are no settings" in settings_that_differ("[1]", wanted)


def test_a_line_of_any_length_is_read_in_bounded_pieces(tmp_path):
    path = tmp_path / "chains.jsonl"
    path.write_text(LINE + "[" + " " * (2 * LONGEST) + "]\n")
    with pytest.raises(InputError, match=f"chains.jsonl:2: a line of more than {LONGEST} bytes"):
        list(stream(path))


@pytest.mark.parametrize("part", ["", QUARANTINE])
def test_a_broken_file_of_another_process_is_refused_and_nothing_is_removed(tmp_path, part):
    out = tmp_path / "chains.jsonl"
    share = Job(out.with_name("chains.jsonl.rank1"), {}, Budget())
    share.accept(record(1), False)
    share.quarantine("q2", "why", 1, "")
    share.close()
    path = beside(share.out, part)
    path.write_text('{"id": 5}\n')
    job = Job(out, {}, Budget())
    with pytest.raises(InputError, match=path.name):
        job.merge_ranks()
    job.close()
    assert path.read_text() == '{"id": 5}\n'
    assert all(beside(share.out, name).exists() for name in ("", QUARANTINE, SUMMARY))


def test_a_job_that_cannot_begin_frees_its_output(tmp_path):
    out = tmp_path / "chains.jsonl"
    out.write_text("a note")
    with pytest.raises(InputError, match="something else"):
        Job(out, {}, Budget())
    out.unlink()
    Job(out, {}, Budget()).close()


# Full and read-only disks.

LIMITED = """
import resource, signal, sys
from cir_cot import cli
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
cli.run(cli.main, ["annotate", *sys.argv[2:]])
"""


@pytest.mark.parametrize("limit", [0, 100, 500, 1500])
def test_a_full_disk_ends_the_job_in_one_line_and_the_next_run_goes_on(data, tmp_path, limit):
    """A limit on the size of files stands for the disk: it meets settings, rows and summary."""
    out = tmp_path / "chains.jsonl"
    with Server(good) as server:
        argv = command(data, out, server.url, "--concurrency", "1")
        full = [sys.executable, "-c", LIMITED, str(limit), *argv]
        done = subprocess.run(full, env=ENV, capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1
        assert "make room" in done.stderr
        kept = out.read_text() if out.exists() else ""
        assert kept.count("\n") * 3 <= server.requests
        assert annotate.main(argv) == 0
    assert out.read_text().startswith(kept)
    assert sorted(line["id"] for line in lines(out)) == ["q0", "q1", "q2"]


def test_settings_survive_a_full_disk(data, finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    out = tmp_path / "chains.jsonl"
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    argv = [sys.executable, "-c", LIMITED, "0", *command(data, out, "http://localhost:1/v1")]
    assert subprocess.run(argv, env=ENV, capture_output=True).returncode == 2
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_written_is_one_line(data, capsys):
    out = Path("/sys/chains.jsonl")  # nobody makes a file there, root included
    error = refusal(capsys, command(data, out, "http://localhost:1/v1"))
    assert str(out) in error
    assert "give another folder" in error


# The order in which things reach the disk.


def test_a_new_file_has_its_name_on_the_disk_before_rows_are_forced_there(tmp_path):
    with recorded_os(tmp_path) as events:
        journal = Journal(tmp_path / "a", name_of)
        journal.append({"id": "1"})
        journal.close()
        Journal(tmp_path / "a", name_of).close()  # nothing new, nothing to force
    assert events == ["fsync .", "fsync a"]


def test_rows_reach_the_disk_before_the_summary_that_counts_them(tmp_path):
    out = tmp_path / "c"
    job = Job(out, {}, Budget())
    job.accept(record(1), False)
    job.quarantine("q2", "why", 1, "")
    with recorded_os(tmp_path) as events:
        job.sync()
    assert events == [
        "fsync c",
        f"fsync c{QUARANTINE}",
        f"fsync c{SUMMARY}",
        f"rename c{SUMMARY}",
        "fsync .",
    ]
    job.close()


def test_merged_rows_are_on_the_disk_before_the_files_that_held_them_are_removed(tmp_path):
    share = Job(tmp_path / "c.rank1", {}, Budget())
    share.accept(record(1), False)
    share.quarantine("q2", "why", 1, "")
    share.close()
    job = Job(tmp_path / "c", {}, Budget())
    with recorded_os(tmp_path) as events:
        job.merge_ranks()
    job.close()
    saved = [
        "fsync c",
        f"fsync c{QUARANTINE}",
        f"fsync c{SUMMARY}",
        f"rename c{SUMMARY}",
        "fsync .",
    ]
    assert events == [
        *saved,
        *(f"unlink c.rank1{part}" for part in (SUMMARY, QUARANTINE, "", ".lock")),
    ]
