"""The recipe of the reranker: it learns to tell targets from negatives, saves itself, resumes, refuses."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import records, tiny_head, write_dataset

from cir_cot.errors import InputError
from cir_cot.heads.rerank import load_reranker
from cir_cot.scripts.train import rerank
from cir_cot.training.negatives import with_own_negatives


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder dataset, and a base checkpoint."""
    folder = tmp_path_factory.mktemp("rerank")
    write_dataset(folder / "data", records(24))
    head = tiny_head(lora=False)
    head.backbone.save(folder / "base")
    return folder


def train(data, out, *more):
    argv = ["--model", data / "base", "--root", data / "data", "--output_dir", out]
    argv += ["--max_steps", 2, "--per_device_train_batch_size", 4, "--report_to", "none"]
    argv += ["--save_strategy", "no", "--logging_steps", 1, *more]
    return rerank.main([str(word) for word in argv])


def negatives_of(data):
    rows, _ = rerank.load_rows(
        rerank.RerankArguments(output_dir="unused", root=str(data / "data"), model="m")
    )
    return with_own_negatives(rows, seed=0)


def test_own_negatives_are_near_and_far_and_never_a_target(data):
    rows = negatives_of(data)
    assert rows.per_row == 1
    for record in rows.records:
        offered = rows.negatives[record.id]
        assert not set(offered) & set(record.targets)
        assert record.reference in offered
        same = {other.targets[0] for other in rows.records if other.reference == record.reference}
        assert same - set(record.targets) <= set(offered)
        assert len(offered) >= 4
    assert rows[0, 1].negatives[0][0] in rows.negatives[rows.records[0].id]


@pytest.mark.parametrize("rank", [0, 4])
def test_the_recipe_writes_a_reranker(data, tmp_path, rank):
    assert train(data, tmp_path / "run", "--lora_r", rank) == 0
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert ("adapter_model.safetensors" in names) == (rank > 0)
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    reranker = load_reranker(tmp_path / "run", device="cpu", dtype="float32")
    assert reranker.kind == "rerank"
    # It can be trained further.
    argv = ["--model", tmp_path / "run", "--lora_r", rank]
    assert train(data, tmp_path / "more", *argv) == 0


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--contrastive_weight", "1"], "embeds nothing"),
        (["--chunk_tokens", "100"], "embeds nothing"),
        (["--eval_strategy", "steps", "--eval_steps", "1"], "retrieval --rerank"),
    ],
)
def test_what_a_reranker_cannot_do_is_refused(data, tmp_path, given, named):
    with pytest.raises(InputError, match=named):
        train(data, tmp_path / "run", *given)


def test_a_retriever_is_not_trained_as_a_reranker(data, tmp_path):
    tiny_head(lora=False).save(tmp_path / "cot")
    with pytest.raises(InputError, match="a 'cot' retriever; this recipe trains 'rerank'"):
        train(data, tmp_path / "run", "--model", tmp_path / "cot")


def test_a_resumed_run_equals_the_uninterrupted_one(data, tmp_path):
    """The order of rows, the negatives and which of them are shown come from the seed and the row's draw."""
    steps = ["--max_steps", 4, "--save_strategy", "steps", "--save_steps", 2]
    train(data, tmp_path / "whole", *steps)
    train(data, tmp_path / "cut", *steps)
    # As after a kill between the second step and the end.
    shutil.rmtree(tmp_path / "cut" / "checkpoint-4")
    for name in ("adapter_model.safetensors", "retriever.json"):
        (tmp_path / "cut" / name).unlink()
    train(data, tmp_path / "cut", *steps, "--resume_from_checkpoint", "last")
    whole, cut = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert any(value.abs().max() > 0 for name, value in cut.items() if "lora_B" in name)
