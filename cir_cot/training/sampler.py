"""The order of training: which rows form a batch, on which process, and the random number drawn with each row.

An epoch is a function of (seed, epoch) alone, so nothing needs saving to resume: the order is made again, and the
batches that were already trained are skipped. Every row is seen exactly once an epoch, on exactly one process; no row
is repeated to fill a batch and none is dropped.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import BatchSampler, Sampler

from cir_cot.errors import InputError
from cir_cot.records import Record

GROUP_BY = ("none", "reference", "category")
WINDOW = 50  # batches among which rows of like length are sought, as transformers does


class RowSampler(Sampler):
    """Yields (index, draw) of every record once, in the order of one epoch; `draw` feeds every random choice about it.

    With `group_by` reference or category (`Record.source`) the order consists of blocks of `group_size` records of one
    group with no target in common, so that the rows of a block are hard negatives of each other. Records that fill no
    block of their own are packed into blocks with leftovers of other groups.

    With `alike`, the rows of a micro-batch over all processes, rows of like length (of text and chain) share one, so
    that little of it is padding; which rows those are and when their batch comes stays random.
    """

    def __init__(
        self,
        records: Sequence[Record],
        seed: int,
        group_by: str = "none",
        group_size: int = 1,
        alike: int = 0,
    ):
        if group_by not in GROUP_BY:
            raise InputError(f"group_by must be one of {', '.join(GROUP_BY)}, got {group_by!r}")
        self.records, self.seed, self.group_by, self.group_size = (
            records,
            seed,
            group_by,
            group_size,
        )
        self.alike, self.epoch = alike, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; accelerate calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        random = np.random.default_rng([self.seed, self.epoch])
        draws = random.integers(2**63, size=len(self.records)).tolist()
        order = random.permutation(len(self.records)).tolist()
        if self.group_by != "none":
            blocks = self._blocks(order)
            short = blocks.pop() if blocks and len(blocks[-1]) < self.group_size else []
            blocks = [blocks[place] for place in random.permutation(len(blocks))] + [short]
        else:
            blocks = [[index] for index in order]
        if self.alike:
            blocks = self._sort(blocks, random)
        yield from ((index, draws[index]) for block in blocks for index in block)

    def _sort(self, blocks: list[list[int]], random: np.random.Generator) -> list[list[int]]:
        """Put whole blocks of like length side by side, in windows of many batches, and shuffle the batches."""
        *blocks, short = blocks  # the last may not be whole: it stays where it is
        batch = max(1, self.alike // len(blocks[0])) if blocks else 1
        length = [max(_length(self.records[index]) for index in block) for block in blocks]
        places = []
        for start in range(0, len(blocks), WINDOW * batch):
            places += sorted(
                range(start, min(start + WINDOW * batch, len(blocks))), key=length.__getitem__
            )
        batches = [places[at : at + batch] for at in range(0, len(places), batch)]
        rest = batches.pop() if batches and len(batches[-1]) < batch else []
        mixed = [place for at in random.permutation(len(batches)) for place in batches[at]] + rest
        return [blocks[place] for place in mixed] + [short]

    def _blocks(self, order: list[int]) -> list[list[int]]:
        """Cut shuffled indices into blocks of `group_size`; only the last may be shorter."""
        open_blocks: dict[str, list[tuple[list[int], set[str]]]] = {}
        full = []
        for index in order:
            record = self.records[index]
            mine = open_blocks.setdefault(
                record.reference if self.group_by == "reference" else record.source, []
            )
            at = next(
                (i for i, (_, targets) in enumerate(mine) if targets.isdisjoint(record.targets)),
                None,
            )
            if at is None:
                at = len(mine)
                mine.append(([], set()))
            mine[at][0].append(index)
            mine[at][1].update(record.targets)
            if len(mine[at][0]) == self.group_size:
                full.append(mine.pop(at)[0])
        rest = [index for blocks in open_blocks.values() for block, _ in blocks for index in block]
        return full + [rest[i : i + self.group_size] for i in range(0, len(rest), self.group_size)]


def _length(record: Record) -> int:
    """How long a row is beside others, in characters of its text and chain."""
    cot = record.cot
    return len(record.text) + (
        len(cot.caption) + len(cot.reasoning) + len(cot.conclusion) if cot else 0
    )


class ShardedBatches(BatchSampler):
    """Cuts the order of `sampler` into micro-batches of all processes and yields this process's part of each.

    A micro-batch takes `batch_size` rows a process. The last one takes what is left, shared evenly, so that processes
    may hold different numbers of rows but never none: it borrows from the one before if there are fewer rows than
    processes. Blocks of the sampler stay whole when their size divides batch_size * processes.
    """

    def __init__(self, sampler: RowSampler, batch_size: int, rank: int = 0, processes: int = 1):
        if len(sampler) < processes:
            raise InputError(
                f"{len(sampler)} training rows are too few for {processes} processes; use fewer processes"
            )
        if sampler.group_by != "none" and batch_size * processes % sampler.group_size:
            raise InputError(
                f"group_size {sampler.group_size} does not divide the {batch_size * processes} rows of a micro-batch "
                f"({processes} processes x {batch_size}); choose a divisor"
            )
        self.sampler, self.batch_size, self.rank, self.processes = (
            sampler,
            batch_size,
            rank,
            processes,
        )
        self.drop_last = False

    def __len__(self) -> int:
        """Micro-batches of an epoch, the same number for every process."""
        if self.batch_size == 1:
            return (
                len(self.sampler) // self.processes
            )  # one row has nothing to lend: the rest joins the last batch
        return -(-len(self.sampler) // (self.batch_size * self.processes))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = list(self.sampler)
        whole = self.batch_size * self.processes
        starts = [min(i * whole, len(order) - self.processes) for i in range(len(self))]
        for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
            cut = [
                start + (end - start) * part // self.processes for part in range(self.processes + 1)
            ]
            yield order[cut[self.rank] : cut[self.rank + 1]]
