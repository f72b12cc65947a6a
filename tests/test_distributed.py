"""Two processes compute what one computes on the whole batch: loss, gradients, whole trainings; really two processes.

The processes run this very file under torchrun over gloo and leave what they found in a folder; the tests, in one
process, compute the same on all rows and compare.
"""

import importlib.util
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
import training
from safetensors.torch import load_file, save_file

from cir_cot.backbone import load_backbone
from cir_cot.gradcache import cached_step, cut, stretch
from cir_cot.heads.cot import CotRetriever
from cir_cot.losses import gather_counts, gather_with_grad, info_nce
from cir_cot.meter import supervised_tokens
from cir_cot.resume import whole
from cir_cot.tiny import write_tiny

ROWS = (0, 1, 2, 3, 18, 6, 7, 19)  # 18 and 19 have the targets of 0 and 1, on the other process
SPLITS = {"equal": 4, "unequal": 3, "alone": 1}  # how many of them the first process holds
CHUNK = {"plain": {}, "cached": {"chunk_tokens": 130}}  # one row a chunk: the processes have unequally many chunks
BITS = importlib.util.find_spec("bitsandbytes") is not None
DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
# 23 rows in batches of 4: the last batch of an epoch has three rows, one on the first process and two on the second.
# Two micro-batches a step, so the last step of an epoch has as many rows as the others but for one.
RUN = {"rows": 23, "gradient_accumulation_steps": 2, "num_train_epochs": 2, "learning_rate": 1e-3, "warmup_steps": 0}
SAVING = {"save_strategy": "steps", "save_steps": 2}
LOGGED = ("loss", "lm_loss", "contrastive_loss", "in_batch_r1", "positive_similarity", "negative_similarity",
          "supervised_tokens", "grad_norm")  # fmt: skip


def head():
    return training.tiny_head(projection=16, learn_temperature=True)


def nf4_head(folder: Path) -> CotRetriever:
    """A head on a 4-bit base with LoRA and the added token, as QLoRA trains it."""
    torch.manual_seed(0)
    backbone = load_backbone(folder, lora={"r": 4, "dropout": 0.0}, quantization="nf4")
    return CotRetriever(backbone, str(folder), temperature=0.1)


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
    heads = {"": head} | ({"nf4": partial(nf4_head, out / "base")} if BITS else {})
    for kind, make in heads.items():
        for split, mine in SPLITS.items():
            for way, options in CHUNK.items():
                name = f"{kind} {split} {way}".strip()
                one = training.trainer(out / "one", make(), **RUN | options)
                rank, model = one.args.process_index, one.accelerator.prepare(one.model)
                share = batch(one, ROWS[:mine] if rank == 0 else ROWS[mine:])
                totals = one._get_num_items_in_batch([share], one.args.device)
                loss = one.training_step(model, share, totals)
                facts["loss"][name] = one.accelerator.reduce(loss.detach(), "mean").item()
                if rank == 0:
                    save_file(gradients(one), out / f"{name}.safetensors")
    complete = training.trainer(out / "run", head(), per_device_train_batch_size=2, **RUN | SAVING)
    complete.train()
    resumed = training.trainer(out / "run", head(), per_device_train_batch_size=2, **RUN | SAVING)
    resumed.train(resume_from_checkpoint=str(out / "run" / "checkpoint-2"))
    facts["ranks"] = one.accelerator.gather(torch.tensor([rank])).tolist()
    facts["processes"] = complete.accelerator.num_processes
    facts["log"], facts["log_resumed"] = complete.state.log_history, resumed.state.log_history
    if rank == 0:
        save_file(trained(complete), out / "run.safetensors")
        save_file(trained(resumed), out / "resumed.safetensors")
        (out / "facts.json").write_text(json.dumps(facts))
    torch.distributed.destroy_process_group()
    os._exit(
        0
    )  # taking gloo's group apart at the interpreter's end can deadlock (torch 2.13: a join that holds the GIL)


def zero_worker(out: Path) -> None:
    """ZeRO-2 and ZeRO-3 by their own engine: one cached step on unequal rows, then the head is saved."""
    import deepspeed

    torch.set_num_threads(1)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # or it is compiled first, for a minute
    deepspeed.init_distributed("gloo", verbose=False)
    rank = int(os.environ["RANK"])
    for stage in (2, 3):
        model = head()
        weights = [value for value in model.parameters() if value.requires_grad]
        config = {"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": stage},
                  "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False,
                  "gradient_clipping": 0.0}  # fmt: skip
        engine = deepspeed.initialize(model=model, optimizer=torch.optim.SGD(weights, lr=0.1), config=config)[0]
        rows = training.CirDataset(training.records(23), training.Pictures())
        share = model.collator()([rows[index, 0] for index in (ROWS[:3] if rank == 0 else ROWS[3:])])
        with engine.coalesce_grad_reduction():
            zero_step(engine, share)
        engine.step()
        full = engine._zero3_consolidated_16bit_state_dict() if stage == 3 else model.state_dict()
        if rank == 0:
            with whole(model, full if stage == 3 else None):
                model.save(out / f"zero{stage}")
            names = [name for name, value in model.named_parameters() if value.requires_grad]
            save_file({name: full[name].clone() for name in names}, out / f"zero{stage}.safetensors")
    torch.distributed.barrier()
    os._exit(0)


def zero_step(engine, share: dict) -> None:
    """Chain and retrieval of this process's rows, one row a chunk, weighed as CirTrainer does."""
    device = torch.device("cpu")
    tokens, counts = sum(gather_counts(supervised_tokens(share), device)), gather_counts(len(share["ids"]), device)
    chunks = cut(share, 1)
    chunks = stretch(chunks, max(gather_counts(len(chunks), device)))

    def contrast(outputs: dict, ids: torch.Tensor) -> torch.Tensor:
        start = sum(counts[: torch.distributed.get_rank()])
        loss = info_nce(outputs["query"], gather_with_grad(outputs["target"]), start + torch.arange(len(ids)),
                        outputs["temperature"], ids, gather_with_grad(ids))  # fmt: skip
        return loss * 2 * len(ids) / 8

    cached_step(
        chunks,
        lambda c, again: engine(query=c.batch["query"], target=c.batch["target"],
                                labels=c.batch["labels"] if again else None),
        contrast,
        lambda out, c: out["aux"]["lm"] * (2 * supervised_tokens(c.batch) * c.weighs / tokens),
        lambda loss, last: engine.backward(loss),
        nullcontext,
        device,
    )  # fmt: skip


def launch(out: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, __file__, str(out), *arguments], capture_output=True, text=True, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """Folder of what two processes found."""
    out = tmp_path_factory.mktemp("two")
    if BITS:
        write_tiny(out / "base", hidden=64, intermediate=128, layers=2, vision_depth=1)
    launch(out)
    return out


@pytest.fixture(scope="module")
def facts(two) -> dict:
    found = json.loads((two / "facts.json").read_text())
    assert (found["world"], found["processes"], found["ranks"]) == (2, 2, [0, 1])
    return found


def assert_one_process_agrees(two: Path, facts: dict, name: str, one) -> None:
    one.model.train()
    loss = one.compute_loss(one.model, batch(one, ROWS))
    loss.backward()
    assert facts["loss"][name] == pytest.approx(loss.item(), abs=1e-5)
    ours, theirs = gradients(one), load_file(two / f"{name}.safetensors")
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(theirs[key], value, atol=1e-5, rtol=1e-4, msg=lambda m, n=key: f"{n}: {m}")
    assert max(value.abs().max() for value in ours.values()) > 0.1  # 1e-5 is small beside them


@pytest.mark.parametrize("way", CHUNK)
@pytest.mark.parametrize("split", SPLITS)
def test_loss_and_gradients_are_those_of_one_process_on_the_whole_batch(two, facts, split, way, tmp_path):
    assert_one_process_agrees(two, facts, f"{split} {way}", training.trainer(tmp_path, head(), **RUN))


@pytest.mark.skipif(not BITS, reason="needs bitsandbytes: pip install 'cir-cot[quant]'")
@pytest.mark.parametrize("way", CHUNK)
def test_a_4_bit_base_too(two, facts, way, tmp_path):
    one = training.trainer(tmp_path, nf4_head(two / "base"), **RUN)
    kinds = {type(module).__name__ for module in one.model.modules()}
    assert "Linear4bit" in kinds
    assert_one_process_agrees(two, facts, f"nf4 unequal {way}", one)


@pytest.mark.slow
@pytest.mark.skipif(not DEEPSPEED, reason="needs DeepSpeed: pip install 'cir-cot[deepspeed]'")
def test_zero_trains_as_one_process_and_saves_exactly(tmp_path):
    launch(tmp_path, "zero")
    one = training.trainer(tmp_path / "one", head(), **RUN)
    before = {name: value.clone() for name, value in trained(one).items()}
    optimizer = torch.optim.SGD([value for value in one.model.parameters() if value.requires_grad], lr=0.1)
    one.model.train()
    one.compute_loss(one.model, batch(one, ROWS)).backward()
    optimizer.step()
    for stage in (2, 3):
        found, again = load_file(tmp_path / f"zero{stage}.safetensors"), head()
        again.load_weights(tmp_path / f"zero{stage}")
        assert found.keys() == before.keys()
        for name, value in again.named_parameters():
            if value.requires_grad:
                assert torch.equal(value, found[name]), name
                assert not torch.equal(value, before[name]), name
                torch.testing.assert_close(value, trained(one)[name], atol=2e-5, rtol=1e-3)


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
    (zero_worker if sys.argv[2:] == ["zero"] else worker)(Path(sys.argv[1]))
