"""Contrastive batches larger than memory: gradient caching, for any head, with its other losses in the same step.

InfoNCE needs all embeddings of a batch at once, but not all activations (Gao et al. 2021, arXiv 2101.06983):

1. Encode chunk by chunk without gradients and keep embeddings only; remember the random state before each chunk.
2. Compute InfoNCE on all embeddings, gathered from every process, and its gradient with respect to each of them.
3. Encode chunk by chunk once more, from the same random state, now with gradients; the backward pass of a chunk starts
   from the gradients of step 2 and from the losses that need no other row (the chain's cross-entropy, aux terms).

Losses of a head that need all rows, too (a router's balance), are computed in step 2 from what the head says of each
row, and step 3 starts from their gradients as well.

What is guaranteed: loss and gradients are those of the plain step, whatever the chunks, but for rounding. Both passes
draw the same dropout; a head that is not repeatable is reported. Pictures reach the device chunk by chunk, and every
process runs equally many.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cir_cot.heads.base import HeadOutput

PACKED = "pixel_values"  # patches (P, d) of all rows one after the other, where image_grid_thw says how many each has
SIDES = ("query", "target")
ROW_TOKENS = 128  # fewer than a row of any dataset here has: a part of a batch then fills a chunk


@dataclass(frozen=True, eq=False)
class Chunk:
    """Rows (default: all) of a batch that go through the model together; without weight they keep processes in step.

    `batch` is cut out anew whenever it is asked for, so that no copy of all pictures is kept.
    """

    part: dict
    rows: Tensor | None = None
    weighs: bool = True

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def ids(self) -> Tensor:
        """The rows' image numbers (K,)."""
        return self.part["ids"] if self.rows is None else self.part["ids"][self.rows]

    @property
    def batch(self) -> dict:
        """The rows as a batch of their own."""
        return self.part if self.rows is None else select(self.part, self.rows)


class PartCollator:
    """Loads and collates the rows of a batch `size` at a time -> {"parts": batches}: few decoded pictures at once."""

    def __init__(self, dataset, collator: Callable, size: int):
        self.dataset, self.collator, self.size = dataset, collator, size

    def __call__(self, items: Sequence) -> dict:
        groups = [items[at : at + self.size] for at in range(0, len(items), self.size)]
        return {
            "parts": [self.collator([self.dataset[item] for item in group]) for group in groups]
        }


def part_size(budget: int) -> int:
    """Rows to load and collate together for chunks of `budget` tokens."""
    return max(8, budget // ROW_TOKENS)


class Items(torch.utils.data.Dataset):
    """Stands in for a dataset whose rows PartCollator loads: an item is its own key."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item):
        return item


def parts_of(batch: dict) -> list[dict]:
    """The collated batches a step consists of."""
    return batch.get("parts", [batch])


def row_tokens(inputs: dict[str, Tensor]) -> list[int]:
    """Tokens that a model reads of each row, padding left out; rows of features count as one token each."""
    if "attention_mask" in inputs:
        return inputs["attention_mask"].sum(dim=1).tolist()
    return [1] * len(next(iter(inputs.values())))


def cut(batch: dict, budget: int) -> list[Chunk]:
    """Chunks of a collated batch with at most `budget` tokens each, padding and both sides counted; long rows first.

    A single row beyond the budget is a chunk of its own.
    """
    query, target = (row_tokens(batch[side]) for side in SIDES)
    order = sorted(
        range(len(query)), key=lambda row: (query[row] + target[row], -row), reverse=True
    )
    groups: list[list[int]] = []
    for row in order:
        together = [*groups[-1], row] if groups else []
        width = max((query[i] for i in together), default=0) + max(
            (target[i] for i in together), default=0
        )
        if together and len(together) * width <= budget:
            groups[-1].append(row)
        else:
            groups.append([row])
    if len(groups) == 1:
        return [Chunk(batch)]  # untouched: the plain step sees the rows in their order
    return [Chunk(batch, torch.tensor(group)) for group in groups]


def stretch(chunks: list[Chunk], count: int) -> list[Chunk]:
    """`count` chunks of the same rows, so that processes run equally many: halved ones, then ones without weight."""
    chunks = list(chunks)
    while len(chunks) < count and (largest := max(chunks, key=len)) and len(largest) > 1:
        at, half = chunks.index(largest), len(largest) // 2
        rows = torch.arange(len(largest)) if largest.rows is None else largest.rows
        chunks[at : at + 1] = [Chunk(largest.part, rows[:half]), Chunk(largest.part, rows[half:])]
    return chunks + [replace(chunks[-1], weighs=False)] * (count - len(chunks))


def select(batch: dict, rows: Tensor) -> dict:
    """Rows (K,) of a batch, without the padding that no row of them needs."""
    chosen = {side: _select_inputs(batch[side], rows) for side in SIDES}
    chosen |= {name: value[rows] for name, value in batch.items() if name not in SIDES}
    if "labels" in chosen and "attention_mask" in batch["query"]:
        chosen["labels"] = chosen["labels"][:, _needed(batch["query"]["attention_mask"][rows])]
    return chosen


def _select_inputs(inputs: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    mask = inputs.get("attention_mask")
    needed = None if mask is None else _needed(mask[rows])
    chosen = {}
    for name, value in inputs.items():
        if name == PACKED and "image_grid_thw" in inputs:
            patches = inputs["image_grid_thw"].prod(dim=1)  # (B,)
            blocks = value.split((patches * len(value) // patches.sum()).tolist())
            chosen[name] = torch.cat([blocks[row] for row in rows.tolist()])
        elif mask is not None and value.shape == mask.shape:
            chosen[name] = value[rows][:, needed]
        else:
            chosen[name] = value[rows]
    return chosen


def _needed(mask: Tensor) -> slice:
    """Columns from the first to the last that any row of a mask (B, T) uses."""
    used = mask.any(dim=0).nonzero()[:, 0]
    return slice(int(used[0]), int(used[-1]) + 1)


def per_row(outputs: HeadOutput) -> dict[str, Tensor]:
    """What a head returns for each row (B, ...): the embeddings of both sides, and `rows`, of which losses are made."""
    assert outputs.target is not None, "a contrastive step encodes both sides"
    return {"query": outputs.query, "target": outputs.target} | outputs.rows


def cached_step(
    chunks: Sequence[Chunk],
    encode: Callable[[Chunk, bool], HeadOutput],
    contrast: Callable[[HeadOutput, Tensor], Tensor] | None,
    add: Callable[[HeadOutput, Chunk], Tensor | float],
    backward: Callable[[Tensor, bool], None],
    no_sync: Callable[[], AbstractContextManager],
    device: torch.device,
) -> Tensor:
    """One step over all chunks, gradients accumulated in the parameters -> loss, a scalar without a graph.

    `encode(chunk, again)` runs the head; `again` asks for the labels, too. `contrast(outputs, ids)` is InfoNCE of all
    rows and whatever else needs all of them; without it one pass is enough. `add(outputs, chunk)` is the sum of a
    chunk's other losses, `backward(loss, last)` its backward pass. Under `no_sync()` gradients stay in their process:
    they are exchanged once, with the last chunk.
    """
    states, start, drift = [random_state(device)] * len(chunks), 0, torch.zeros((), device=device)
    leaves: HeadOutput | None = None
    total = torch.zeros((), device=device)
    if contrast is not None:
        states, leaves = _embed(chunks, encode, device)
        total = contrast(
            leaves, torch.cat([chunk.ids for chunk in chunks if chunk.weighs]).to(device)
        )
        total.backward()
        total = total.detach().clone()
    for number, (chunk, state) in enumerate(zip(chunks, states, strict=True)):
        if contrast is not None:
            set_random_state(state, device)
        last, count = number == len(chunks) - 1, len(chunk) if chunk.weighs else 0
        with nullcontext() if last else no_sync():
            out = encode(chunk, True)
            part = add(out, chunk)
            total += torch.as_tensor(part).detach()
            for name, value in per_row(out).items() if leaves is not None else ():
                mine = per_row(leaves)[name]
                if mine.grad is not None:
                    gradient = mine.grad[start : start + count]
                    # a chunk without weight takes part with no rows: its zero gradients keep processes in step
                    part = part + (value[:count] * gradient).sum()
                if name in SIDES:
                    moved = (
                        (value.detach()[:count] - mine.detach()[start : start + count]).abs().sum()
                    )
                    drift = torch.maximum(drift, moved / max(count, 1))
            learned = torch.is_tensor(out.temperature) and out.temperature.requires_grad
            if leaves is not None and learned:
                # with every chunk: to a weight without gradient in the first one, ZeRO-3 adds that of the step before
                part = part + out.temperature * (leaves.temperature.grad if last else 0.0)
            backward(part, last)
        start += count
    _check_repeatable(drift.item())
    return total


@torch.no_grad()
def _embed(
    chunks: Sequence[Chunk], encode: Callable, device: torch.device
) -> tuple[list, HeadOutput]:
    """First pass -> the random state before each chunk; the head's outputs for all rows and the temperature, leaves."""
    states, outputs = [], []
    for chunk in chunks:
        states.append(random_state(device))
        outputs.append(encode(chunk, False))
    kept = [out for out, chunk in zip(outputs, chunks, strict=True) if chunk.weighs]
    leaves = {name: torch.cat([per_row(out)[name] for out in kept]) for name in per_row(kept[0])}
    leaves["temperature"] = torch.as_tensor(kept[0].temperature, device=device)
    leaves = {
        name: value.detach().clone().requires_grad_(value.is_floating_point())
        for name, value in leaves.items()
    }
    return states, HeadOutput(
        query=leaves["query"],
        target=leaves["target"],
        temperature=leaves["temperature"],
        aux={},
        rows={name: leaves[name] for name in kept[0].rows},
        stats={},
    )


def _check_repeatable(drift: float) -> None:
    # Unit vectors: what a row's entries differ by in all. Rounding in bfloat16 of kernels without a fixed order of sums
    # stays far below.
    if drift > 0.5:
        raise RuntimeError(
            f"the second pass of gradient caching gave other embeddings (by {drift:.2f}): the head draws random "
            "numbers outside torch, or changes between its forward passes; train it with chunk_tokens 0"
        )


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """What dropout will draw from, on the CPU and on the device."""
    module = None if device.type == "cpu" else torch.get_device_module(device)
    return torch.get_rng_state(), module and module.get_rng_state(device)


def set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    """Draw again what was drawn after `random_state`."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.get_device_module(device).set_rng_state(state[1], device)
