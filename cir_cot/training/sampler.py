"""Order the rows of an epoch, cut them into batches, and draw a random number for each row.

An epoch is a function of (seed, epoch) alone, so nothing needs saving to resume: the order is
computed again, and batches that were already trained are skipped. Every row is seen exactly once an
epoch, on exactly one process; no row is repeated to fill a batch and none is dropped. Where several
datasets are mixed, an epoch has as many rows of each as its weight says.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from cir_cot.errors import InputError
from cir_cot.records import Record

GROUP_BY = ("none", "reference", "category")
WINDOW = 50  # batches among which rows of similar length are sought, as transformers does


class Share(NamedTuple):
    """The rows of one dataset in a mixture, and how many of them an epoch has; above all: some come again."""

    rows: range
    taken: int


class RowSampler(Sampler):
    """Yield (index, draw) of every record once, in the order of one epoch.

    `draw` is the source of every random choice about its row. With `group_by`, the order consists
    of blocks of records of one group that have no target in common, so that the rows of a block are
    hard negatives of each other. Records that fill no block of their own are packed into blocks
    with leftovers of other groups.

    Args:
        records: the rows of the dataset.
        seed: of the order and of the draws.
        group_by: "none", "reference" or "category" (`Record.source`).
        group_size: records of a block.
        alike: rows of a micro-batch over all processes, or 0. Rows of similar length (of text and
            chain) then share a micro-batch, which needs little padding. Which rows those are, and
            when their batch comes, stays random.
        shares: of each dataset of a mixture; none for one dataset, every row once.

    Raises:
        InputError: an unknown `group_by`.
    """

    def __init__(
        self,
        records: Sequence[Record],
        seed: int,
        group_by: str = "none",
        group_size: int = 1,
        alike: int = 0,
        shares: Sequence[Share] = (),
    ):
        if group_by not in GROUP_BY:
            raise InputError(f"group_by must be one of {', '.join(GROUP_BY)}, got {group_by!r}")
        self.records = records
        self.seed = seed
        self.group_by = group_by
        self.group_size = group_size
        self.alike = alike
        self.shares = shares
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; accelerate calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.shares:
            return sum(share.taken for share in self.shares)
        return len(self.records)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        random = np.random.default_rng([self.seed, self.epoch])
        draws = random.integers(2**63, size=len(self)).tolist()
        order = random.permutation(len(self)).tolist()
        rows = self._rows()
        records = [self.records[row] for row in rows]
        # Blocks in random order; one that is not full comes last and shifts no other block.
        if self.group_by == "none":
            blocks = [[index] for index in order]
        else:
            blocks = self._blocks(order, records)
            short = blocks.pop() if blocks and len(blocks[-1]) < self.group_size else []
            blocks = [blocks[place] for place in random.permutation(len(blocks))] + [short]
        if self.alike:
            blocks = self._sort(blocks, records, random)
        for block in blocks:
            for place in block:
                yield rows[place], draws[place]

    def _rows(self) -> list[int]:
        """Return the index of each row of the epoch, before it is shuffled."""
        if not self.shares:
            return list(range(len(self.records)))
        # A generator of its own: the order of one dataset stays as it was.
        random = np.random.default_rng([self.seed, self.epoch, 1])
        found: list[int] = []
        for share in self.shares:
            # All rows as often as the count allows, then a sample that differs from epoch to epoch.
            whole, rest = divmod(share.taken, len(share.rows))
            found += list(share.rows) * whole
            found += random.choice(share.rows, rest, replace=False).tolist()
        return found

    def _sort(
        self, blocks: list[list[int]], records: Sequence[Record], random: np.random.Generator
    ) -> list[list[int]]:
        """Put blocks of similar length side by side in each window, and shuffle the batches."""
        *blocks, short = blocks  # the last may not be full: it stays where it is
        batch = max(1, self.alike // len(blocks[0])) if blocks else 1  # blocks of a micro-batch
        length = []
        for block in blocks:
            length.append(max(_length(records[place]) for place in block))
        # Sort within windows, so that a batch still holds other rows in each epoch.
        places: list[int] = []
        for start in range(0, len(blocks), WINDOW * batch):
            window = range(start, min(start + WINDOW * batch, len(blocks)))
            places += sorted(window, key=length.__getitem__)
        # Shuffle the batches; one that is not full stays last.
        batches = [places[at : at + batch] for at in range(0, len(places), batch)]
        rest = batches.pop() if batches and len(batches[-1]) < batch else []
        mixed: list[int] = []
        for at in random.permutation(len(batches)):
            mixed += batches[at]
        return [blocks[place] for place in mixed + rest] + [short]

    def _blocks(self, order: Sequence[int], records: Sequence[Record]) -> list[list[int]]:
        """Cut shuffled indices into blocks of `group_size`; only the last may be shorter."""
        open_blocks: dict[str, list[_Block]] = {}  # by group
        full = []
        for index in order:
            record = records[index]
            group = record.reference if self.group_by == "reference" else record.source
            blocks = open_blocks.setdefault(group, [])
            block = _first_without(blocks, record.targets)
            if block is None:
                block = _Block()
                blocks.append(block)
            block.rows.append(index)
            block.targets.update(record.targets)
            if len(block.rows) == self.group_size:
                full.append(block.rows)
                blocks.remove(block)
        # Pack what is left over.
        rest: list[int] = []
        for blocks in open_blocks.values():
            for block in blocks:
                rest += block.rows
        size = self.group_size
        return full + [rest[at : at + size] for at in range(0, len(rest), size)]


class _Block:
    """Rows of one group that have no target in common."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.targets: set[str] = set()


def _first_without(blocks: Sequence[_Block], targets: Sequence[str]) -> _Block | None:
    """Return the first block that has none of these targets."""
    for block in blocks:
        if block.targets.isdisjoint(targets):
            return block
    return None


def _length(record: Record) -> int:
    """Return the characters of a row's text and chain."""
    cot = record.cot
    chain = len(cot.caption) + len(cot.reasoning) + len(cot.conclusion) if cot else 0
    return len(record.text) + chain


class ShardedBatches(Sampler[list[tuple[int, int]]]):
    """Cut the order of `sampler` into micro-batches of all processes; yield this process's share.

    The last micro-batch takes what is left, shared evenly, so that processes may hold different
    numbers of rows but never none: it borrows from the one before if there are fewer rows than
    processes. A block of the sampler is never divided when its size divides
    batch_size * processes.

    Args:
        sampler: the order of rows.
        batch_size: rows of a micro-batch for each process.
        rank: of this process.
        processes: number of processes.

    Raises:
        InputError: fewer rows than processes, or a group_size that does not divide a micro-batch.
    """

    drop_last = False  # accelerate asks

    def __init__(self, sampler: RowSampler, batch_size: int, rank: int = 0, processes: int = 1):
        # Every process needs a row, and blocks must not be divided.
        if len(sampler) < processes:
            raise InputError(
                f"{len(sampler)} training rows are too few for {processes} processes; use fewer "
                "processes"
            )
        if sampler.group_by != "none" and batch_size * processes % sampler.group_size:
            raise InputError(
                f"group_size {sampler.group_size} does not divide the {batch_size * processes} "
                f"rows of a micro-batch ({processes} processes x {batch_size}); choose a divisor"
            )
        self.sampler = sampler
        self.batch_size = batch_size
        self.rank = rank
        self.processes = processes

    def __len__(self) -> int:
        """Return the micro-batches of an epoch, the same number for every process."""
        if self.batch_size == 1:
            # One row has nothing to lend: the rest joins the last batch.
            return len(self.sampler) // self.processes
        return -(-len(self.sampler) // (self.batch_size * self.processes))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        # Where each micro-batch starts; the last ones leave a row for each process.
        order = list(self.sampler)
        rows = self.batch_size * self.processes
        starts = [min(i * rows, len(order) - self.processes) for i in range(len(self))]
        for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
            # This process's share.
            first = start + (end - start) * self.rank // self.processes
            stop = start + (end - start) * (self.rank + 1) // self.processes
            yield order[first:stop]
