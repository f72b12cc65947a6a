"""Evaluation during training: it changes no weight, picks the best checkpoint, and survives a resume."""

import json

import pytest
import tiny_training
import torch
from transformers import TrainerCallback
from transformers.utils import logging

from cir_cot.data import load_benchmark
from cir_cot.errors import InputError
from cir_cot.evaluation.evaluate import evaluate
from cir_cot.heads import load_retriever
from cir_cot.models.tiny_qwen import write_tiny
from cir_cot.scripts.train import sft
from cir_cot.training.checkpoints import checkpoints
from cir_cot.training.validation import Validation

EVERY_TWO = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 6, "chunk_tokens": 100}
SAVED = {"save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    tiny_training.write_dataset(root, tiny_training.records(22))
    return root


@pytest.fixture
def validation(data):
    return Validation(load_benchmark("folder", data, "train"), queries=6)


def awake(**options):
    return tiny_training.awake_head(dropout=0.1, max_new_tokens=4, chain_dropout=0.5, **options)


def weights(head):
    return {name: value.clone() for name, value in head.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def evaluations(run):
    return [entry for entry in run.state.log_history if "eval_full_R@1" in entry]


def test_evaluation_changes_no_weight_and_is_what_evaluate_measures(tmp_path, validation):
    plain = tiny_training.trainer(tmp_path / "plain", awake(), max_steps=6, chunk_tokens=100)
    plain.train()
    run = tiny_training.trainer(tmp_path / "run", awake(), validation=validation, **EVERY_TWO)
    run.train()
    assert same(weights(plain.model), weights(run.model))
    found = evaluations(run)
    assert [entry["step"] for entry in found] == [2, 4, 6]
    (benchmark,) = validation.benchmarks
    for reading in ("full", "fast"):
        result = evaluate(run.model, benchmark, benchmark.images(), reading=reading, limit=6)
        assert found[-1][f"eval_{reading}_R@1"] == result.metrics["R@1"]
        assert found[-1][f"eval_{reading}_R@10"] == result.metrics["R@10"]
    assert found[-1]["eval_seconds"] > 0


class Scripted(TrainerCallback):
    """Says what the evaluations measured, in place of a tiny model's noise."""

    def __init__(self, values):
        self.values = iter(values)

    def on_evaluate(self, args, state, control, metrics, **_):
        metrics["eval_full_R@1"] = next(self.values)


def best_run(folder, validation, values, **options):
    callbacks = [Scripted(values)]
    return tiny_training.trainer(
        folder,
        awake(),
        validation=validation,
        callbacks=callbacks,
        **(EVERY_TWO | SAVED | options),
    )


@pytest.mark.parametrize(("values", "best"), [((10, 30, 20), 4), ((30, 10, 20), 2)])
def test_the_best_checkpoint_is_kept_and_loaded(tmp_path, validation, values, best, caplog):
    run = best_run(tmp_path, validation, values, save_total_limit=1)
    logging.enable_propagation()
    result = run.train()
    logging.disable_propagation()
    assert "best model" not in caplog.text  # transformers looked for it in the place of writing
    assert run.args.metric_for_best_model == "full_R@1"
    assert set(checkpoints(tmp_path)) == {best, 6}
    head = awake()
    head.load_weights(tmp_path / f"checkpoint-{best}")
    assert same(weights(head), weights(run.model))
    assert result.metrics["best_step"] == best
    assert result.metrics["best_value"] == 30


def test_without_asking_the_last_weights_are_kept(tmp_path, validation):
    run = best_run(tmp_path, validation, (30, 10, 20), load_best_model_at_end=False)
    result = run.train()
    assert "best_step" not in result.metrics
    head = awake()
    head.load_weights(tmp_path / "checkpoint-6")
    assert same(weights(head), weights(run.model))


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, validation):
    values = (20, 10, 30, 5)
    whole = best_run(tmp_path / "whole", validation, values, max_steps=8)
    whole.train()
    first = best_run(tmp_path / "run", validation, values, max_steps=8)
    first.add_callback(StopAt(4))
    first.train()
    second = best_run(tmp_path / "run", validation, values[2:], max_steps=8)
    result = second.train(resume_from_checkpoint="last")
    assert result.metrics["best_step"] == 6
    assert same(weights(whole.model), weights(second.model))
    one, two = (
        [{k: v for k, v in entry.items() if k != "eval_seconds"} for entry in evaluations(run)]
        for run in (whole, second)
    )
    assert one == two


class StopAt(TrainerCallback):
    """Ends the training as a lost machine would, after a checkpoint."""

    def __init__(self, step):
        self.step = step

    def on_save(self, args, state, control, **_):
        control.should_training_stop = state.global_step >= self.step


def test_a_head_without_chains_is_evaluated_in_its_one_reading(tmp_path, validation):
    run = tiny_training.trainer(
        tmp_path, awake(), validation=validation, lm_weight=0.0, **EVERY_TWO
    )
    run.train()
    assert any("eval_fast_R@1" in entry for entry in run.state.log_history)
    assert not evaluations(run)


# ---- the recipe


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    return write_tiny(folder, vocab_size=400, **tiny_training.SIZES)


def recipe(base, data, out, *more):
    argv = ["--model", base, "--root", data, "--output_dir", out, "--report_to", "none"]
    argv += ["--max_steps", "2", "--per_device_train_batch_size", "4", "--lora_r", "4"]
    return [str(word) for word in [*argv, "--disable_tqdm", "true", *more]]


def test_the_recipe_evaluates_and_records_the_best(base, data, tmp_path):
    steps = ["--eval_strategy", "steps", "--eval_steps", "1", "--save_strategy", "steps"]
    more = ["--save_steps", "1", "--load_best_model_at_end", "true", "--eval_split", "train"]
    out = tmp_path / "run"
    assert sft.main(recipe(base, data, out, *steps, *more, "--eval_queries", "4")) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["best_metric"] == "full_R@1"
    step = metrics["best_step"]
    assert sum("eval_fast_R@5" in entry for entry in metrics["history"]) == 2
    saved = load_retriever(out, device="cpu").state_dict()
    best = load_retriever(out / f"checkpoint-{step}", device="cpu").state_dict()
    assert same(saved, best)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "needs --eval_split"),
        (["--eval_split", "nowhere"], "records.nowhere.jsonl"),
        (["--eval_split", "train", "--eval_root", "no/where"], "no/where"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_training(base, data, tmp_path, more, message):
    steps = ["--eval_strategy", "steps", "--eval_steps", "1"]
    with pytest.raises(InputError, match=message):
        sft.main(recipe(base, data, tmp_path / "run", *steps, *more))
