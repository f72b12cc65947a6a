"""A plan for several processes runs on torch's fake process group; two real processes need and send the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_training
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from cir_cot.cards import CARDS
from cir_cot.errors import InputError
from cir_cot.heads.cot import CotRetriever
from cir_cot.losses import gather_counts, gather_with_grad
from cir_cot.models.tiny_qwen import write_tiny
from cir_cot.peak_bytes import PeakBytes
from cir_cot.profiling.fake_meter import FakeMeter
from cir_cot.profiling.fake_passes import picture_side
from cir_cot.profiling.fake_processes import bytes_sent, fake_processes, shard_weights
from cir_cot.profiling.plan import PlanArguments, measure_step
from cir_cot.profiling.synthetic import SyntheticPairs
from cir_cot.training.chain_training import SETTINGS
from cir_cot.training.run import load_head
from cir_cot.training.step_losses import StepTotals, count_step
from cir_cot.training.trainer import CirTrainer

CARD = CARDS["h100-80"]
WORDS = 12
WAYS = {
    "first": {"lora_r": 4, "chunk_tokens": 690},  # what the first step of a process allocates stays
    "adapter": {"lora_r": 4, "dtype": "bfloat16"},
    "all weights": {"lora_r": 0, "recompute": True},
    "cached": {"lora_r": 4, "chunk_tokens": 690},
}


def arguments(base, folder, **options):
    given = {
        "output_dir": str(folder),
        "model": str(base),
        "root": ".",
        "per_device_train_batch_size": 6,
        "chunk_tokens": 0,
        "bf16": True,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    return PlanArguments(**(given | options))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch renames two collectives
def test_what_collectives_send_and_who_takes_part():
    assert gather_counts(3, torch.device("cpu")) == [3]
    with fake_processes(4):
        assert gather_counts(3, torch.device("cpu")) == [3, 3, 3, 3]
        rows = torch.ones(3, 2, requires_grad=True)
        assert gather_with_grad(rows).shape == (12, 2)
        with pytest.raises(InputError, match="single process"), fake_processes(2):
            pass
        with FakeMeter(CARD) as meter:
            dist.all_reduce(torch.ones(100))  # 400 bytes, twice round three quarters
        assert meter.sent == 600
        with FakeMeter(CARD) as meter:
            dist.all_gather([torch.ones(100) for _ in range(4)], torch.ones(100))
        assert meter.sent == 1200
        with FakeMeter(CARD) as meter:
            dist.reduce_scatter_tensor(torch.ones(25), torch.ones(100))
            dist.all_gather_into_tensor(torch.ones(100), torch.ones(25))
        assert meter.sent == 600
    assert not dist.is_initialized()


class Sent(TorchDispatchMode):
    """Adds up what the collectives of a real process send."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.total += bytes_sent(function, args)
        return function(*args, **(kwargs or {}))


def real_step(args):
    """A step of this real process with its weights sharded: its peak beside its own gradients, and bytes sent."""
    head = load_head(CotRetriever, args, SETTINGS)
    pairs = SyntheticPairs(6, picture_side(head), WORDS)
    trainer = CirTrainer(head, args, pairs)
    inputs = head.collator()([pairs[index, 0] for index in range(6)])
    totals = StepTotals(*count_step([inputs]))
    trained = sum(value.nbytes for value in head.parameters() if value.requires_grad)
    model = trainer.accelerator.prepare_model(head.train(), evaluation_mode=True)
    shard_weights(head)
    with PeakBytes() as peak, Sent() as sent:
        trainer.training_step(model, inputs, totals)
    return {"activations": peak.peak - trained // 2, "sent": sent.total}


def main(folder):
    found = {}
    for way, options in WAYS.items():
        args = arguments(folder / "base", folder / f"run{os.environ['RANK']}", **options)
        # To accelerate's device "cpu:0" all inputs would be copied.
        args.__dict__["_setup_devices"] = torch.device("cpu")
        found[way] = real_step(args)
    if dist.get_rank() == 0:
        (folder / "found.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_that_share_weights_need_and_send_what_was_planned(tmp_path):
    corpus = SyntheticPairs(0, 28).corpus()
    base = write_tiny(tmp_path / "base", corpus=corpus, vocab_size=400, **tiny_training.SIZES)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    places = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(places),
    }
    command = [sys.executable, *command, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((tmp_path / "found.json").read_text())
    for way, options in WAYS.items():
        args = arguments(base, tmp_path / "plan", **options)
        step = measure_step(args, CARD, WORDS, gpus=2, sharding="fsdp2")
        if way == "first":
            continue
        assert step.activations == pytest.approx(found[way]["activations"], rel=0.02), way
        assert step.sent == pytest.approx(found[way]["sent"], rel=0.001), way


if __name__ == "__main__":
    main(Path(sys.argv[1]))
