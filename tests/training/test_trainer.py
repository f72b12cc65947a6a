"""The trainer with the real chain head on a tiny Qwen2.5-VL: exact resume, accumulation, what it saves and logs."""

import dataclasses
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_training
import torch
from safetensors import safe_open
from transformers import TrainerCallback

from cir_cot.errors import InputError
from cir_cot.heads.base import image_hash
from cir_cot.losses import batch_statistics
from cir_cot.records import Record
from cir_cot.training.checkpoints import COMPLETE, latest_checkpoint
from cir_cot.training.dataset import used, with_common_targets
from cir_cot.training.sampler import RowSampler

PARTS = ("loss", "lm_loss", "contrastive_loss", "grad_norm", "in_batch_r1", "supervised_tokens")


class Interrupt(TrainerCallback):
    """Ends a run without a word after `at` steps, as a power cut would."""

    def __init__(self, at: int):
        self.at = at

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.at:
            raise KeyboardInterrupt


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def logged(trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def assert_same(ours: dict, theirs: dict):
    assert ours.keys() == theirs.keys()
    different = [name for name, value in ours.items() if not torch.equal(value, theirs[name])]
    assert different == []


# Dropout in the adapters, chain dropout in the collator, two micro-batches a step, three steps an epoch.
NOISY = {
    "gradient_accumulation_steps": 2,
    "num_train_epochs": 2,
    "save_strategy": "steps",
    "save_steps": 1,
}


def noisy_head():
    return tiny_training.tiny_head(
        dropout=0.2, chain_dropout=0.3, projection=16, learn_temperature=True
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run = tiny_training.trainer(tmp_path_factory.mktemp("whole"), noisy_head(), **NOISY)
    run.train()
    return run


@pytest.mark.parametrize(
    "killed_after", [1, 3, 5], ids=["first epoch", "between epochs", "second epoch"]
)
def test_a_killed_run_resumes_to_the_very_same_bits(uninterrupted, tmp_path, killed_after):
    torch.manual_seed(killed_after)  # what the random state was before must not matter
    killed = tiny_training.trainer(
        tmp_path, noisy_head(), callbacks=[Interrupt(killed_after + 1)], **NOISY
    )
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = tiny_training.trainer(tmp_path, noisy_head(), **NOISY)
    resumed.train(resume_from_checkpoint="last")
    assert resumed.state.global_step == 6
    assert_same(weights(resumed), weights(uninterrupted))
    for name in PARTS:
        assert logged(resumed, name) == logged(uninterrupted, name)
    ours, theirs = (
        resumed.optimizer.state_dict()["state"],
        uninterrupted.optimizer.state_dict()["state"],
    )
    assert_same(
        {i: s["exp_avg_sq"] for i, s in ours.items()},
        {i: s["exp_avg_sq"] for i, s in theirs.items()},
    )


def test_the_noise_of_the_resumed_run_is_real(uninterrupted, tmp_path):
    """Otherwise the test above would show nothing about random states."""
    other = tiny_training.trainer(tmp_path, noisy_head(), seed=1, **NOISY | {"save_strategy": "no"})
    other.train()
    assert logged(other, "lm_loss") != logged(uninterrupted, "lm_loss")
    assert len(set(logged(uninterrupted, "supervised_tokens"))) > 1


def test_resume_passes_over_a_half_written_checkpoint(uninterrupted, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted.args.output_dir, folder)
    assert latest_checkpoint(folder) == str(folder / "checkpoint-6")
    (folder / "checkpoint-6" / COMPLETE).unlink()
    (folder / "checkpoint-6" / "optimizer.pt").write_bytes(b"torn")
    assert latest_checkpoint(folder) == str(folder / "checkpoint-5")
    resumed = tiny_training.trainer(folder, noisy_head(), **NOISY)
    resumed.train(resume_from_checkpoint=True)
    assert_same(weights(resumed), weights(uninterrupted))
    assert (folder / "checkpoint-6" / COMPLETE).is_file()


def test_last_starts_anew_where_there_is_no_checkpoint(tmp_path):
    run = tiny_training.trainer(tmp_path, rows=8, max_steps=1)
    run.train(resume_from_checkpoint="last")
    assert run.state.global_step == 1


def test_resuming_in_another_order_is_refused(uninterrupted):
    folder = uninterrupted.args.output_dir
    checkpoint = f"{folder}/checkpoint-2"
    for name, value in {
        "per_device_train_batch_size": 2,
        "seed": 5,
        "group_by": "reference",
    }.items():
        other = tiny_training.trainer(
            folder, noisy_head(), **NOISY | {name: value, "group_size": 2}
        )
        with pytest.raises(InputError, match=f"{name}|group_size"):
            other.train(resume_from_checkpoint=checkpoint)
    with pytest.raises(InputError, match="no complete checkpoint"):
        tiny_training.trainer(folder, noisy_head(), **NOISY).train(
            resume_from_checkpoint=f"{folder}/nowhere"
        )


def test_a_checkpoint_holds_adapter_and_head_and_no_base_weights(uninterrupted):
    folder = Path(uninterrupted.args.output_dir) / "checkpoint-6"
    files = {path.name for path in folder.iterdir()}
    assert {
        "adapter_model.safetensors",
        "adapter_config.json",
        "head.safetensors",
        "retriever.json",
        COMPLETE,
    } <= files
    assert not files & {"model.safetensors", "pytorch_model.bin", "training_args.bin"}
    stored = {}
    for name in ("adapter_model.safetensors", "head.safetensors"):
        with safe_open(folder / name, "pt") as file:
            stored |= {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    trained = [value for value in uninterrupted.model.parameters() if value.requires_grad]
    assert len(stored) == len(trained)


def test_old_checkpoints_are_deleted_only_beyond_the_limit(tmp_path):
    tiny_training.trainer(
        tmp_path, rows=16, save_strategy="steps", save_steps=1, save_total_limit=2
    ).train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-3",
        "checkpoint-4",
    ]
    assert all((path / COMPLETE).is_file() for path in tmp_path.glob("checkpoint-*"))


def test_group_size_zero_fills_a_micro_batch_with_one_group(tmp_path):
    def pure(**arguments) -> int:
        """How many of the eight batches hold one category only."""
        run = tiny_training.trainer(tmp_path, rows=24, per_device_train_batch_size=3, **arguments)
        rows, batches = run.train_dataset.records, run.get_train_dataloader().batch_sampler
        return sum(len({rows[index].source for index, _ in batch}) == 1 for batch in batches)

    assert (
        pure(group_by="category", group_size=0) >= 6
    )  # six categories of four rows: the fourth ones are left over
    assert pure() < 3


def test_accelerate_hands_every_epoch_to_the_sampler(tmp_path):
    run = tiny_training.trainer(tmp_path, num_train_epochs=3, seed=11)
    seen, get = [], run.train_dataset.__class__.__getitem__

    class Watched(run.train_dataset.__class__):
        def __getitem__(self, item):
            seen.append(item)
            return get(self, item)

    run.train_dataset.__class__ = Watched
    run.train()
    wanted = RowSampler(run.train_dataset.records, 11)
    for epoch in range(3):
        wanted.set_epoch(epoch)
        assert seen[epoch * 22 : (epoch + 1) * 22] == list(wanted)
    assert len(seen) == 66
    assert [row for row, _ in seen[:22]] != [row for row, _ in seen[22:44]]


def test_accumulated_micro_batches_weigh_tokens_and_rows_not_batches(tmp_path):
    """The language-model loss of two micro-batches is that of one batch, although their token counts differ."""
    options = {"rows": 16, "contrastive_weight": 0.0, "max_steps": 2, "learning_rate": 1e-3}
    whole = tiny_training.trainer(tmp_path / "whole", per_device_train_batch_size=8, **options)
    halves = tiny_training.trainer(
        tmp_path / "halves", per_device_train_batch_size=2, gradient_accumulation_steps=4, **options
    )
    whole.train()
    halves.train()
    for name in ("loss", "lm_loss", "grad_norm", "supervised_tokens"):
        assert logged(halves, name) == pytest.approx(logged(whole, name), rel=1e-4)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(halves)[name], value, atol=2e-5, rtol=1e-4)


def test_the_loss_is_the_weighted_sum_of_its_logged_parts(tmp_path):
    run = tiny_training.trainer(
        tmp_path, lm_weight=0.25, contrastive_weight=2.0, gradient_accumulation_steps=2
    )
    run.train()
    parts = zip(
        logged(run, "lm_loss"), logged(run, "contrastive_loss"), logged(run, "loss"), strict=True
    )
    for lm, contrastive, loss in parts:
        assert loss == pytest.approx(0.25 * lm + 2.0 * contrastive, rel=1e-5)


def test_loading_workers_change_nothing(tmp_path):
    head = {"chain_dropout": 0.5}
    alone = tiny_training.trainer(tmp_path, tiny_training.tiny_head(**head), rows=12)
    helped = tiny_training.trainer(
        tmp_path, tiny_training.tiny_head(**head), rows=12, dataloader_num_workers=2
    )
    alone.train()
    helped.train()
    assert logged(helped, "loss") == logged(alone, "loss")


def test_a_row_is_no_negative_of_another_with_the_same_target(tmp_path):
    run = tiny_training.trainer(tmp_path, lm_weight=0.0)
    batch = run.data_collator([run.train_dataset[index, 0] for index in (0, 18, 1)])
    assert batch["ids"].unique().numel() == 2
    masked = run.compute_loss(run.model, batch)
    unmasked = run.compute_loss(run.model, batch | {"ids": torch.arange(3)})
    assert unmasked > masked + 0.1


def test_a_querys_other_targets_are_no_negatives(tmp_path):
    """The target of row 1 is a second correct answer to row 0, in one batch and in chunks."""
    run = tiny_training.trainer(tmp_path, lm_weight=0.0)
    first, second = run.train_dataset.records[:2]
    both = replace(first, targets=(*first.targets, *second.targets))
    run.train_dataset.records = [both, *run.train_dataset.records[1:]]
    batch = run.data_collator([run.train_dataset[index, 0] for index in range(4)])
    assert batch["ids"].shape == (4, 2)
    loss = run.compute_loss(run.model, batch)
    # Closed form: without that column in the sum of row 0.
    with torch.no_grad():
        out = run.model(batch["query"], batch["target"])
    logits = out.query @ out.target.T / out.temperature
    logits[0, 1] = -torch.inf
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(4))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert run.compute_loss(run.model, batch | {"ids": batch["ids"][:, 0]}) > loss + 1e-3


def test_queries_that_ask_the_same_share_their_targets():
    first = Record("a", "r", "red", ("x",))
    second = Record("b", "r", "red", ("y", "x"))
    other = Record("c", "r", "blue", ("z",))
    joined = with_common_targets([first, second, other])
    assert [record.targets for record in joined] == [("x", "y"), ("y", "x"), ("z",)]
    assert joined[2] is other


def test_how_a_batch_separates_is_logged_as_it_was_before_the_step(tmp_path):
    run = tiny_training.trainer(tmp_path, tiny_training.awake_head(), max_steps=1)
    batch = next(iter(run.get_train_dataloader()))
    with torch.no_grad():
        out = run.model(batch["query"], batch["target"])
    rows = torch.arange(len(batch["ids"]))
    expected = batch_statistics(out.query, out.target, rows, batch["ids"], batch["ids"][:, 0])
    run.train()
    entry = run.state.log_history[0]
    for name, value in expected.items():
        assert entry[name] == pytest.approx(value.item(), abs=1e-5), name
    assert entry["temperature"] == pytest.approx(0.1)


def test_what_is_logged(tmp_path):
    run = tiny_training.trainer(tmp_path, logging_steps=2)
    run.train()
    entry = run.state.log_history[1]
    assert entry["temperature"] == pytest.approx(0.1)
    assert entry["tokens_per_second"] > 0
    assert entry["peak_memory_mb"] > 50
    batches = list(run.get_train_dataloader())[1:2]  # the first step is logged alone
    assert entry["step"] == 2
    assert entry["supervised_tokens"] == sum(
        int((batch["labels"] != -100).sum()) for batch in batches
    )


def test_only_adapters_and_the_token_row_change(tmp_path):
    run = tiny_training.trainer(
        tmp_path, tiny_training.tiny_head(projection=16, learn_temperature=True), max_steps=2
    )
    before = weights(run)
    run.train()
    changed = {name for name, value in weights(run).items() if not torch.equal(value, before[name])}
    assert changed
    kinds = {"lora_A", "lora_B", "trainable_tokens_delta", "project.weight", "log_temperature"}
    assert {kind for kind in kinds if any(kind in name for name in changed)} == kinds
    assert [name for name in changed if not any(kind in name for kind in kinds)] == []


def test_stage_one_trains_the_chain_without_encoding_targets(tmp_path):
    run = tiny_training.trainer(tmp_path, contrastive_weight=0.0, max_steps=2)
    targets = []
    run.model.register_forward_pre_hook(
        lambda _, args, kwargs: targets.append(kwargs["target"]), with_kwargs=True
    )
    run.train()
    assert targets == [None, None]
    assert not logged(run, "contrastive_loss")
    assert logged(run, "loss") == pytest.approx(logged(run, "lm_loss"))


def test_retrieval_alone_computes_no_language_model_loss(tmp_path):
    run = tiny_training.trainer(tmp_path, lm_weight=0.0, max_steps=2)
    run.train()
    assert not logged(run, "lm_loss")
    assert logged(run, "loss") == pytest.approx(logged(run, "contrastive_loss"))


def test_an_auxiliary_loss_without_a_weight_is_an_error(tmp_path):
    run = tiny_training.trainer(tmp_path)
    run.model.register_forward_hook(
        lambda _, args, out: out._replace(aux={"pull": out.query.sum()})
    )
    with pytest.raises(ValueError, match="'pull'"):
        run.train()


def test_full_fine_tuning_resumes_too(tmp_path):
    options = {"rows": 8, "save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-3}
    whole = tiny_training.trainer(
        tmp_path / "whole", tiny_training.tiny_head(lora=False), **options
    )
    whole.train()
    resumed = tiny_training.trainer(
        tmp_path / "whole", tiny_training.tiny_head(lora=False), **options
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    assert_same(weights(resumed), weights(whole))


GOLDEN = {
    "lm_loss": [5.9768, 5.9816, 5.9795, 5.9817],
    "contrastive_loss": [1.4213, 1.4014, 1.0389, 1.1925],
    "in_batch_r1": [2 / 8, 2 / 8, 1 / 6, 5 / 8],
}


def test_the_first_losses_are_what_they_were(tmp_path):
    options = {
        "group_by": "reference",
        "group_size": 2,
        "gradient_accumulation_steps": 2,
        "warmup_steps": 0,
    }
    run = tiny_training.trainer(tmp_path, max_steps=4, learning_rate=1e-3, **options)
    run.train()
    for name, values in GOLDEN.items():
        assert logged(run, name) == pytest.approx(values, rel=2e-3)


def test_bf16_trains_when_asked(tmp_path):
    run = tiny_training.trainer(tmp_path, max_steps=2, bf16=True)
    run.train()
    assert run.accelerator.mixed_precision == "bf16"
    assert all(torch.isfinite(torch.tensor(logged(run, "loss"))))
    exact = tiny_training.trainer(tmp_path, max_steps=2)
    exact.train()
    assert logged(run, "loss") == pytest.approx(logged(exact, "loss"), rel=0.05)
    assert logged(run, "loss") != logged(exact, "loss")


def test_state_of_a_checkpoint_is_readable_json(uninterrupted):
    complete = json.loads(
        (Path(uninterrupted.args.output_dir) / "checkpoint-6" / COMPLETE).read_text()
    )
    assert complete["rows"] == 22
    assert complete["processes"] == 1


def test_training_shows_the_first_target_and_masks_by_it(tmp_path):
    run = tiny_training.trainer(tmp_path)
    shown = []
    several = replace(run.train_dataset.records[0], targets=("red-blue", "green-cyan"))
    run.train_dataset.records = [several, *run.train_dataset.records[1:]]
    run.train_dataset.images = run.train_dataset.targets = SimpleNamespace(load=shown.append)
    row = run.train_dataset[0, 0]
    assert shown == [several.reference, "red-blue"]
    picture = tiny_training.Pictures().load("red-blue")
    batch = run.data_collator([dataclasses.replace(row, reference=picture, target=picture)])
    assert batch["ids"].tolist() == [[image_hash("red-blue"), image_hash("green-cyan")]]
    assert used([several]) == [several.reference, "red-blue"]
