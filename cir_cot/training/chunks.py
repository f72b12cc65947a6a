"""Split a training batch into chunks of rows that fit into memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

PATCHES = (
    "pixel_values"  # patches (P, d) of all rows, one row after the other; image_grid_thw counts
)
SIDES = ("query", "target")

# "query" and "target": inputs by name; "ids" (B, P); "labels" (B, T). With hard negatives, "target" has 1 + K pictures
# a row, the target first, and "negatives" (B, K) their image hashes.
Batch = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Chunk:
    """Rows of a collated batch that go through the model together.

    `batch` selects the rows anew on each access, so that no copy of all pictures is kept.

    Attributes:
        part: the collated batch.
        rows: indices (K,) of the chunk's rows; None: all of them.
        counted: False for a chunk that only keeps processes in step: its loss and gradients are 0.
    """

    part: Batch
    rows: Tensor | None = None
    counted: bool = True

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def ids(self) -> Tensor:
        """Image hashes (K, P) of the rows' correct targets, see `target_ids`."""
        return self.part["ids"] if self.rows is None else self.part["ids"][self.rows]

    @property
    def batch(self) -> Batch:
        """The rows as a batch of their own."""
        return self.part if self.rows is None else select(self.part, self.rows)


def collated_parts(batch: Batch) -> list[Batch]:
    """Return the collated batches of a step: those of LazyCollator, or the batch itself."""
    return batch.get("parts", [batch])


def row_lengths(inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the tokens (B,) of each row without padding; a row of features counts as one token."""
    if "attention_mask" in inputs:
        return inputs["attention_mask"].sum(dim=1)
    first = next(iter(inputs.values()))
    return torch.ones(len(first), dtype=torch.long, device=first.device)


def row_tokens(inputs: Mapping[str, Tensor]) -> list[int]:
    """Return `row_lengths` as numbers of the host."""
    return row_lengths(inputs).tolist()


def side_tokens(batch: Mapping) -> dict[str, list[int]]:
    """Return the tokens of each row by side; a row's target side includes its hard negatives."""
    query = row_tokens(batch["query"])
    lengths = row_lengths(batch["target"]).view(len(query), -1)  # (B, 1 + K)
    return {"query": query, "target": lengths.sum(dim=1).tolist()}


def split_into_chunks(batch: Batch, budget: int) -> list[Chunk]:
    """Split a collated batch into chunks of at most `budget` tokens, long rows first.

    Padding counts, and so do both sides. A single row beyond the budget is a chunk of its own.
    """
    query, target = side_tokens(batch).values()
    # Rows of similar length share a chunk, which then needs little padding.
    order = sorted(range(len(query)), key=lambda row: (-query[row] - target[row], row))
    groups: list[list[int]] = []
    for row in order:
        if groups:
            together = [*groups[-1], row]
            width = max(query[i] for i in together) + max(target[i] for i in together)
            if len(together) * width <= budget:
                groups[-1].append(row)
                continue
        groups.append([row])
    if len(groups) == 1:
        return [Chunk(batch)]  # the plain step then sees the rows in their own order
    return [Chunk(batch, torch.tensor(group)) for group in groups]


def pad_chunk_count(chunks: Sequence[Chunk], count: int) -> list[Chunk]:
    """Return `count` chunks of the same rows, so that every process runs the same number.

    The largest chunks are halved; when all have one row, uncounted copies of the last are added.
    """
    chunks = list(chunks)
    # Halve the largest: that evens out memory, too.
    while len(chunks) < count:
        largest = max(chunks, key=len)
        if len(largest) == 1:
            break
        rows = torch.arange(len(largest)) if largest.rows is None else largest.rows
        half = len(largest) // 2
        place = chunks.index(largest)
        halves = [Chunk(largest.part, rows[:half]), Chunk(largest.part, rows[half:])]
        chunks[place : place + 1] = halves
    return chunks + [replace(chunks[-1], counted=False)] * (count - len(chunks))


def select(batch: Batch, rows: Tensor) -> Batch:
    """Return rows (K,) of a batch, without the padding that none of them needs."""
    pictures = len(row_lengths(batch["target"])) // len(batch["ids"])  # 1 + K a row
    shown = (rows[:, None] * pictures + torch.arange(pictures)).flatten()
    chosen: Batch = {
        "query": _select_inputs(batch["query"], rows),
        "target": _select_inputs(batch["target"], shown),
    }
    for name, value in batch.items():
        if name not in SIDES:
            chosen[name] = value[rows]
    # Labels lose the same columns as the query's tokens.
    if "labels" in chosen and "attention_mask" in batch["query"]:
        columns = _used_columns(batch["query"]["attention_mask"][rows])
        chosen["labels"] = chosen["labels"][:, columns]
    return chosen


def _select_inputs(inputs: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    mask = inputs.get("attention_mask")
    # Tokens lose the padding; patches are found by their rows' grids.
    chosen = {}
    for name, value in inputs.items():
        if name == PATCHES and "image_grid_thw" in inputs:
            # Features may be fewer than patches: each row has its share of them.
            patches = inputs["image_grid_thw"].prod(dim=1)  # (B,)
            blocks = value.split((patches * len(value) // patches.sum()).tolist())
            chosen[name] = torch.cat([blocks[row] for row in rows.tolist()])
        elif mask is not None and value.shape[:2] == mask.shape:
            chosen[name] = value[rows][:, _used_columns(mask[rows])]
        else:
            chosen[name] = value[rows]
    return chosen


def _used_columns(mask: Tensor) -> slice:
    """Return the columns from the first to the last that any row of a mask (B, T) uses."""
    used = mask.any(dim=0).nonzero()[:, 0]
    return slice(int(used[0]), int(used[-1]) + 1)
