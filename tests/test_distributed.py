"""Two processes compute what one computes on the whole batch: loss, gradients, whole trainings; really two processes.

The processes run this very file under torchrun over gloo and leave what they found in a folder; the tests, in one
process, compute the same on all rows and compare.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import training
from safetensors.torch import load_file, save_file

ROWS = (0, 1, 2, 3, 18, 6, 7, 19)  # 18 and 19 have the targets of 0 and 1, on the other process
SPLITS = {"equal": 4, "unequal": 3}  # how many of them the first process holds
# 23 rows in batches of 4: the last batch of an epoch has three rows, one on the first process and two on the second.
# Two micro-batches a step, so the last step of an epoch has as many rows as the others but for one.
RUN = {"rows": 23, "gradient_accumulation_steps": 2, "num_train_epochs": 2, "learning_rate": 1e-3, "warmup_steps": 0}
SAVING = {"save_strategy": "steps", "save_steps": 2}
LOGGED = ("loss", "lm_loss", "contrastive_loss", "in_batch_r1", "positive_similarity", "negative_similarity",
          "supervised_tokens", "grad_norm")  # fmt: skip


def head():
    return training.tiny_head(projection=16, learn_temperature=True)


def batch(trainer, rows: tuple[int, ...]) -> dict:
    return trainer.data_collator([trainer.train_dataset[index, 0] for index in rows])


def gradients(trainer) -> dict[str, torch.Tensor]:
    return {name: value.grad for name, value in trainer.model.named_parameters() if value.grad is not None}


def trained(trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in trainer.model.named_parameters() if value.requires_grad}


def worker(out: Path) -> None:
    """What each of the two processes does; the first one writes the results."""
    torch.set_num_threads(1)
    facts = {"world": int(os.environ["WORLD_SIZE"]), "loss": {}}
    for name, mine in SPLITS.items():
        one = training.trainer(out / name, head(), **RUN)
        rank, model = one.args.process_index, one.accelerator.prepare(one.model)
        share = batch(one, ROWS[:mine] if rank == 0 else ROWS[mine:])
        loss = one.compute_loss(model, share)
        one.accelerator.backward(loss)
        facts["loss"][name] = one.accelerator.reduce(loss.detach(), "mean").item()
        if rank == 0:
            save_file(gradients(one), out / f"{name}.safetensors")
    whole = training.trainer(out / "run", head(), per_device_train_batch_size=2, **RUN | SAVING)
    whole.train()
    resumed = training.trainer(out / "run", head(), per_device_train_batch_size=2, **RUN | SAVING)
    resumed.train(resume_from_checkpoint=str(out / "run" / "checkpoint-2"))
    facts["ranks"] = one.accelerator.gather(torch.tensor([rank])).tolist()
    facts["processes"] = whole.accelerator.num_processes
    facts["log"], facts["log_resumed"] = whole.state.log_history, resumed.state.log_history
    if rank == 0:
        save_file(trained(whole), out / "run.safetensors")
        save_file(trained(resumed), out / "resumed.safetensors")
        (out / "facts.json").write_text(json.dumps(facts))
    torch.distributed.destroy_process_group()
    os._exit(0)  # taking gloo's group apart at the interpreter's end can deadlock (torch 2.13: a join that holds the GIL)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """Folder of what two processes found."""
    out = tmp_path_factory.mktemp("two")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*launch, __file__, str(out)], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


@pytest.fixture(scope="module")
def facts(two) -> dict:
    found = json.loads((two / "facts.json").read_text())
    assert (found["world"], found["processes"], found["ranks"]) == (2, 2, [0, 1])
    return found


@pytest.mark.parametrize("split", SPLITS)
def test_loss_and_gradients_are_those_of_one_process_on_the_whole_batch(two, facts, split, tmp_path):
    one = training.trainer(tmp_path, head(), **RUN)
    one.model.train()
    loss = one.compute_loss(one.model, batch(one, ROWS))
    loss.backward()
    assert facts["loss"][split] == pytest.approx(loss.item(), abs=1e-5)
    ours, theirs = gradients(one), load_file(two / f"{split}.safetensors")
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert max(value.abs().max() for value in ours.values()) > 0.1  # 1e-5 is small beside them


def test_the_batch_is_one_that_could_go_wrong(tmp_path):
    """Both processes hold supervised tokens, not equally many, and false negatives across the split."""
    one = training.trainer(tmp_path, head(), **RUN)
    rows = batch(one, ROWS)
    tokens = (rows["labels"] != -100).sum(dim=1)
    assert tokens[:4].sum() != tokens[4:].sum()
    assert 0 < tokens[:3].sum() < tokens[3:].sum()
    assert set(rows["ids"][:3].tolist()) & set(rows["ids"][4:].tolist())


def test_a_whole_training_is_that_of_one_process_with_twice_the_batch(two, facts, tmp_path):
    one = training.trainer(tmp_path, head(), per_device_train_batch_size=4, **RUN)
    one.train()
    for name in LOGGED:
        ours = [entry[name] for entry in one.state.log_history if name in entry]
        theirs = [entry[name] for entry in facts["log"] if name in entry]
        assert len(ours) == 6
        assert theirs == pytest.approx(ours, abs=1e-5, rel=1e-4)
    for name, value in load_file(two / "run.safetensors").items():
        torch.testing.assert_close(value, trained(one)[name], atol=1e-5, rtol=1e-4)


def test_two_processes_resume_to_the_very_same_bits(two, facts):
    whole, resumed = load_file(two / "run.safetensors"), load_file(two / "resumed.safetensors")
    assert [name for name, value in whole.items() if not torch.equal(value, resumed[name])] == []
    for ours, theirs in zip(facts["log"][2:6], facts["log_resumed"][2:6], strict=True):
        assert ours["loss"] == theirs["loss"]


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
