"""Evaluations that are shared by processes or continued after they were killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from number_benchmarks import SHADES
from toy_retriever import Toy

from cir_cot.data import load_benchmark
from cir_cot.errors import InputError
from cir_cot.evaluation.chain_study import study_chains, study_json
from cir_cot.evaluation.encode import encode_gallery
from cir_cot.evaluation.encoded_rows import (
    FOLDER,
    EncodedRows,
    begin_encoding,
    open_encoding,
)
from cir_cot.evaluation.evaluate import evaluate
from cir_cot.ranks import Ranks
from cir_cot.retriever import Flag, QueryOutput


def rows(folder, rank=0, count=1):
    return EncodedRows(folder, "gallery", Ranks(rank, count))


def test_rows_come_back_as_they_were_written(tmp_path):
    vectors = torch.randn(3, 5)
    flags = ["", Flag("missing_token", "cut"), ""]
    written = QueryOutput(vectors, ["<caption>ä\n", "", "x"], flags, [{"a": 1.0}, {}, {}])
    rows(tmp_path).append(["a", "b", "c"], written)
    read = rows(tmp_path).output(["c", "a", "b"])
    assert torch.equal(read.embeddings, vectors[[2, 0, 1]])
    assert read.explanations == ["x", "<caption>ä\n", ""]
    assert read.flags[2].kind == "missing_token"
    assert read.routing == [{}, {"a": 1.0}, {}]


def test_a_share_is_what_no_process_has_encoded(tmp_path):
    rows(tmp_path, 0, 2).append(["a"], QueryOutput(torch.ones(1, 2), [""]))
    rows(tmp_path, 1, 2).append(["d"], QueryOutput(torch.ones(1, 2), [""]))
    names = ["a", "b", "c", "d", "e", "b"]
    assert rows(tmp_path, 0, 2).missing(names) == ["c", "e"]
    assert rows(tmp_path, 1, 2).missing(names) == ["b"]
    assert rows(tmp_path).missing(names) == ["b", "c", "e"]


def test_an_incomplete_last_line_is_encoded_again(tmp_path):
    rows(tmp_path).append(["a", "b"], QueryOutput(torch.ones(2, 2), ["", ""]))
    path = tmp_path / "gallery.0.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    assert rows(tmp_path, 1, 2).rows().keys() == {"a"}  # another process reads meanwhile
    again = rows(tmp_path)
    assert again.missing(["a", "b"]) == ["b"]
    again.append(["b"], QueryOutput(torch.zeros(1, 2), [""]))
    assert again.output(["a", "b"]).embeddings.tolist() == [[1, 1], [0, 0]]


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "gallery.0.jsonl").write_text('{"key": \n{"key": "a"}\n')
    with pytest.raises(InputError, match=r"gallery.0.jsonl: damaged; remove"):
        rows(tmp_path).rows()


class Dying(Toy):
    """Is killed when it has encoded `calls` batches."""

    calls = 3

    def encode_target(self, images):
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return super().encode_target(images)


class Counting(Toy):
    encoded = 0

    def encode_target(self, images):
        self.encoded += len(images)
        return super().encode_target(images)


def test_a_killed_evaluation_goes_on_where_it_was(folder, tmp_path):
    (benchmark,) = load_benchmark("folder", folder, "val")
    out = tmp_path / "out"
    options = {"batch_size": 4, "reading": "full"}
    dying = Dying()
    encoding = open_encoding(out, Toy(), {})
    with pytest.raises(KeyboardInterrupt):
        evaluate(dying, benchmark, benchmark.images(), encoding=encoding, **options)
    counting = Counting()
    encoding = open_encoding(out, Toy(), {})
    result = evaluate(counting, benchmark, benchmark.images(), encoding=encoding, **options)
    assert counting.encoded == len(SHADES) - 12
    plain = evaluate(Toy(), benchmark, benchmark.images(), **options)
    assert result.rankings == plain.rankings
    assert result.metrics == plain.metrics
    assert result.explanations == plain.explanations


def test_shares_of_three_processes_are_one_result(folder, tmp_path):
    """Each process encodes its share; whichever comes last finds everything."""
    (benchmark,) = load_benchmark("folder", folder, "val")
    images = benchmark.images()
    counts = []
    for rank in range(3):
        retriever = Counting()
        open_encoding(tmp_path, retriever, {}).folder.mkdir(exist_ok=True)
        retriever.encoded = 0
        share = rows(tmp_path / FOLDER, rank, 3)
        try:
            encode_gallery(retriever, benchmark.gallery, images, rows=share)
        except KeyError:  # the others' shares are not there yet
            assert rank < 2
        counts.append(retriever.encoded)
    assert sum(counts) == len(SHADES)
    assert max(counts) - min(counts) <= 1
    gallery = rows(tmp_path / FOLDER).output(benchmark.gallery).embeddings
    assert torch.equal(gallery, encode_gallery(Toy(), benchmark.gallery, images))


def test_a_study_is_the_same_with_an_encoding(folder, tmp_path):
    (benchmark,) = load_benchmark("folder", folder, "val")
    plain = study_json([study_chains(Toy(), benchmark)])
    encoding = open_encoding(tmp_path, Toy(), {})
    kept = study_json([study_chains(Toy(), benchmark, encoding=encoding)])
    for content in (plain, kept):
        for protocol in content["protocol"].values():
            del protocol["queries_per_second"]
    assert kept == plain


class Other(Toy):
    """Has other embeddings."""

    def encode_target(self, images):
        return super().encode_target(images).flip(1)


def test_rows_of_another_run_are_refused(folder, tmp_path):
    benchmarks = load_benchmark("folder", folder, "val")
    out = str(tmp_path / "out")
    begin_encoding(out, Toy(), benchmarks, 0)
    begin_encoding(out, Toy(), benchmarks, 0)
    with pytest.raises(InputError, match="begun with seed 0, this run has 1; finish that run"):
        begin_encoding(out, Toy(), benchmarks, 1)
    with pytest.raises(InputError, match="encoded by another retriever"):
        begin_encoding(out, Other(), benchmarks, 0)
    (Path(out) / FOLDER / "run.json").write_text("[]")
    with pytest.raises(InputError, match=r"run.json: damaged"):
        begin_encoding(out, Toy(), benchmarks, 0)
    with pytest.raises(InputError, match="2 processes share their work in a folder: give --out"):
        begin_encoding(None, Toy(), benchmarks, 0, Ranks(0, 2))


def test_two_processes_measure_as_one(tmp_path_factory):
    """`retrieval` and `reasoning` on two processes of torchrun: one result, that of a single process."""
    from test_scripts import command, tiny_head, write_scenes

    root = tmp_path_factory.mktemp("two")
    tiny_head(lora=False, max_new_tokens=4).save(root / "model")
    write_scenes(root / "scenes", seed=0, references=3, edits=2, size=84)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    for script in ("retrieval", "reasoning"):
        for count in ("1", "2"):
            argv = command(root / "model", root / "scenes", "--out", root / f"{script}{count}")
            call = [*launch, count, "-m", f"cir_cot.scripts.eval.{script}", *argv]
            done = subprocess.run(call, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            # Only the first process prints the table.
            assert done.stdout.count("R@5") == 1
        one, two = (read(root / f"{script}{count}") for count in "12")
        assert one == two
        assert not (root / f"{script}2" / FOLDER).exists()


def read(folder):
    """Everything that was measured, without what differs from run to run."""
    content = json.loads((folder / "results.json").read_text())
    protocols = content["protocol"]
    for protocol in protocols.values() if "full" in protocols else [protocols]:
        del protocol["queries_per_second"]
    return content
