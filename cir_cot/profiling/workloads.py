"""Training, decoding and encoding of a head, timed beside their roofline; and transformers' own, timed alike.

Rows are noise of photographs' sizes. Each function runs one case on a device and returns its facts: rows, tokens,
seconds, the least seconds that the card needs, memory, and what tells where the rest went.
"""

import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial

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
    """What all cases have in common: the card's rates, lengths in words and tokens, timed steps, the adapter."""

    card: Card
    words: int = 150
    new_tokens: int = 150
    steps: int = 2
    recompute: bool = True
    lora: dict = field(default_factory=lambda: {"r": 16, "alpha": 32, "dropout": 0.1})


def facts(rows: int, tokens: float, seconds: float, floor: float, device: torch.device) -> dict:
    """Return what every case is described by."""
    found = {"rows": rows, "tokens": tokens, "seconds": seconds, "rows_per_second": rows / seconds}
    found |= {
        "tokens_per_second": tokens / seconds,
        "roofline_seconds": floor,
        "share": floor / seconds,
    }
    return found | {"peak_gib": peak_memory_mb(device) / 2**10}


def waiting(places: Counter, steps: int) -> dict:
    """Return how often the host waited for the device in a step, and the lines of code where it did most."""
    return {"waits": sum(places.values()) / steps, "waits_at": places.most_common(12)}


def traced(kernels: dict) -> dict:
    """Return what was recorded of kernels under names of its own."""
    return {f"traced_{name}": value for name, value in kernels.items()}


def patches_of(inputs: dict) -> int:
    """Return the patches that the vision tower reads."""
    return int(inputs["image_grid_thw"].prod(dim=1).sum())


def train(
    head: CotRetriever, rows: int, chunk: int, given: Conditions, record: bool = False
) -> dict:
    """Train with CirTrainer on `rows` a step, in chunks of at most `chunk` tokens."""
    recorded = 1 + given.steps if record else None
    steps = 1 + given.steps + record
    pairs, watch = (
        SyntheticPairs(rows * steps, PHOTOGRAPHS, given.words),
        StepWatch(head.backbone.device, 1, recorded),
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = CirArguments(output_dir=folder, per_device_train_batch_size=rows, chunk_tokens=chunk, bf16=True,
                                 max_steps=steps, warmup_steps=0, save_strategy="no", logging_strategy="no",
                                 logging_first_step=False, report_to="none", disable_tqdm=True)  # fmt: skip
        trainer = CirTrainer(head, arguments, pairs, callbacks=[watch])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    tokens, supervised = (
        trainer.step_metrics.sums[name][0].item() / steps
        for name in ("tokens", "supervised_tokens")
    )
    sample = head.encoder().target(asked(SyntheticPairs(len(PHOTOGRAPHS), PHOTOGRAPHS))[0])
    patches = 2 * rows * patches_of(sample) / len(PHOTOGRAPHS)
    price = costs(head.backbone.plain)
    floor = given.card.seconds(
        *price.training(tokens, supervised, patches, -int(-tokens // chunk), given.recompute)
    )
    found = facts(rows, tokens, sum(watch.seconds) / given.steps, floor, head.backbone.device)
    more = {"supervised": supervised, "patches": patches}
    return found | more | waiting(watch.waits, 1) | traced(watch.kernels)


def train_plain(head: CotRetriever, rows: int, given: Conditions) -> dict:
    """Train with transformers and peft alone on `rows` a step, all at once."""
    backbone, pairs = head.backbone, SyntheticPairs(rows, PHOTOGRAPHS, given.words)
    plain_peers.put_lora(backbone, given.lora, given.recompute)
    batch = head.collator()([pairs[index, 0] for index in range(rows)])
    step = plain_peers.training_step(backbone, batch, head.temperature().item())
    step()
    forget_peak(backbone.device)
    seconds = timed(lambda: [step() for _ in range(given.steps)], backbone.device) / given.steps
    tokens = sum(sum(row_tokens(batch[side])) for side in ("query", "target"))
    patches = sum(patches_of(batch[side]) for side in ("query", "target"))
    price = costs(backbone.plain).training(
        tokens, supervised_tokens(batch), patches, 1, given.recompute
    )
    return facts(rows, tokens, seconds, given.card.seconds(*price), backbone.device)


def asked(pairs: SyntheticPairs) -> tuple[list, list[str]]:
    """Return the pictures and texts of queries."""
    rows = [pairs[index, 0] for index in range(len(pairs))]
    return [row.reference for row in rows], [row.record.text for row in rows]


def writing_floor(head: CotRetriever, inputs: dict, steps: int, card: Card) -> tuple[float, float]:
    """Return the least seconds of reading prompts and writing `steps` tokens a row, and those of one token a row."""
    price, tokens = costs(head.backbone.plain), row_tokens(inputs)
    each = card.seconds(*price.writing(len(tokens), sum(tokens) / len(tokens) + steps / 2))
    return card.seconds(*price.encoding(sum(tokens), patches_of(inputs))) + steps * each, each


def decode(head: CotRetriever, rows: int, given: Conditions) -> dict:
    """Write the chains of `rows` queries, from pictures and words to vectors."""
    device, queries = head.backbone.device, asked(SyntheticPairs(rows, PHOTOGRAPHS))
    head.max_new_tokens = given.new_tokens
    encoder = head.encoder("left")
    with inference(head):
        inputs = encoder.query(*queries, [[]] * rows)[0]
        host = timed(lambda: encoder.query(*queries, [[]] * rows), device)
        few = head.decode_chains(
            *queries
        )  # a few steps outside the timing: to warm up, to count and to record
        next(few)
        with count_waits(device) as waits:
            for _ in range(TRACED):
                next(few)
        with trace(device) as kernels:
            for _ in range(TRACED):
                next(few)
        few.close()
        cold = _write_all(head, queries)[
            1
        ]  # shapes that the device has not met yet can cost it more
        forget_peak(device)
        first, whole, last = _write_all(head, queries)
    lengths = [
        len(row.ids) + 1 for row in last.rows
    ]  # with the retrieval token; a few tokens were given
    floor, each = writing_floor(head, inputs, max(lengths), given.card)
    found = facts(rows, sum(lengths), whole, floor, device)
    found |= {
        "steps": max(lengths),
        "cold_seconds": cold,
        "host_seconds": host,
        "first_seconds": first,
    }
    found |= {"step_seconds": (whole - first) / max(lengths), "step_roofline_seconds": each}
    kernels["kernels"] /= TRACED
    return found | waiting(waits, TRACED) | traced(kernels)


def _write_all(
    head: CotRetriever, queries: tuple[list, list[str]]
) -> tuple[float, float, DecodingState]:
    """Write all chains -> seconds until the first token, seconds in all, and what was written."""
    wait(head.backbone.device)
    began = time.perf_counter()
    writing = head.decode_chains(*queries)
    last = next(writing)
    first = time.perf_counter() - began
    for step in writing:
        last = step
    return first, time.perf_counter() - began, last


def generate(head: CotRetriever, rows: int, given: Conditions) -> dict:
    """Write as many tokens with transformers' generate, from pictures and words."""
    backbone, queries, encoder = (
        head.backbone,
        asked(SyntheticPairs(rows, PHOTOGRAPHS)),
        head.encoder("left"),
    )

    def write(count: int) -> None:
        plain_peers.write(backbone, encoder.query(*queries, [[]] * rows)[0], count)

    with inference(head):
        cold = timed(partial(write, given.new_tokens), backbone.device)
        forget_peak(backbone.device)
        seconds = timed(partial(write, given.new_tokens), backbone.device)
    floor, each = writing_floor(
        head, encoder.query(*queries, [[]] * rows)[0], given.new_tokens, given.card
    )
    found = facts(rows, rows * given.new_tokens, seconds, floor, backbone.device)
    return found | {"steps": given.new_tokens, "cold_seconds": cold, "step_roofline_seconds": each}


def encode(head: CotRetriever, rows: int, given: Conditions) -> dict:
    """Encode `rows` pictures of a gallery in one batch; the tower and the language model are timed apart, too."""
    device, pictures = head.backbone.device, asked(SyntheticPairs(rows, PHOTOGRAPHS))[0]
    head.batch_size = rows
    with inference(head):
        head.encode_target(pictures)
        with count_waits(device) as waits:
            head.encode_target(pictures)
        forget_peak(device)
        seconds = timed(lambda: head.encode_target(pictures), device)
        peak = peak_memory_mb(device) / 2**10
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
    found = facts(rows, tokens, seconds, floor, device) | {"peak_gib": peak, "host_seconds": host}
    found |= {
        "tower_seconds": tower,
        "language_seconds": both - tower,
        "patches": patches_of(inputs),
    }
    return found | waiting(waits, 1) | traced(kernels)


def encode_plain(head: CotRetriever, rows: int, given: Conditions) -> dict:
    """Encode the same pictures with transformers' own forward pass."""
    backbone, pictures, encoder = (
        head.backbone,
        asked(SyntheticPairs(rows, PHOTOGRAPHS))[0],
        head.encoder(),
    )
    with inference(head):
        plain_peers.encode(backbone, encoder.target(pictures))
        forget_peak(backbone.device)
        seconds = timed(
            lambda: plain_peers.encode(backbone, encoder.target(pictures)), backbone.device
        )
    inputs = encoder.target(pictures)
    floor = given.card.seconds(
        *costs(backbone.plain).encoding(sum(row_tokens(inputs)), patches_of(inputs))
    )
    return facts(rows, sum(row_tokens(inputs)), seconds, floor, backbone.device)
