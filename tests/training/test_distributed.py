"""Two processes compute what one computes on the whole batch: loss, gradients, whole trainings; really two processes.

The processes run this very file under torchrun over gloo and leave what they found in a folder; the tests, in one
process, compute the same on all rows and compare. DDP in the fast tests; ZeRO-2, ZeRO-3 and FSDP in the slow ones.
"""

import importlib.util
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import tiny_training
import torch
import yaml
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from tiny_training import awake_head as head

from cir_cot.digests import digest_bytes
from cir_cot.heads.cot import CotRetriever
from cir_cot.models.backbone import load_backbone
from cir_cot.models.feature_cache import FeatureCache
from cir_cot.models.tiny_qwen import write_tiny
from cir_cot.ranks import Ranks
from cir_cot.training.distributed import training_ranks

ROWS = (0, 1, 2, 3, 18, 6, 7, 19)  # 18 and 19 have the targets of 0 and 1, on the other process
SPLITS = {"equal": 4, "unequal": 3, "alone": 1}  # how many of them the first process holds
CHUNK = {
    "plain": {},
    "cached": {"chunk_tokens": 130},
}  # one row a chunk: the processes have unequally many chunks
BITS = importlib.util.find_spec("bitsandbytes") is not None
DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
# 23 rows in batches of 4: the last batch of an epoch has three rows, one on the first process and two on the second.
# Two micro-batches a step, so the last step of an epoch has as many rows as the others but for one.
RUN = {
    "rows": 23,
    "gradient_accumulation_steps": 2,
    "num_train_epochs": 2,
    "learning_rate": 1e-3,
    "warmup_steps": 0,
}
SAVING = {"save_strategy": "steps", "save_steps": 2}
CONFIGS = Path(__file__).resolve().parents[2] / "train" / "configs"
# Accumulated and at once, in chunks and not, adapters and all weights: each is another way through the trainer.
SHARDED_WAYS = {"plain": {}, "cached": CHUNK["cached"], "at once": CHUNK["cached"] | {"gradient_accumulation_steps": 1},
                "all weights": CHUNK["cached"] | {"lora": False}}  # fmt: skip
LOGGED = ("loss", "lm_loss", "contrastive_loss", "in_batch_r1", "positive_similarity", "negative_similarity",
          "supervised_tokens", "grad_norm")  # fmt: skip


def nf4_head(folder: Path) -> CotRetriever:
    """A head on a 4-bit base with LoRA and the added token, as QLoRA trains it."""
    torch.manual_seed(0)
    backbone = load_backbone(folder, lora={"r": 4, "dropout": 0.0}, quantization="nf4")
    return tiny_training.awaken(CotRetriever(backbone, str(folder), temperature=0.1))


def batch(trainer, rows: tuple[int, ...]) -> dict:
    return trainer.data_collator([trainer.train_dataset[index, 0] for index in rows])


def gradients(trainer) -> dict[str, torch.Tensor]:
    return {
        name: value.grad
        for name, value in trainer.model.named_parameters()
        if value.grad is not None
    }


def trained(trainer) -> dict[str, torch.Tensor]:
    return {
        name: value.detach()
        for name, value in trainer.model.named_parameters()
        if value.requires_grad
    }


def worker(out: Path) -> None:
    """What each of the two processes does; the first one writes the results."""
    torch.set_num_threads(1)
    facts = {"world": int(os.environ["WORLD_SIZE"]), "loss": {}}
    heads = {"": head} | ({"nf4": partial(nf4_head, out / "base")} if BITS else {})
    for kind, make in heads.items():
        for split, mine in SPLITS.items():
            for way, options in CHUNK.items():
                name = f"{kind} {split} {way}".strip()
                one = tiny_training.trainer(out / "one", make(), **RUN | options)
                rank, model = one.args.process_index, one.accelerator.prepare(one.model)
                share = batch(one, ROWS[:mine] if rank == 0 else ROWS[mine:])
                totals = one._get_num_items_in_batch([share], one.args.device)
                loss = one.training_step(model, share, totals)
                facts["loss"][name] = one.accelerator.reduce(loss.detach(), "mean").item()
                if rank == 0:
                    save_file(gradients(one), out / f"{name}.safetensors")
    complete = tiny_training.trainer(
        out / "run", head(), per_device_train_batch_size=2, **RUN | SAVING
    )
    complete.train()
    resumed = tiny_training.trainer(
        out / "run", head(), per_device_train_batch_size=2, **RUN | SAVING
    )
    resumed.train(resume_from_checkpoint=str(out / "run" / "checkpoint-2"))
    facts["ranks"] = one.accelerator.gather(torch.tensor([rank])).tolist()
    facts["processes"] = complete.accelerator.num_processes
    facts["shares"] = len(share_of_a_cache(out / "features", training_ranks(complete.args)))
    facts["log"], facts["log_resumed"] = complete.state.log_history, resumed.state.log_history
    if rank == 0:
        save_file(trained(complete), out / "run.safetensors")
        save_file(trained(resumed), out / "resumed.safetensors")
        (out / "facts.json").write_text(json.dumps(facts))
    torch.distributed.destroy_process_group()
    os._exit(
        0
    )  # taking gloo's group apart at the interpreter's end can deadlock (torch 2.13: a join holds the GIL)


def sharding(kind: str) -> dict:
    """Arguments that ask for ZeRO or FSDP as the shipped configurations do."""
    if kind == "fsdp":
        config = yaml.safe_load((CONFIGS / "accelerate" / "fsdp.yaml").read_text())["fsdp_config"]
        return {
            "fsdp": True,
            "fsdp_config": config,
            "accelerator_config": {"use_configured_state": True},
        }
    config = json.loads((CONFIGS / "deepspeed" / f"{kind}.json").read_text())
    if kind == "zero3":
        config["zero_optimization"]["stage3_param_persistence_threshold"] = (
            0  # or weights so small stay whole
        )
    return {"deepspeed": config}


def sharded_trainer(folder: Path, way: str, **options):
    options = SHARDED_WAYS[way] | options
    return tiny_training.trainer(
        folder, head(lora=options.pop("lora", True)), **RUN | SAVING | options
    )


def held(kind: str, run) -> float:
    """Share of what is sharded that this process holds: of the optimizer's weights (ZeRO-2), of all weights."""
    weights = list(run.model.parameters())
    if kind == "zero2":
        mine = sum(
            value.numel() for group in run.optimizer.param_groups for value in group["params"]
        )
        return mine / sum(value.numel() for value in weights if value.requires_grad)
    if kind == "zero3":
        return sum(value.ds_tensor.numel() for value in weights) / sum(
            value.ds_numel for value in weights
        )
    return sum(value.to_local().numel() for value in weights) / sum(
        value.numel() for value in weights
    )


def sharded_worker(out: Path, kind: str) -> None:
    """Whole trainings under ZeRO or FSDP, each resumed once; the first process writes the gathered weights."""
    torch.set_num_threads(1)
    if kind == "fsdp":
        # accelerate wires FSDP to accelerators only. torch shards CPU tensors as well: so say that these are some.
        PartialState(cpu=True).distributed_type = DistributedType.MULTI_GPU
    else:
        import deepspeed
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = (
            False  # or it is compiled first, for a minute
        )
    facts = {}
    for way in SHARDED_WAYS:
        for name, start in ((way, None), (f"{way} resumed", str(out / way / "checkpoint-2"))):
            if kind == "zero3":
                unset_hf_deepspeed_config()  # of the run before: the next head would be built in parts
            run = sharded_trainer(out / way, way, per_device_train_batch_size=2, **sharding(kind))
            run.train(resume_from_checkpoint=start)
            full = run.accelerator.get_state_dict(run.model_wrapped)
            if run.args.process_index == 0:
                save_file(
                    {key: full[key].clone() for key in trained(run)}, out / f"{name}.safetensors"
                )
            facts[name] = {"log": run.state.log_history, "world": run.args.world_size, "held": held(kind, run),
                           "type": run.accelerator.distributed_type}  # fmt: skip
    if int(os.environ["RANK"]) == 0:
        (out / "facts.json").write_text(json.dumps(facts))
    torch.distributed.barrier()
    os._exit(0)


def share_of_a_cache(folder: Path, ranks: Ranks) -> list[int]:
    """Fill a cache of six vectors with the other processes; return those that this one computed."""
    cache = FeatureCache(folder, "model")
    computed: list[int] = []

    def compute(rows):
        computed.extend(rows)
        return torch.ones(len(rows), 2) * torch.tensor(rows)[:, None]

    keys = [digest_bytes(bytes([row])) for row in range(6)]
    cache.fill(keys, compute, ranks=ranks)
    assert cache.get(keys)[:, 0].tolist() == list(range(6))
    return computed


def launch(out: Path, *arguments: str) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    helpers = str(Path(__file__).resolve().parent.parent)  # where tiny_training is
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (helpers, os.environ.get("PYTHONPATH")))),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [*command, __file__, str(out), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=1800,
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
    assert found["shares"] == 3  # of six vectors
    return found


def assert_one_process_agrees(two: Path, facts: dict, name: str, one) -> None:
    one.model.train()
    loss = one.compute_loss(one.model, batch(one, ROWS))
    loss.backward()
    assert facts["loss"][name] == pytest.approx(loss.item(), abs=1e-5)
    ours, theirs = gradients(one), load_file(two / f"{name}.safetensors")
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(
            theirs[key], value, atol=1e-5, rtol=1e-4, msg=lambda m, n=key: f"{n}: {m}"
        )
    assert max(value.abs().max() for value in ours.values()) > 0.1  # 1e-5 is small beside them


@pytest.mark.parametrize("way", CHUNK)
@pytest.mark.parametrize("split", SPLITS)
def test_loss_and_gradients_are_those_of_one_process_on_the_whole_batch(
    two, facts, split, way, tmp_path
):
    assert_one_process_agrees(
        two, facts, f"{split} {way}", tiny_training.trainer(tmp_path, head(), **RUN)
    )


@pytest.mark.skipif(not BITS, reason="needs bitsandbytes: pip install 'cir-cot[quant]'")
@pytest.mark.parametrize("way", CHUNK)
def test_a_4_bit_base_too(two, facts, way, tmp_path):
    one = tiny_training.trainer(tmp_path, nf4_head(two / "base"), **RUN)
    kinds = {type(module).__name__ for module in one.model.modules()}
    assert "Linear4bit" in kinds
    assert_one_process_agrees(two, facts, f"nf4 unequal {way}", one)


SHARDED = [
    pytest.param(
        kind,
        marks=pytest.mark.skipif(
            kind != "fsdp" and not DEEPSPEED, reason="needs cir-cot[deepspeed]"
        ),
    )
    for kind in ("zero2", "zero3", "fsdp")
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHARDED)
def test_sharded_trainings_are_those_of_one_process_and_save_exactly(kind, tmp_path):
    launch(tmp_path, kind)
    facts = json.loads((tmp_path / "facts.json").read_text())
    for way in SHARDED_WAYS:
        found, log = load_file(tmp_path / f"{way}.safetensors"), facts[way]["log"]
        assert (facts[way]["world"], facts[way]["type"]) == (
            2,
            "FSDP" if kind == "fsdp" else "DEEPSPEED",
        )
        assert 0.4 < facts[way]["held"] < 0.6
        one = sharded_trainer(
            tmp_path / "one" / way, way, per_device_train_batch_size=4, save_strategy="no"
        )
        before = {name: value.clone() for name, value in trained(one).items()}
        one.train()
        assert_same_log(log, one.state)
        assert found.keys() == before.keys()
        again = sharded_trainer(tmp_path, way).model
        again.load_weights(tmp_path / way / f"checkpoint-{one.state.max_steps}")
        for name, value in again.named_parameters():
            if value.requires_grad:
                assert torch.equal(value, found[name]), name
                assert not torch.equal(value, before[name]), name
                torch.testing.assert_close(value, trained(one)[name], atol=1e-5, rtol=1e-4)
        assert any("trainable_tokens" in name for name in found) or way == "all weights"
        resumed = load_file(tmp_path / f"{way} resumed.safetensors")
        assert [
            name for name, value in found.items() if not torch.equal(value, resumed[name])
        ] == []


def assert_same_log(theirs: list[dict], state) -> None:
    for name in LOGGED:
        ours = [entry[name] for entry in state.log_history if name in entry]
        assert len(ours) == state.max_steps
        assert [entry[name] for entry in theirs if name in entry] == pytest.approx(
            ours, abs=1e-5, rel=1e-4
        ), name


def test_the_batch_is_one_that_could_go_wrong(tmp_path):
    """Both processes hold supervised tokens, not equally many, and false negatives across the split."""
    one = tiny_training.trainer(tmp_path, head(), **RUN)
    rows = batch(one, ROWS)
    tokens = (rows["labels"] != -100).sum(dim=1)
    assert tokens[:4].sum() != tokens[4:].sum()
    assert 0 < tokens[:3].sum() < tokens[3:].sum()
    assert set(rows["ids"][:3].flatten().tolist()) & set(rows["ids"][4:].flatten().tolist())


def test_a_whole_training_is_that_of_one_process_with_twice_the_batch(two, facts, tmp_path):
    one = tiny_training.trainer(tmp_path, head(), per_device_train_batch_size=4, **RUN)
    one.train()
    assert_same_log(facts["log"], one.state)
    assert one.state.max_steps == 6
    for name, value in load_file(two / "run.safetensors").items():
        torch.testing.assert_close(value, trained(one)[name], atol=1e-5, rtol=1e-4)


def test_two_processes_resume_to_the_very_same_bits(two, facts):
    whole, resumed = load_file(two / "run.safetensors"), load_file(two / "resumed.safetensors")
    assert [name for name, value in whole.items() if not torch.equal(value, resumed[name])] == []
    for ours, theirs in zip(facts["log"][2:6], facts["log_resumed"][2:6], strict=True):
        assert ours["loss"] == theirs["loss"]


if __name__ == "__main__":
    place, kinds = Path(sys.argv[1]), sys.argv[2:]
    sharded_worker(place, *kinds) if kinds else worker(place)
