"""Time training, decoding and encoding of a head beside the roofline, and the same work by transformers alone.

Rows are noise pictures of photographs' sizes. Each function runs one case on a device and returns its measurements:
rows, tokens, seconds, the least seconds that the card needs, memory, and what shows where the rest of the time went.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import torch

from cir_cot import compat  # noqa: F401  # isort: skip
from transformers.trainer_callback import PrinterCallback

from cir_cot.devices import peak_memory_mb
from cir_cot.heads.cot import CotRetriever
from cir_cot.heads.decoding import DecodingState
from cir_cot.retriever import inference
from cir_cot.training.arguments import CirArguments
from cir_cot.training.chunks import row_tokens
from cir_cot.training.step_metrics import supervised_tokens
from cir_cot.training.trainer import CirTrainer

from . import plain_peers
from .device_meter import StepWatch, count_waits, forget_peak, timed, trace, wait
from .roofline import Card, costs
from .synthetic import PHOTOGRAPHS, SyntheticPairs

TRACED = 3  # decoding steps whose kernels are recorded


@dataclass(frozen=True)
class Conditions:
    """Hold what all cases have in common."""

    card: Card
    words: int = 150  # of a chain in training
    new_tokens: int = 150  # of a generated chain
    steps: int = 2  # timed training steps
    recompute: bool = True  # activations in the backward pass
    lora: dict = field(default_factory=lambda: {"r": 16, "alpha": 32, "dropout": 0.1})


def facts(rows: int, tokens: float, seconds: float, floor: float, device: torch.device) -> dict:
    """Return the measurements that every case has; `floor` is the least seconds that the card needs."""
    return {
        "rows": rows,
        "tokens": tokens,
        "seconds": seconds,
        "rows_per_second": rows / seconds,
        "tokens_per_second": tokens / seconds,
        "roofline_seconds": floor,
        "share": floor / seconds,
        "peak_gib": peak_memory_mb(device) / 2**10,
    }


def waiting(places: Counter, steps: int) -> dict:
    """Return how often the host waited for the device in a step, and the lines of code where it waited most."""
    return {"waits": sum(places.values()) / steps, "waits_at": places.most_common(12)}


def traced(kernels: dict) -> dict:
    """Return what was recorded of kernels, each name with the prefix traced_."""
    return {f"traced_{name}": value for name, value in kernels.items()}


def patches_of(inputs: dict) -> int:
    """Return the number of patches that the vision tower encodes."""
    return int(inputs["image_grid_thw"].prod(dim=1).sum())


def train(
    head: CotRetriever, rows: int, chunk: int, given: Conditions, record: bool = False
) -> dict:
    """Train with CirTrainer on `rows` rows a step, in chunks of at most `chunk` tokens; `record` traces a step."""
    # One step warms up, then steps are timed, and one more is traced.
    recorded = 1 + given.steps if record else None
    steps = 1 + given.steps + record
    pairs = SyntheticPairs(rows * steps, PHOTOGRAPHS, given.words)
    watch = StepWatch(head.backbone.device, 1, recorded)
    with tempfile.TemporaryDirectory() as folder:
        arguments = CirArguments(output_dir=folder, per_device_train_batch_size=rows, chunk_tokens=chunk, bf16=True,
                                 max_steps=steps, warmup_steps=0, save_strategy="no", logging_strategy="no",
                                 logging_first_step=False, report_to="none", disable_tqdm=True)  # fmt: skip
        # No printing: it would be part of the time.
        trainer = CirTrainer(head, arguments, pairs, callbacks=[watch])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    tokens, supervised = (
        trainer.step_metrics.sums[name][0].item() / steps
        for name in ("tokens", "supervised_tokens")
    )
    # Rows take the sizes of photographs in turns, so that a sample has the mean number of patches.
    sample = head.encoder().target(queries_of(SyntheticPairs(len(PHOTOGRAPHS), PHOTOGRAPHS))[0])
    patches = 2 * rows * patches_of(sample) / len(PHOTOGRAPHS)
    price = costs(head.backbone.plain)
    chunks = -int(-tokens // chunk)
    floor = given.card.seconds(
        *price.training(tokens, supervised, patches, chunks, given.recompute)
    )
    found = facts(rows, tokens, sum(watch.seconds) / given.steps, floor, head.backbone.device)
    more = {"supervised": supervised, "patches": patches}
    return found | more | waiting(watch.waits, 1) | traced(watch.kernels)


def train_plain(head: CotRetriever, rows: int, given: Conditions) -> dict:
    """Train with transformers and peft alone on `rows` rows a step, all at once."""
    backbone = head.backbone
    pairs = SyntheticPairs(rows, PHOTOGRAPHS, given.words)
    # The same adapter, recomputation and rows as ours.
    plain_peers.put_lora(backbone, given.lora, given.recompute)
    batch = head.collator()([pairs[index, 0] for index in range(rows)])
    step = plain_peers.training_step(backbone, batch, head.temperature().item())

    def steps() -> None:
        for _ in range(given.steps):
            step()

    step()  # warms up
    forget_peak(backbone.device)
    seconds = timed(steps, backbone.device) / given.steps
    # One chunk holds the batch.
    tokens = sum(sum(row_tokens(batch[side])) for side in ("query", "target"))
    patches = sum(patches_of(batch[side]) for side in ("query", "target"))
    price = costs(backbone.plain).training(
        tokens, supervised_tokens(batch), patches, 1, given.recompute
    )
    return facts(rows, tokens, seconds, given.card.seconds(*price), backbone.device)


def queries_of(pairs: SyntheticPairs) -> tuple[list, list[str]]:
    """Return the reference pictures and the modification texts of rows."""
    rows = [pairs[index, 0] for index in range(len(pairs))]
    return [row.reference for row in rows], [row.record.text for row in rows]


def decoding_floor(head: CotRetriever, inputs: dict, steps: int, card: Card) -> tuple[float, float]:
    """Return the least seconds to decode `steps` tokens a row, prompts included, and those of one token a row."""
    price = costs(head.backbone.plain)
    tokens = row_tokens(inputs)
    # Half of the new tokens are cached in the mean.
    cached = sum(tokens) / len(tokens) + steps / 2
    each = card.seconds(*price.writing(len(tokens), cached))
    prompts = card.seconds(*price.encoding(sum(tokens), patches_of(inputs)))
    return prompts + steps * each, each


def decode(head: CotRetriever, rows: int, given: Conditions) -> dict:
    """Decode the chains of `rows` queries, from pictures and texts to embeddings."""
    device = head.backbone.device
    queries = queries_of(SyntheticPairs(rows, PHOTOGRAPHS))
    head.max_new_tokens = given.new_tokens
    encoder = head.encoder("left")
    with inference(head):
        inputs = encoder.query(*queries, [[]] * rows)[0]
        host = timed(lambda: encoder.query(*queries, [[]] * rows), device)
        waits, kernels = _observe_steps(head, queries)
        # The first run is apart: shapes that are new to the device can cost it more.
        cold = _decode_all(head, queries)[1]
        forget_peak(device)
        first, total, last = _decode_all(head, queries)
    # With the retrieval token; the grammar has given a few of the tokens.
    lengths = [len(row.ids) + 1 for row in last.rows]
    floor, each = decoding_floor(head, inputs, max(lengths), given.card)
    found = facts(rows, sum(lengths), total, floor, device)
    found |= {
        "steps": max(lengths),
        "cold_seconds": cold,
        "host_seconds": host,
        "first_seconds": first,
        "step_seconds": (total - first) / max(lengths),
        "step_roofline_seconds": each,
    }
    return found | waiting(waits, TRACED) | traced(kernels)


def _observe_steps(head: CotRetriever, queries: tuple[list, list[str]]) -> tuple[Counter, dict]:
    """Run a few decoding steps untimed -> where the host waits in them, and the kernels of one of them."""
    device = head.backbone.device
    steps = cast(Generator, head.decode_chains(*queries))
    next(steps)  # warms up
    with count_waits(device) as waits:
        for _ in range(TRACED):
            next(steps)
    with trace(device) as kernels:
        for _ in range(TRACED):
            next(steps)
    steps.close()
    kernels["kernels"] /= TRACED
    return waits, kernels


def _decode_all(
    head: CotRetriever, queries: tuple[list, list[str]]
) -> tuple[float, float, DecodingState]:
    """Decode all chains -> seconds until the first token, seconds in all, and the last state."""
    wait(head.backbone.device)
    began = time.perf_counter()
    steps = head.decode_chains(*queries)
    last = next(steps)
    first = time.perf_counter() - began
    for state in steps:
        last = state
    return first, time.perf_counter() - began, last


def generate(head: CotRetriever, rows: int, given: Conditions) -> dict:
    """Generate as many tokens with transformers' generate, from pictures and texts."""
    backbone = head.backbone
    queries = queries_of(SyntheticPairs(rows, PHOTOGRAPHS))
    encoder = head.encoder("left")

    def run(count: int) -> None:
        plain_peers.generate(backbone, encoder.query(*queries, [[]] * rows)[0], count)

    # The first run is apart, as in `decode`.
    with inference(head):
        cold = timed(partial(run, given.new_tokens), backbone.device)
        forget_peak(backbone.device)
        seconds = timed(partial(run, given.new_tokens), backbone.device)
    inputs = encoder.query(*queries, [[]] * rows)[0]
    floor, each = decoding_floor(head, inputs, given.new_tokens, given.card)
    found = facts(rows, rows * given.new_tokens, seconds, floor, backbone.device)
    return found | {"steps": given.new_tokens, "cold_seconds": cold, "step_roofline_seconds": each}


def encode(head: CotRetriever, rows: int, given: Conditions) -> dict:
    """Encode `rows` pictures of a gallery in one batch; the tower and the language model are timed apart as well."""
    device = head.backbone.device
    pictures = queries_of(SyntheticPairs(rows, PHOTOGRAPHS))[0]
    head.batch_size = rows
    with inference(head):
        # From pictures to embeddings.
        head.encode_target(pictures)
        with count_waits(device) as waits:
            head.encode_target(pictures)
        forget_peak(device)
        seconds = timed(lambda: head.encode_target(pictures), device)
        peak = peak_memory_mb(device) / 2**10
        # Its parts: the host's preprocessing, the full model, the vision tower alone.
        inputs = head.encoder().target(pictures)
        host = timed(lambda: head.encoder().target(pictures), device)
        moved = {name: value.to(device) for name, value in inputs.items()}
        both = timed(lambda: head.read(moved), device)
        visual = head.backbone.plain.model.visual
        patches = moved["pixel_values"].to(visual.dtype)
        tower = timed(lambda: visual(patches, grid_thw=moved["image_grid_thw"]), device)
        with trace(device) as kernels:
            head.read(moved)
    tokens = sum(row_tokens(inputs))
    floor = given.card.seconds(*costs(head.backbone.plain).encoding(tokens, patches_of(inputs)))
    found = facts(rows, tokens, seconds, floor, device)
    found |= {
        "peak_gib": peak,
        "host_seconds": host,
        "tower_seconds": tower,
        "language_seconds": both - tower,
        "patches": patches_of(inputs),
    }
    return found | waiting(waits, 1) | traced(kernels)


def encode_plain(head: CotRetriever, rows: int, given: Conditions) -> dict:
    """Encode the same pictures with transformers' own forward pass."""
    backbone = head.backbone
    pictures = queries_of(SyntheticPairs(rows, PHOTOGRAPHS))[0]
    encoder = head.encoder()

    def run() -> None:
        plain_peers.encode(backbone, encoder.target(pictures))

    with inference(head):
        run()  # warms up
        forget_peak(backbone.device)
        seconds = timed(run, backbone.device)
    inputs = encoder.target(pictures)
    tokens = sum(row_tokens(inputs))
    floor = given.card.seconds(*costs(backbone.plain).encoding(tokens, patches_of(inputs)))
    return facts(rows, tokens, seconds, floor, backbone.device)
