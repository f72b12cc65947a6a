"""Estimate the tokens and the memory of a run before its first step, and propose a chunk size.

Token counts come from a sample of the real rows through the real collator. Memory per token is
measured, not modelled: one forward and backward pass of the head over a few rows, counting the bytes
that are alive at its peak.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from cir_cot.cards import card_named
from cir_cot.devices import device_name, free_bytes
from cir_cot.models.resizing import TOKEN, is_shrunk
from cir_cot.peak_bytes import Operations, peak_bytes

from .arguments import CirArguments
from .chunks import SIDES, row_tokens, select, side_tokens
from .dataset import TrainingDataset

SAMPLE = 64  # rows: quantiles of token counts within a few per cent, in seconds
MEASURED = 2  # rows of the measured pass
# Share of the free memory for the activations of a chunk. The rest is for the temporary tensors of
# the backward pass and for fragmentation.
SHARE = 0.8
ROUND = 256  # a proposed chunk size is a multiple of this


def token_counts(batch: Mapping) -> dict[str, list[int]]:
    """Count the tokens of each row.

    Returns:
        A count for each row under "query", "target", and "visual" (visual tokens of both sides).
    """
    counts = side_tokens(batch)
    rows = len(counts["query"])
    visual = torch.zeros(rows, dtype=torch.long)  # (B,)
    for side in SIDES:
        if "mm_token_type_ids" in batch[side]:
            # A row's target side has its hard negatives as well.
            visual = visual + batch[side]["mm_token_type_ids"].cpu().view(rows, -1).sum(dim=1)
    return counts | {"visual": visual.tolist()}


def quantiles(counts: Sequence[int]) -> dict[str, float]:
    """Return the minimum, median, 95 % quantile, maximum and mean of counts."""
    values = torch.tensor(counts, dtype=torch.float)
    levels = {"least": 0.0, "median": 0.5, "p95": 0.95, "most": 1.0}
    found = {name: values.quantile(level).item() for name, level in levels.items()}
    return found | {"mean": round(values.mean().item(), 1)}


def histogram(counts: Sequence[int], bins: int = 8) -> list[tuple[int, int]]:
    """Count values in bins of equal width.

    Returns:
        Pairs (largest value of the bin, values in it) in ascending order, without empty bins.
    """
    low = min(counts)
    width = max(1, -(-(max(counts) - low + 1) // bins))
    filled = [0] * bins
    for count in counts:
        filled[(count - low) // width] += 1
    return [(low + width * (at + 1) - 1, rows) for at, rows in enumerate(filled) if rows]


def static_bytes(head: nn.Module) -> tuple[int, int]:
    """Return (bytes of all weights, bytes of gradients and of AdamW's two moments)."""
    weights = sum(value.nbytes for value in (*head.parameters(), *head.buffers()))
    trained = sum(value.nbytes for value in head.parameters() if value.requires_grad)
    return weights, 3 * trained


class TokenCost(NamedTuple):
    """What a token of a training step costs, padding included."""

    bytes: int  # at the peak, beside weights and gradients
    operations: int  # of matrix products, convolutions and attention, forward and backward


def cost_of_token(
    head: nn.Module, batch: Mapping, device: torch.device, autocast: torch.dtype | None
) -> TokenCost:
    """Measure a forward and backward pass in train mode.

    The backward pass counts: with recomputation it holds more than what the forward pass keeps.
    """
    inputs = {}
    for side in SIDES:
        inputs[side] = {name: value.to(device) for name, value in batch[side].items()}
    labels = batch["labels"].to(device) if "labels" in batch else None
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]

    def step() -> None:
        with torch.autocast(device.type, autocast or torch.bfloat16, enabled=autocast is not None):
            out = head(query=inputs["query"], target=inputs["target"], labels=labels)
            loss = out.query.sum() + out.target.sum() + sum(out.aux.values())
        loss.backward()

    # One step as training runs it: gradients of chosen weights alone would recompute less. They are
    # counted with the optimizer.
    training = head.training
    head.train()
    with Operations() as counted:
        peak = peak_bytes(step)
    for parameter in trained:
        parameter.grad = None
    head.train(training)
    padded = 0
    for side in SIDES:
        tokens = row_tokens(batch[side])
        padded += len(tokens) * max(tokens)
    gradients = sum(parameter.nbytes for parameter in trained)
    return TokenCost(max(peak - gradients, 0) // padded, counted.total // padded)


def estimate_run(
    head: nn.Module,
    dataset: TrainingDataset,
    collator: Callable[[list], dict],
    args: CirArguments,
    side: int = TOKEN,
    max_pixels: int | None = None,
    free: int | None = None,
) -> dict:
    """Estimate the tokens and the memory of a run with `args` from a sample of its dataset.

    Args:
        side: side of a visual token in pixels.
        max_pixels: area above which pictures are made smaller.
        free: free memory of a process in bytes; default: what is free now.

    Returns:
        The content of estimate.json, which `describe` puts into text. Bytes are those of one
        process, without the savings of ZeRO and FSDP; seconds are the operations at the card's
        rate, None where the card is unknown.
    """
    # Draw a sample at equal distances and count its tokens and pictures.
    step = max(1, len(dataset) // SAMPLE)
    rows = [dataset[index, 0] for index in range(0, len(dataset), step)][:SAMPLE]
    batch = collator(rows)
    counts = token_counts(batch)
    both = [query + target for query, target in zip(counts["query"], counts["target"], strict=True)]
    pictures, shrunk = _count_pictures(rows, side, max_pixels)
    # Measure the bytes of a token on the longest rows.
    longest = sorted(range(len(both)), key=both.__getitem__)[-MEASURED:]
    precision = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    cost = cost_of_token(head, select(batch, torch.tensor(longest)), args.device, precision)
    # Compare a step of the longest rows with the memory that weights and optimizer leave.
    weights, training = static_bytes(head)
    step_tokens = args.per_device_train_batch_size * (max(counts["query"]) + max(counts["target"]))
    free = free_bytes(args.device) if free is None else free
    room = max(0, free - training)
    chunk = min(step_tokens, args.chunk_tokens or step_tokens)
    operations = cost.operations * _mean_step(counts, args)
    return {
        "rows": len(dataset),
        "sampled": len(rows),
        "tokens": {name: quantiles(values) for name, values in counts.items()},
        "histogram": histogram(both),
        "pictures": pictures,
        "pictures_above_max_pixels": shrunk,
        "bytes": {
            "weights": weights,
            "gradients_and_optimizer": training,
            "per_token": cost.bytes,
            "step": cost.bytes * chunk,
            "step_without_chunks": cost.bytes * step_tokens,
            "free": free,
        },
        "operations": operations,
        "seconds": _least_seconds(operations, args.device),
        "chunk_tokens": args.chunk_tokens,
        "proposed_chunk_tokens": _propose_chunk(room, cost.bytes, max(both)),
        "fits": cost.bytes * chunk <= room,
    }


def _least_seconds(operations: int, device: torch.device) -> float | None:
    """Return the seconds of a step at the rate of its card, None where that is unknown."""
    card = card_named(device_name(device))
    return operations / card.flops if card else None


def _mean_step(counts: Mapping[str, Sequence[int]], args: CirArguments) -> int:
    """Return the tokens of a mean step of one process, without padding."""
    row = quantiles(counts["query"])["mean"] + quantiles(counts["target"])["mean"]
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
    # Beyond a chunk, every row is encoded once more for its embedding: a third of forward and backward.
    cached = args.chunk_tokens and rows * row > args.chunk_tokens
    return round(rows * row * (4 / 3 if cached else 1))


def _count_pictures(rows: Sequence, side: int, max_pixels: int | None) -> tuple[int, int]:
    """Return (pictures of the rows, how many of them are made smaller)."""
    shown = []
    for row in rows:
        shown += [row.reference, row.target]
    pictures = [picture for picture in shown if not torch.is_tensor(picture)]  # else: features
    if not max_pixels:
        return len(pictures), 0
    shrunk = sum(is_shrunk(one.height, one.width, side, max_pixels) for one in pictures)
    return len(pictures), shrunk


def _propose_chunk(room: int, each: int, longest: int) -> int:
    """Return the tokens of a chunk that fits into `room` bytes, at least those of one row."""
    fitting = int(SHARE * room / max(each, 1)) // ROUND * ROUND
    one_row = -(-longest // ROUND) * ROUND
    return max(fitting, one_row)


def describe(facts: Mapping) -> str:
    """Return the estimate of `estimate_run` as a few lines of text."""
    # Tokens of a row.
    size = {name: _mib(value) for name, value in facts["bytes"].items()}
    query, target, visual = (
        _range(facts["tokens"][name]) for name in ("query", "target", "visual")
    )
    lines = [
        f"{facts['rows']} rows, of which {facts['sampled']} sampled: tokens of query {query}, of "
        f"target {target}; visual ones of both {visual}"
    ]
    # Histogram, its longest bar 40 signs.
    most = max(rows for _, rows in facts["histogram"])
    for upper, rows in facts["histogram"]:
        lines.append(f"  up to {upper:>6} tokens  {'#' * -(-40 * rows // most)} {rows}")
    # Pictures and memory.
    lines += [
        f"pictures above max_pixels, made smaller: {facts['pictures_above_max_pixels']} of "
        f"{facts['pictures']}",
        f"memory of a process: weights {size['weights']}, gradients and optimizer "
        f"{size['gradients_and_optimizer']}, activations of a step {size['step']} (all rows at "
        f"once {size['step_without_chunks']}); free {size['free']}",
    ]
    least = facts["seconds"]
    lines.append(
        f"a step is about {facts['operations'] / 1e12:,.3g} TFLOP on each process"
        + (f": at least {least:.2g} s on this card" if least else "")
        + "; cir-cot plan gives its seconds and memory on other cards"
    )
    if not facts["fits"]:
        lines.append(
            f"this will not fit: set chunk_tokens to at most {facts['proposed_chunk_tokens']}"
        )
    return "\n".join(lines)


def _range(values: Mapping[str, float]) -> str:
    return f"{values['least']:.0f} .. {values['most']:.0f} (mean {values['mean']:.0f})"


def _mib(value: int) -> str:
    return f"{value / 2**20:,.0f} MiB"
