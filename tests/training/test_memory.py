"""The estimate before a run: counts of tokens, measured bytes of a token, a chunk size that fits."""

import json

import pytest
import tiny_training
import torch
from torch.utils.flop_counter import FlopCounterMode

from cir_cot.peak_bytes import peak_bytes
from cir_cot.training import memory
from cir_cot.training.memory import (
    cost_of_token,
    describe,
    estimate_run,
    histogram,
    quantiles,
    static_bytes,
    token_counts,
)
from cir_cot.training.run import announce_estimate
from cir_cot.training.step_losses import StepTotals


def estimated(folder, free: int | None = None, recompute: bool = False, **arguments) -> dict:
    run = tiny_training.trainer(folder, tiny_training.tiny_head(), rows=12, **arguments)
    run.model.backbone.checkpoint_activations(recompute)
    return estimate_run(
        run.model,
        run.train_dataset,
        run.data_collator,
        run.args,
        side=28,
        max_pixels=56 * 56 - 1,
        free=free,
    )


def test_what_is_counted(tmp_path):
    facts = estimated(tmp_path)
    assert (facts["rows"], facts["sampled"], facts["pictures"]) == (12, 12, 24)
    assert facts["pictures_above_max_pixels"] == 24
    assert facts["tokens"]["visual"] == {
        "least": 8,
        "median": 8,
        "p95": 8,
        "most": 8,
        "mean": 8,
    }  # 2 x 2 a picture
    assert sum(rows for _, rows in facts["histogram"]) == 12
    assert "24 of 24" in describe(facts)


def test_bytes_of_a_step_are_those_of_its_tokens(tmp_path):
    facts = estimated(tmp_path)
    tokens = 4 * (facts["tokens"]["query"]["most"] + facts["tokens"]["target"]["most"])
    assert (
        facts["bytes"]["step"]
        == facts["bytes"]["step_without_chunks"]
        == facts["bytes"]["per_token"] * tokens
    )
    chunked = estimated(tmp_path, chunk_tokens=100)
    assert chunked["bytes"]["step"] == chunked["bytes"]["per_token"] * 100


def test_recomputing_keeps_less(tmp_path):
    assert (
        estimated(tmp_path, recompute=True)["bytes"]["per_token"]
        < 0.6 * estimated(tmp_path)["bytes"]["per_token"]
    )


@pytest.mark.parametrize("recompute", [False, True])
def test_the_estimate_is_the_peak_of_the_step(tmp_path, recompute):
    """Rows of one length: the estimated activations are what the trainer's step allocates beside gradients."""
    head = tiny_training.awake_head()
    run = tiny_training.trainer(tmp_path, head, rows=12)
    head.backbone.checkpoint_activations(recompute)
    row = run.train_dataset[0, 0]
    batch = run.data_collator([row] * 4)
    tokens = sum(batch[side]["input_ids"].numel() for side in ("query", "target"))
    cost = cost_of_token(head, batch, torch.device("cpu"), None)
    totals = StepTotals(4, 100)
    gradients = sum(p.nbytes for p in head.parameters() if p.requires_grad)
    measured = peak_bytes(lambda: run.training_step(head, batch, totals)) - gradients
    assert cost.bytes * tokens == pytest.approx(measured, rel=0.02)
    # Its operations are those of the step, without those of the loss over all rows.
    with FlopCounterMode(display=False) as counter:
        run.training_step(head, batch, totals)
    assert cost.operations * tokens == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_a_step_is_told_in_operations(tmp_path):
    facts = estimated(tmp_path)
    doubled = estimated(tmp_path, gradient_accumulation_steps=2)
    assert doubled["operations"] == pytest.approx(2 * facts["operations"], rel=1e-6)
    chunked = estimated(tmp_path, chunk_tokens=100)
    assert chunked["operations"] == pytest.approx(4 / 3 * facts["operations"], rel=1e-3)
    assert f"{facts['operations'] / 1e12:,.3g} TFLOP on each process" in describe(facts)
    assert facts["seconds"] is None


def test_a_step_is_told_in_seconds_where_the_card_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr("cir_cot.training.memory.device_name", lambda device: "NVIDIA L4")
    facts = estimated(tmp_path)
    assert facts["seconds"] == pytest.approx(facts["operations"] / 121e12)
    assert f"at least {facts['seconds']:.2g} s on this card" in describe(facts)


def test_a_batch_too_large_gets_a_chunk_size_that_fits(tmp_path):
    each = estimated(tmp_path)["bytes"]["per_token"]
    training_bytes = estimated(tmp_path)["bytes"]["gradients_and_optimizer"]
    facts = estimated(tmp_path, free=training_bytes + 1000 * each, per_device_train_batch_size=64)
    assert not facts["fits"]
    assert facts["proposed_chunk_tokens"] == 768  # 80 % of 1000, in steps of 256
    assert "chunk_tokens to at most 768" in describe(facts)
    fitting = estimated(tmp_path, training_bytes + 1000 * each, chunk_tokens=768,
                        per_device_train_batch_size=64)  # fmt: skip
    assert fitting["fits"]
    assert "will not fit" not in describe(fitting)


def test_a_step_fits_up_to_the_very_last_byte(tmp_path):
    facts = estimated(tmp_path, free=2**40)
    needed = facts["bytes"]["gradients_and_optimizer"] + facts["bytes"]["step"]
    assert estimated(tmp_path, free=needed)["fits"]
    short = estimated(tmp_path, free=needed - 1)
    assert not short["fits"]
    assert "will not fit" in describe(short)


def test_the_longest_row_is_always_proposed(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "ROUND", 16)  # far less than a row has
    run = tiny_training.trainer(tmp_path, rows=12)
    counts = token_counts(run.data_collator([run.train_dataset[index, 0] for index in range(12)]))
    longest = max(
        query + target for query, target in zip(counts["query"], counts["target"], strict=True)
    )
    assert longest > 2 * 16
    assert estimated(tmp_path, free=0)["proposed_chunk_tokens"] == -(-longest // 16) * 16


def test_static_bytes_of_a_head(tmp_path):
    head = tiny_training.tiny_head()
    weights, trained = static_bytes(head)
    assert trained == 12 * sum(value.numel() for value in head.parameters() if value.requires_grad)
    assert weights > 4 * sum(value.numel() for value in head.parameters())


def test_the_estimate_of_a_recipe_is_kept_and_draws_no_random_number(tmp_path):
    run = tiny_training.trainer(tmp_path, tiny_training.tiny_head(dropout=0.5), rows=4)
    state = torch.get_rng_state()
    run.model.eval()
    announced = []
    announce_estimate(run, announced.append)
    assert torch.equal(torch.get_rng_state(), state)
    assert announced == [describe(json.loads((tmp_path / "estimate.json").read_text()))]
    assert not run.model.training


def test_histogram_and_quantiles():
    assert histogram([5, 5, 6, 20], bins=2) == [(12, 3), (20, 1)]
    assert histogram([7, 7]) == [(7, 2)]
    assert quantiles([1, 2, 3])["median"] == pytest.approx(2)


def test_rows_of_features_have_a_token_a_side():
    side = {"features": torch.zeros(3, 2)}
    assert token_counts({"query": side, "target": side}) == {
        "query": [1] * 3,
        "target": [1] * 3,
        "visual": [0] * 3,
    }
