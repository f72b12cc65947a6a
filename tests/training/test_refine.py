"""Rank-rewarded refinement: its formulas, the tokens it trains on, resuming, and the folder it leaves."""

import json
import shutil

import pytest
import torch
from tiny_training import Pictures, records, tiny_head, write_dataset

from cir_cot.errors import InputError
from cir_cot.heads import load_retriever
from cir_cot.heads.base import save_retriever
from cir_cot.heads.grammar import Grammar
from cir_cot.prompts import PARTS
from cir_cot.scripts.train import refine as script
from cir_cot.training.group_policy import (
    Policy,
    advantages,
    policy_losses,
    reciprocal_ranks,
    similarities,
)
from cir_cot.training.refine import LOG, STATE, Refinement, Refiner
from cir_cot.training.rollouts import draw, read_rollouts


def test_ranks_count_ties_against_the_target_and_no_other_target():
    gallery = torch.eye(4)[[0, 1, 2, 1]]
    queries = torch.tensor([[0.5, 0.9, 0.1, 0], [0.9, 0.1, 0.2, 0], [0.9, 0.1, 0.2, 0]])
    found = reciprocal_ranks(queries, gallery, [[1], [1], [2, 0]])
    assert found.tolist() == pytest.approx([1 / 2, 1 / 4, 1])
    assert similarities(queries, gallery, [[1], [1], [2, 0]]).tolist() == pytest.approx(
        [0.9, 0.1, 0.9]
    )


def test_advantages_are_normalised_within_a_query():
    found = advantages(torch.tensor([1.0, 0, 5, 5]), 2)
    assert found.tolist() == pytest.approx([0.70701, -0.70701, 0, 0], abs=1e-4)


def test_the_ratio_is_clipped_on_the_side_of_gain_and_the_divergence_is_k3():
    ratio = torch.tensor([2.0, 2.0, 0.5, 0.5])
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss, divergence = policy_losses(
        ratio.log(), torch.zeros(4), torch.zeros(4), advantage, Policy()
    )
    assert loss.tolist() == pytest.approx([-1.28, 2.0, -0.5, 0.8])
    assert divergence.tolist() == pytest.approx([0.19315] * 2 + [0.30685] * 2, abs=1e-4)


@pytest.fixture
def head():
    return tiny_head(lora=False, max_new_tokens=16).eval()


def queries(count):
    rows = records(count)
    return [Pictures().load(row.reference) for row in rows], [row.text for row in rows]


def test_the_tokens_trained_on_are_those_that_the_model_was_fed(head, monkeypatch):
    fed, pixels = [], []
    real = type(head.backbone).forward

    def forward(backbone, inputs, *more, **named):
        fed.extend(inputs["input_ids"][0].tolist())
        pixels.extend([inputs["pixel_values"]] if "pixel_values" in inputs else [])
        return real(backbone, inputs, *more, **named)

    for seed in range(4):
        fed.clear()
        pixels.clear()
        images, texts = queries(1)
        with monkeypatch.context() as patch:
            patch.setattr(type(head.backbone), "forward", forward)
            drawn = draw(head, images, texts, [seed], 1.0)
        assert drawn.inputs["input_ids"][0].tolist() == fed
        assert fed.count(head.backbone.image_token_id) > 1
        assert torch.equal(drawn.inputs["pixel_values"], pixels[0])


def test_only_tokens_that_the_model_chose_carry_the_loss(head):
    images, texts = queries(3)
    drawn = draw(head, images, texts, [1, 2, 3], 1.0)
    start = Grammar(head.encoder(), PARTS, head.max_new_tokens).start
    for row, chosen, ids in zip(drawn.rows, drawn.chosen, drawn.inputs["input_ids"], strict=True):
        trained = ids[chosen].tolist()
        assert trained == [row.ids[place] for place in row.chosen]
        assert 0 < len(trained) < len(row.ids)
        # The first tag is prescribed.
        assert min(row.chosen) >= len(start)
        assert head.backbone.ret_id not in trained
    logs, vectors = read_rollouts(head, drawn)
    assert len(logs) == drawn.chosen.sum()
    # Without the chains beside it a row reads the same.
    alone = read_rollouts(head, draw(head, images[1:2], texts[1:2], [2], 1.0))
    count = int(drawn.chosen[0].sum())
    assert torch.allclose(alone[0], logs[count : count + len(alone[0])], atol=1e-4)
    assert torch.allclose(alone[1][0], vectors[1], atol=1e-5)


def test_a_step_starts_at_the_start_and_moves_the_adapter_alone(tmp_path):
    rows = records(6)
    plan = Refinement(steps=1, queries=1, samples=4, length=0.0, form=0.0, learning_rate=1e-2)
    head = tiny_head(lora=False, max_new_tokens=16, projection=16)
    refiner = Refiner(head, rows, Pictures(), ["red-green"], plan, tmp_path)
    weights = {n: p.clone() for n, p in refiner.head.named_parameters()}
    line = refiner.take_step()
    assert line["kl"] == 0
    assert line["drift"] == pytest.approx(0, abs=1e-5)
    moved = {n for n, p in refiner.head.named_parameters() if not torch.equal(p, weights[n])}
    assert moved
    assert all("lora_" in name for name in moved)


@pytest.fixture
def place(tmp_path):
    write_dataset(tmp_path / "data", records(12))
    save_retriever(tiny_head(lora=False, max_new_tokens=16), tmp_path / "model")
    return tmp_path


def command(place, out, steps=4):
    where = ["--benchmark", "folder", "--root", str(place / "data"), "--split", "train"]
    model = ["--model", str(place / "model"), "--dtype", "float32", "--device", "cpu"]
    sizes = ["--steps", str(steps), "--queries", "2", "--samples", "2", "--save-every", "2"]
    return [*where, *model, *sizes, "--learning-rate", "1e-3", "--out", str(place / out)]


def test_a_killed_run_goes_on_bitwise_and_the_result_is_a_retriever(place, monkeypatch):
    assert script.main(command(place, "whole")) == 0
    # Killed in the fourth step: the checkpoint is that of the second, the log has three lines.
    real = Refiner.take_step

    def take_step(refiner):
        if refiner.step == 3:
            raise KeyboardInterrupt
        return real(refiner)

    with monkeypatch.context() as patch:
        patch.setattr(Refiner, "take_step", take_step)
        with pytest.raises(KeyboardInterrupt):
            script.main(command(place, "cut"))
    assert len((place / "cut" / LOG).read_text().splitlines()) == 3
    assert script.main(command(place, "cut")) == 0
    for name in (LOG, STATE, "model.safetensors"):
        assert (place / "cut" / name).read_bytes() == (place / "whole" / name).read_bytes()
    lines = [json.loads(line) for line in (place / "whole" / LOG).read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    # The card knows what it was trained on.
    assert "- `folder`, split `train`" in (place / "whole" / "README.md").read_text()
    run = json.loads((place / "whole" / "run.json").read_text())
    assert {"argv", "arguments", "git", "versions", "seed"} <= set(run)
    refined = load_retriever(place / "whole", device="cpu")
    images, texts = queries(2)
    assert refined.encode_query(images, texts).embeddings.shape == (2, refined.dim)


def test_folders_of_others_are_refused(place):
    shutil.copytree(place / "model", place / "done")
    with pytest.raises(InputError, match="finished retriever"):
        script.main(command(place, "done"))
    with pytest.raises(InputError, match="not empty"):
        script.main(command(place, "data"))
    (place / "other").mkdir()
    (place / "other" / "run.json").write_text('{"arguments": {}}')
    with pytest.raises(InputError, match="other settings"):
        script.main(command(place, "other"))


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(InputError, match="at least 2"):
        Refinement(samples=1)
    with pytest.raises(InputError, match="steps 0"):
        Refinement(steps=0)
