"""Gradient caching equals the plain step: loss and every gradient, for any chunks; what reaches the device and when."""

import math
from contextlib import nullcontext

import pytest
import tiny_training
import torch
from tiny_training import awake_head as head
from torch import nn

from cir_cot.heads.base import HeadOutput
from cir_cot.training.chunks import (
    Chunk,
    collated_parts,
    pad_chunk_count,
    row_tokens,
    select,
    split_into_chunks,
)
from cir_cot.training.gradcache import ChunkedLoss, cached_step
from cir_cot.training.loading import LazyCollator, rows_per_part
from cir_cot.training.step_losses import StepTotals
from cir_cot.training.step_metrics import supervised_tokens

ROWS = (0, 1, 2, 3, 18, 6, 7, 19)  # row 2 has no chain; 18 and 19 have the targets of 0 and 1
CHUNKS = {1: 8, 400: 4, 600: 3, 10_000: 1}  # chunk_tokens -> chunks of these rows


def gradients(run) -> dict[str, torch.Tensor]:
    return {
        name: value.grad.clone()
        for name, value in run.model.named_parameters()
        if value.grad is not None
    }


def batch_of(run, rows=ROWS) -> dict:
    return run.data_collator([run.train_dataset[index, 0] for index in rows])


def step(folder, model, rows=ROWS, **arguments) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one step through the trainer's own training_step."""
    run = tiny_training.trainer(folder, model, **arguments)
    batch = batch_of(run, rows)
    totals = run._get_num_items_in_batch([batch], run.args.device)
    torch.manual_seed(5)
    loss = run.training_step(run.model, batch, totals)
    return loss.item(), gradients(run)


def assert_same(ours, theirs):
    """Equal to 1e-5 of the largest gradient of each parameter, as float32 sums in another order are."""
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    assert ours[1].keys() == theirs[1].keys()
    for name, value in theirs[1].items():
        error = (ours[1][name] - value).abs().max() / value.abs().max().clamp(min=1e-6)
        assert error < 1e-5, f"{name}: {error}"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return step(tmp_path_factory.mktemp("plain"), head())


@pytest.mark.parametrize("tokens", CHUNKS)
def test_loss_and_every_gradient_are_those_of_the_plain_step(plain, tmp_path, tokens):
    assert_same(step(tmp_path, head(), chunk_tokens=tokens), plain)
    assert max(value.abs().max() for value in plain[1].values()) > 0.1


def test_the_chunks_of_that_test_are_as_many_as_it_says(tmp_path):
    batch = batch_of(tiny_training.trainer(tmp_path, head()))
    assert {tokens: len(split_into_chunks(batch, tokens)) for tokens in CHUNKS} == CHUNKS


@pytest.mark.parametrize(
    "weights", [{"lm_weight": 0.0}, {"contrastive_weight": 0.0}, {"lm_weight": 0.3}], ids=str
)
def test_each_loss_alone_and_weighted(tmp_path, weights):
    model = head()
    model.log_temperature.requires_grad_("contrastive_weight" not in weights)
    ours = step(tmp_path, model, chunk_tokens=400, **weights)
    model.zero_grad()
    assert_same(ours, step(tmp_path, model, **weights))


def test_full_fine_tuning_with_the_vision_tower(tmp_path):
    """A tower that trains runs in both passes and gets its gradients."""
    model = tiny_training.tiny_head(lora=False)
    model.backbone.plain.model.visual.requires_grad_(True)
    ours = step(tmp_path, model, chunk_tokens=400)
    model.zero_grad()
    theirs = step(tmp_path, model)
    assert_same(ours, theirs)
    assert any("visual" in name for name in theirs[1])


@pytest.mark.parametrize("kind", ["recompute", "bf16"])
def test_with_recomputed_activations_and_in_bfloat16(tmp_path, kind):
    model = head(dropout=0.2 if kind == "recompute" else 0.0)
    model.backbone.checkpoint_activations(kind == "recompute")
    options = {"bf16": kind == "bf16"}
    ours = step(tmp_path, model, chunk_tokens=400, **options)
    model.backbone.checkpoint_activations(False)
    model.zero_grad()
    theirs = step(
        tmp_path, model, **options | ({"chunk_tokens": 400} if kind == "recompute" else {})
    )
    if kind == "recompute":
        return assert_same(ours, theirs)  # with the same dropout in every pass
    assert ours[0] == pytest.approx(theirs[0], rel=1e-2)
    for name, value in theirs[1].items():
        assert (
            nn.functional.cosine_similarity(ours[1][name].flatten(), value.flatten(), dim=0) > 0.99
        ), name
    return None


def test_both_passes_draw_the_same_dropout(tmp_path, monkeypatch):
    """With dropout the cached gradient is the derivative of the very loss it reports: by a finite difference."""
    model = head(dropout=0.3)
    slope = step(tmp_path, model, chunk_tokens=400)[1]
    name = max((n for n in slope if "lora_B" in n), key=lambda n: slope[n].abs().max())
    at, weight = slope[name].abs().argmax(), dict(model.named_parameters())[name]

    def moved(by: float) -> float:
        with torch.no_grad():
            weight.view(-1)[at] += by
        value = step(tmp_path, model, chunk_tokens=400)[0]
        with torch.no_grad():
            weight.view(-1)[at] -= by
        return value

    numeric = (moved(5e-3) - moved(-5e-3)) / 1e-2
    model.zero_grad()
    exact = step(tmp_path, model, chunk_tokens=400)[1][name].view(-1)[at].item()
    assert numeric == pytest.approx(exact, rel=2e-2)
    monkeypatch.setattr("cir_cot.training.gradcache.set_random_state", lambda *state: None)
    model.zero_grad()
    with pytest.raises(RuntimeError, match="other embeddings"):
        step(tmp_path, model, chunk_tokens=400)


class Noisy(nn.Module):
    """A head that is not repeatable: it counts its own calls."""

    def __init__(self):
        super().__init__()
        self.line, self.calls = nn.Linear(2, 2), 0

    def collator(self):
        return None

    def forward(self, query, target=None, labels=None):
        self.calls += 1
        turned = torch.tensor([math.cos(self.calls), math.sin(self.calls)])
        unit = nn.functional.normalize(0.1 * self.line(query["features"]) + turned, dim=-1)
        return HeadOutput(unit, unit.roll(1, dims=1), 0.1, aux={}, rows={}, stats={})


def test_a_head_that_is_not_repeatable_is_reported(tmp_path):
    run = tiny_training.trainer(tmp_path, Noisy(), chunk_tokens=4, lm_weight=0.0)
    side = {"features": torch.randn(4, 2)}
    batch = {"query": side, "target": side, "ids": torch.arange(4)}
    with pytest.raises(RuntimeError, match="other embeddings"):
        run.training_step(run.model, batch, StepTotals(4, 0))


def test_rows_of_features_without_tokens_are_cut_by_rows():
    side = {"features": torch.randn(5, 2)}
    batch = {"query": side, "target": side, "ids": torch.arange(5)}
    assert row_tokens(side) == [1] * 5
    assert [len(chunk) for chunk in split_into_chunks(batch, 4)] == [2, 2, 1]


def test_long_rows_share_chunks_and_one_that_fits_exactly_is_filled():
    def side(*lengths):
        return {"attention_mask": torch.tensor([[1] * n + [0] * (5 - n) for n in lengths])}

    batch = {"query": side(5, 1, 5, 1), "target": side(1, 1, 1, 1), "ids": torch.arange(4)}
    assert [chunk.rows.tolist() for chunk in split_into_chunks(batch, 12)] == [
        [0, 2],
        [1, 3],
    ]  # 2 * (5 + 1) = 12
    assert [chunk.rows.tolist() for chunk in split_into_chunks(batch, 11)] == [[0], [2], [1, 3]]


def test_a_part_has_at_least_eight_rows():
    assert [rows_per_part(budget) for budget in (1, 8 * 128, 9 * 128)] == [8, 8, 9]


def test_a_frozen_tower_reads_each_picture_once_a_step(tmp_path):
    run = tiny_training.trainer(tmp_path, head(), chunk_tokens=400)
    batch, seen = batch_of(run), []
    tower = run.model.backbone.plain.model.visual
    tower.patch_embed.register_forward_hook(lambda _, inputs, out: seen.append(len(out)))
    run.training_step(run.model, batch, StepTotals(8, 100))
    pictures = {
        (query.reference, target) for query in run.train_dataset.records for target in query.targets
    }
    names = {name for index in ROWS for name in (run.train_dataset.records[index].reference,
                                                 run.train_dataset.records[index].targets[0])}  # fmt: skip
    assert len(pictures) > 8
    assert sum(seen) == 16 * len(names)  # 4 x 4 patches a picture
    assert len(names) < 16
    assert len(run.vision) == 0  # forgotten


def test_chunks_hold_every_row_once_and_no_needless_padding(tmp_path):
    run = tiny_training.trainer(tmp_path, head())
    batch = batch_of(run)
    for budget in CHUNKS:
        chunks = split_into_chunks(batch, budget)
        assert sorted(id for chunk in chunks for id in chunk.batch["ids"].tolist()) == sorted(
            batch["ids"].tolist()
        )
        assert sum(supervised_tokens(chunk.batch) for chunk in chunks) == supervised_tokens(batch)
        for chunk in chunks:
            shapes = [chunk.batch[side]["input_ids"].shape for side in ("query", "target")]
            assert len(chunk) == 1 or sum(rows * width for rows, width in shapes) <= budget
            assert chunk.batch["labels"].shape == shapes[0]
            patches = chunk.batch["query"]["image_grid_thw"].prod(dim=1).sum()
            assert len(chunk.batch["query"]["pixel_values"]) == patches
            if budget < 10_000:
                assert chunk.batch["query"]["attention_mask"].any(dim=0).all()


def test_a_selected_row_is_the_row_collated_alone(tmp_path):
    run = tiny_training.trainer(tmp_path, head())
    batch = batch_of(run)
    for place, index in enumerate(ROWS[:3]):
        alone, chosen = batch_of(run, [index]), select(batch, torch.tensor([place]))
        assert chosen["ids"].equal(alone["ids"])
        assert chosen["labels"].equal(alone["labels"])
        for side in ("query", "target"):
            assert all(chosen[side][name].equal(value) for name, value in alone[side].items())


def test_stretched_chunks_weigh_the_same_rows(tmp_path):
    batch = batch_of(tiny_training.trainer(tmp_path, head()))
    for count in (3, 8, 11):
        chunks = pad_chunk_count(split_into_chunks(batch, 600), count)
        assert len(chunks) == count
        assert sum(len(chunk) for chunk in chunks if chunk.counted) == 8
    assert [chunk.counted for chunk in chunks] == [True] * 8 + [False] * 3


def test_pictures_are_loaded_a_part_at_a_time():
    class Rows(list):
        def __getitem__(self, item):
            loaded.append(item)
            return item

    loaded, parts = [], []

    def collate(rows):
        parts.append(list(rows))
        assert len(loaded) == sum(map(len, parts))  # nothing was loaded ahead
        return {"ids": torch.tensor(rows)}

    batch = LazyCollator(Rows(), collate, 3)(range(8))
    assert parts == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert [len(part["ids"]) for part in collated_parts(batch)] == [3, 3, 2]


def test_a_whole_training_in_chunks_is_the_plain_one(tmp_path):
    """Parts, chunks, accumulation, clipping and logging together."""
    options = {
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 6,
    }
    plain = tiny_training.trainer(tmp_path / "plain", head(), **options)
    chunked = tiny_training.trainer(tmp_path / "chunked", head(), chunk_tokens=400, **options)
    plain.train()
    chunked.train()
    for name in (
        "loss",
        "lm_loss",
        "contrastive_loss",
        "in_batch_r1",
        "grad_norm",
        "supervised_tokens",
        "temperature",
    ):
        theirs = [entry[name] for entry in plain.state.log_history if name in entry]
        assert [e[name] for e in chunked.state.log_history if name in e] == pytest.approx(
            theirs, rel=1e-4, abs=1e-6
        )
    for (name, ours), theirs in zip(
        chunked.model.named_parameters(), plain.model.parameters(), strict=True
    ):
        torch.testing.assert_close(
            ours, theirs, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


class Routed(nn.Module):
    """A head with a loss that is no mean over rows: the squared mean of what it says of each."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(3, 4)

    def collator(self):
        return None

    def forward(self, query, target=None, labels=None):
        score = self.line(query["features"])
        rows = {"score": score, "chosen": score.argmax(dim=1)}
        vectors = self.encode(query)
        targets = None if target is None else self.encode(target)
        return HeadOutput(vectors, targets, 0.1, aux={}, rows=rows, stats={})

    def encode(self, inputs):
        return nn.functional.normalize(self.line(inputs["features"]), dim=-1)

    def batch_losses(self, rows):
        share = nn.functional.one_hot(rows["chosen"], 4).float().mean(dim=0)
        return {"lm": (share * rows["score"].mean(dim=0).square()).sum()}


def routed_step(folder, chunk_tokens: int, **options) -> tuple[float, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    run = tiny_training.trainer(folder, Routed(), chunk_tokens=chunk_tokens, **options)
    sides = {side: {"features": torch.randn(7, 3)} for side in ("query", "target")}
    loss = run.training_step(run.model, sides | {"ids": torch.arange(7)}, StepTotals(7, 0)).item()
    return loss, gradients(run) | {"logged": run.step_metrics.sums["lm_loss"]}


def test_a_loss_that_needs_all_rows_is_that_of_the_plain_step(tmp_path):
    """A mean of the chunks' values would be another number."""
    for weight in (0.0, 3.0):
        plain = routed_step(tmp_path, 0, lm_weight=weight)
        for budget in (2, 4, 10):
            assert_same(routed_step(tmp_path, budget, lm_weight=weight), plain)
    parts = [routed_step(tmp_path, 0, lm_weight=weight)[0] for weight in (0.0, 3.0)]
    assert parts[1] > parts[0] + 0.1
    with pytest.raises(ValueError, match="contrastive_weight above 0"):
        routed_step(tmp_path, 4, contrastive_weight=0.0)


def test_a_chunk_without_weight_gives_every_parameter_a_gradient_of_zero():
    """Where weights are shared out, a process that skipped a layer would leave the others waiting."""
    layer = torch.nn.Linear(3, 2)
    batch = {"ids": torch.arange(4), "rows": torch.randn(4, 3)}
    chunks, seen = [Chunk(batch), Chunk(batch, counted=False)], []

    def forward(chunk: Chunk, final: bool) -> HeadOutput:
        vectors = layer(chunk.part["rows"])
        return HeadOutput(vectors, vectors, 0.1, aux={}, rows={}, stats={})

    def backward(loss: torch.Tensor, last: bool) -> None:
        layer.zero_grad()
        loss.backward()
        seen.append({name: value.grad.clone() for name, value in layer.named_parameters()})

    cached_step(
        chunks,
        ChunkedLoss(
            forward=forward,
            row_losses=lambda out, chunk: 0.0,
            batch_losses=lambda out, ids: (out.query * out.target).sum(),
        ),
        backward=backward,
        no_sync=nullcontext,
        device=torch.device("cpu"),
    )
    assert all(gradient.any() for gradient in seen[0].values())
    assert seen[1].keys() == seen[0].keys()
    assert not any(gradient.any() for gradient in seen[1].values())
