"""Compute what a training run, decoding and encoding need at full size, on fake tensors.

1. `fake_head` builds the head as `sft` does, of shapes and types alone.
2. The trainer's own step runs over it on synthetic rows: plain where the batch is one chunk, else cached with two or
   three chunks, which stand for all others. Further rows repeat their operations and reuse their memory.
3. Several processes are torch's fake process group: the trainer's gathers run and are counted, and FSDP2 shards the
   fake weights itself. What DDP, ZeRO-2 and ZeRO-3 add is computed from the list of weights: DDP holds everything and
   buckets of gradients, ZeRO-2 shares gradients and optimizer, ZeRO-3 weights too and gathers one block at a time.

Seconds are a floor: the sum over kernels of the longer of their operations and bytes at the card's rates, without the
host's own work, plus the bytes on the wire.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from cir_cot.cards import GIB, Accelerator
from cir_cot.errors import InputError
from cir_cot.heads.cot import CotRetriever
from cir_cot.training.chunks import SIDES, row_tokens, split_into_chunks
from cir_cot.training.sft_arguments import SftArguments
from cir_cot.training.step_losses import StepTotals, count_step
from cir_cot.training.trainer import CirTrainer

from .fake_head import fake_head
from .fake_meter import FakeMeter
from .fake_passes import WORDS, decoding, encoding, picture_side
from .fake_processes import fake_processes, fake_sharded_weights
from .synthetic import SyntheticPairs

SHARDINGS = ("ddp", "zero2", "zero3", "fsdp2")
# Share of a card's memory that tensors may fill: the rest is for the driver, the context and fragmentation.
USABLE = 0.92
ROUND = 256  # a proposed chunk size is a multiple of this
# Bytes of a quantised weight: 4 or 8 bits, and the scales of blocks (QLoRA, arXiv 2305.14314).
QUANTISED = {"nf4": 0.5 + 0.127 / 8, "int8": 1.0}


@dataclass(frozen=True)
class Step:
    """What a training step needs on one process, in bytes, operations and seconds."""

    rows: int
    tokens: int
    chunks: int
    weights: int
    gradients: int
    activations: int
    largest_block: int
    operations: int
    kernels: int
    synchronisations: int
    seconds: float
    passes: int  # in which all weights are read
    sent: int  # by the collective operations that ran


@dataclass
class PlanArguments(SftArguments):
    """Arguments of `sft` for fake weights, which cannot be moved to a device."""

    @property
    def place_model_on_device(self) -> bool:
        """Whether transformers moves the model."""
        return False


def measure_step(
    args: PlanArguments,
    card: Accelerator,
    words: int = WORDS,
    gpus: int = 1,
    sharding: str = "ddp",
) -> Step:
    """Run the trainer's step on fake tensors as the first of `gpus` processes, and count what it needs.

    Args:
        args: of `sft`; `model` is 3B, 7B or a checkpoint's folder.
        card: the card whose rates give the seconds.
        words: of a chain.
        gpus: number of processes.
        sharding: one of SHARDINGS; only fsdp2 changes what runs.
    """
    head = fake_head(args)
    pairs = SyntheticPairs(_measured_rows(head, args, words), picture_side(head), words)
    trainer = CirTrainer(head, args, pairs)
    inputs = head.collator()([pairs[index, 0] for index in range(len(pairs))])
    totals = StepTotals(*count_step([inputs]))
    # Mixed precision is what accelerate wraps around the forward pass.
    model = trainer.accelerator.prepare_model(head.train(), device_placement=False)
    weights = weight_bytes(head, args.quantization)
    block = _largest_block(head)
    trained = sum(value.nbytes for value in head.parameters() if value.requires_grad)
    shards = sharding == "fsdp2" and gpus > 1
    with (
        fake_processes(gpus),
        fake_sharded_weights(head) if shards else nullcontext(),
        FakeMeter(card) as meter,
    ):
        trainer.training_step(model, inputs, totals)
    own = trained // gpus if shards else trained  # bytes of the gradients that stay on this process
    tokens = sum(sum(row_tokens(inputs[name])) for name in SIDES)
    batch = args.per_device_train_batch_size
    scale = batch / len(pairs)
    chunks = 1
    kept = 0
    if args.chunk_tokens:
        measured = len(split_into_chunks(inputs, args.chunk_tokens))
        chunks = math.ceil(measured * scale)
        # Each further chunk keeps its random states, before and after.
        kept = 2 * torch.get_rng_state().nbytes * (chunks - measured)
    return Step(
        rows=batch,
        tokens=round(tokens * scale),
        chunks=chunks,
        weights=weights,
        gradients=trained,
        activations=max(0, meter.peak - own) + kept,
        largest_block=block,
        operations=round(meter.operations * scale),
        kernels=round(meter.kernels * scale),
        synchronisations=round(meter.synchronisations * scale),
        seconds=meter.seconds * scale,
        passes=chunks * (2 + (chunks > 1) + args.recompute),
        sent=round(meter.sent * scale),
    )


def _measured_rows(head: CotRetriever, args: PlanArguments, words: int) -> int:
    """Return how many rows are run: all, or those of two chunks, which hold most of the shortest rows."""
    batch = args.per_device_train_batch_size
    if not args.chunk_tokens:
        return batch
    probe = SyntheticPairs(3, picture_side(head), words)
    sample = head.collator()([probe[index, 0] for index in range(3)])
    shortest = min(map(sum, zip(*(row_tokens(sample[name]) for name in SIDES), strict=True)))
    return min(batch, 2 * max(1, args.chunk_tokens // shortest))


def weight_bytes(head: CotRetriever, quantization: str | None) -> int:
    """Return the bytes of all weights; linear layers of the language model's blocks are quantised."""
    total = 0
    for name, value in head.named_parameters():
        packed = quantization and ".layers." in name and "language_model" in name
        linear = value.dim() == 2 and "lora_" not in name
        if packed and linear:
            total += round(value.numel() * QUANTISED[str(quantization)])
        else:
            total += value.nbytes
    return total + sum(value.nbytes for value in head.buffers())


def _largest_block(head: CotRetriever) -> int:
    """Return the bytes of the largest unit that is gathered as one: a block, or the embedding matrix."""
    largest = 0
    for module in head.modules():
        if isinstance(module, nn.ModuleList) and len(module) > 1:
            for block in module:
                largest = max(largest, sum(value.nbytes for value in block.parameters()))
    embedding = head.backbone.plain.get_input_embeddings()
    return max(largest, sum(value.nbytes for value in embedding.parameters()))


def memory_of(step: Step, gpus: int, sharding: str) -> dict[str, float]:
    """Return the bytes of a process by kind.

    Args:
        step: what was measured.
        gpus: number of processes.
        sharding: one of SHARDINGS.
    """
    shares_weights = sharding in ("zero3", "fsdp2") and gpus > 1
    shares_optimizer = sharding != "ddp" and gpus > 1
    weights = step.weights / gpus if shares_weights else step.weights
    if shares_weights and sharding == "zero3":  # FSDP2's gathered blocks are among the activations
        weights += 2 * step.largest_block
    optimizer = 2 * step.gradients / gpus if shares_optimizer else 2 * step.gradients
    gradients = step.gradients / gpus if shares_optimizer else step.gradients
    buckets = step.gradients if sharding == "ddp" and gpus > 1 else 0
    parts = {
        "weights": weights,
        "gradients": gradients + buckets,
        "optimizer": optimizer,
        "activations": step.activations,
    }
    return parts | {"peak": sum(parts.values())}


def wire_bytes(step: Step, gpus: int, sharding: str) -> float:
    """Return the bytes that a process sends in a step: what was counted, and gradients and gathered weights."""
    if sharding == "fsdp2":
        return step.sent
    part = (gpus - 1) / gpus
    sent = step.sent + 2 * step.gradients * part
    if sharding == "zero3":
        sent += step.weights * part * step.passes
    return sent


def plan(
    args: PlanArguments,
    card: Accelerator,
    gpus: int = 1,
    sharding: str = "ddp",
    passes: bool = True,
) -> dict:
    """Return what a run needs, whether it fits, and what to change where it does not.

    Args:
        args: of `sft`; `model` is 3B, 7B or a checkpoint's folder.
        card: each process's card.
        gpus: number of processes.
        sharding: one of SHARDINGS.
        passes: count decoding and encoding as well.
    """
    if args.quantization and sharding in ("zero3", "fsdp2"):
        raise InputError(
            f"quantization {args.quantization} with {sharding}: packed weights are not sharded; plan ddp or zero2"
        )
    step = measure_step(args, card, gpus=gpus, sharding=sharding)
    memory = memory_of(step, gpus, sharding)
    room = USABLE * card.memory * GIB
    fits = memory["peak"] <= room
    head = fake_head(args, inference=True)
    sent = wire_bytes(step, gpus, sharding)
    found = {
        "fits": fits,
        "peak_gib": memory["peak"] / GIB,
        "weights_gib": memory["weights"] / GIB,
        "gradients_gib": memory["gradients"] / GIB,
        "activations_gib": memory["activations"] / GIB,
        "optimizer_gib": memory["optimizer"] / GIB,
        "usable_gib": room / GIB,
        "rows": step.rows,
        "tokens": step.tokens,
        "chunks": step.chunks,
        "chunk_tokens": args.chunk_tokens,
        "operations": step.operations,
        "kernels": step.kernels,
        "synchronisations": step.synchronisations,
        "wire_bytes": sent,
        "seconds": step.seconds + sent / card.link,
        "advice": "" if fits else advise(args, step, memory, room, sharding),
    }
    if passes:
        found |= {"decode": decoding(head, card), "encode": encoding(head, card)}
    return found


def advise(
    args: SftArguments, step: Step, memory: dict[str, float], room: float, sharding: str
) -> str:
    """Say what makes a run fit: a chunk size where activations are too large, else what holds less."""
    left = room - (memory["peak"] - memory["activations"])
    width = step.tokens / step.rows
    measured = min(args.chunk_tokens or step.tokens, step.tokens)
    fitting = int(0.9 * left / max(memory["activations"], 1) * measured) // ROUND * ROUND
    if left > 0 and fitting >= width:
        return f"set chunk_tokens to {fitting}"
    if not args.recompute:
        return "set recompute: true"
    if not args.lora_r:
        return "train an adapter (lora_r 16), or shard with zero3 or fsdp2 on more GPUs"
    if args.quantization is None and sharding in ("ddp", "zero2"):
        return "set quantization: nf4, shard with zero3 or fsdp2, or take a larger card"
    return "take more GPUs or a larger card"
