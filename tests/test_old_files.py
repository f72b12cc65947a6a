"""Files that version 0.1 wrote still load, and mean the same: checkpoints, indexes, caches, annotations.

`old_files/` was written by the code of 0.1.0 (commit 5c54b90): a tiny Qwen2.5-VL with a LoRA adapter trained for two
steps, indexes of its training pictures, a feature cache, a vision cache, and an annotation job. `expected.json` has
the embeddings that the same code computed.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_server import Server, good
from PIL import Image
from safetensors.torch import load_file

from cir_cot.data.chain_files import attach_chains
from cir_cot.heads import load_retriever
from cir_cot.models.feature_cache import FeatureCache
from cir_cot.records import read_records
from cir_cot.retriever import Retriever
from cir_cot.scripts.data_gen import annotate
from cir_cot.scripts.eval import build_index
from cir_cot.scripts.train import sft
from cir_cot.search.build import open_index


@pytest.fixture
def old(tmp_path, monkeypatch) -> dict:
    """The old files in a folder of their own, made the working directory -> what the old code computed."""
    shutil.copytree(Path(__file__).parent / "old_files", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return json.loads(Path("expected.json").read_text())


def picture(name: str) -> Image.Image:
    return Image.open(f"data/images/{name}.png")


def retriever() -> Retriever:
    return load_retriever("run", device="cpu")


def test_a_saved_retriever_encodes_as_before(old):
    head = retriever()
    head.max_new_tokens = 12
    targets = head.encode_target([picture(name) for name in old["target"]])
    assert np.allclose(targets, list(old["target"].values()), atol=1e-5)
    query = head.encode_query([picture(old["query"]["picture"])], [old["query"]["text"]])
    assert np.allclose(query.embeddings[0], old["query"]["embedding"], atol=1e-5)
    assert query.explanations == [old["query"]["explanation"]]


@pytest.mark.parametrize("folder", ["index", "index_near"])
def test_an_index_is_searched_checked_and_updated_without_encoding_again(old, folder, capsys):
    index = open_index(folder)
    index.check(retriever())
    name = next(iter(old["target"]))
    (best, score), *_ = index.search(np.array([old["target"][name]], dtype=np.float32), k=3)[0]
    assert best == name
    assert score == pytest.approx(1, abs=1e-3)
    index.close()
    Image.new("RGB", (56, 56), "white").save("data/images/white.png")
    where = ["--model", "run", "--images", "data/images", "--out", folder, "--device", "cpu"]
    kind = ["--kind", index.metadata["kind"], "--store-dtype", index.metadata["dtype"]]
    assert build_index.main([*where, *kind]) == 0
    assert "process 0: 1 pictures encoded, of 15" in capsys.readouterr().err


def test_a_checkpoint_is_resumed_to_the_same_weights(old, capsys):
    before = load_file("run/adapter_model.safetensors")
    arguments = json.loads(Path("run/run.json").read_text())["argv"]
    shutil.rmtree("vision_cache")
    # The folder holds the finished run too, which going on from its first checkpoint replaces.
    resumed = ["--resume_from_checkpoint", "run/checkpoint-1", "--overwrite"]
    assert sft.main([*arguments, *resumed]) == 0
    after = load_file("run/adapter_model.safetensors")
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    assert len(list(Path("run").glob("checkpoint-*"))) == 2


def test_a_vision_cache_is_read_and_not_computed_again(old, capsys):
    files = {path.name: path.stat().st_mtime_ns for path in Path("vision_cache").glob("features-*")}
    arguments = json.loads(Path("run/run.json").read_text())["argv"]
    assert sft.main([*arguments, "--output_dir", "again"]) == 0
    after = {path.name: path.stat().st_mtime_ns for path in Path("vision_cache").glob("features-*")}
    assert {name: after[name] for name in files} == files
    assert len(after) == len(files)


def test_a_feature_cache_is_read_and_not_computed_again(old):
    cache = FeatureCache("features", "model-a")

    def compute(rows):
        raise AssertionError("every vector is there")

    cache.fill(old["feature_keys"], compute)
    assert cache.get(old["feature_keys"]).tolist() == [[0.0, 0.5], [1.0, 1.5], [2.0, 2.5]]


def test_an_annotation_job_is_finished_and_its_chains_attach(old):
    with Server(good) as server:
        where = [
            "--benchmark",
            "folder",
            "--root",
            "data",
            "--split",
            "train",
            "--out",
            "chains.jsonl",
        ]
        teacher = ["--teacher", "openai", "--model", "m", "--base-url", server.url]
        assert annotate.main([*where, *teacher, "--limit", "5"]) == 0
        assert server.requests == 0
    records = attach_chains(read_records("data/records.train.jsonl"), "chains.jsonl")
    assert sum(record.cot is not None and record.teacher is not None for record in records) == 5
