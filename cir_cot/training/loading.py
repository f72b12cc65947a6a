"""Load the rows of a training epoch into batches, in worker processes if there are any."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from cir_cot import compat  # noqa: F401  # isort: skip
from accelerate.data_loader import prepare_data_loader

from cir_cot.errors import InputError

from .arguments import CirArguments
from .chunks import Batch
from .dataset import TrainingDataset
from .sampler import RowSampler, ShardedBatches

ROW_TOKENS = 128  # fewer than a row of any dataset here has: rows loaded together then fill a chunk


def train_loader(
    dataset: TrainingDataset,
    collator: Callable[[list], Batch],
    args: CirArguments,
    batch_size: int,
) -> DataLoader:
    """Return the batches of this process, `batch_size` rows each, in the order of each epoch.

    They are sharded already, so accelerate only passes the epoch on to the sampler.
    """
    # The order of rows, cut into the micro-batches of this process.
    rows = batch_size * args.world_size  # of a micro-batch over all processes
    sampler = RowSampler(
        dataset.records,
        args.seed if args.data_seed is None else args.data_seed,
        args.group_by,
        args.group_size or rows,
        rows if args.groups_by_length else 0,
        getattr(dataset, "shares", ()),  # only a mixture has them
    )
    batches = ShardedBatches(sampler, batch_size, args.process_index, args.world_size)
    # With gradient caching a batch may be large: its rows are loaded a few at a time.
    source: Any = dataset
    collate: Callable = collator
    if args.chunk_tokens:
        source = IndexDataset(dataset)
        collate = LazyCollator(dataset, collator, rows_per_part(args.chunk_tokens))
    loader: DataLoader = DataLoader(
        source,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
    )
    return prepare_data_loader(loader, num_processes=1, process_index=0)


class IndexDataset(torch.utils.data.Dataset):
    """Return each index as its own item, for a DataLoader whose LazyCollator loads the rows."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: Any) -> Any:
        return item


class LazyCollator:
    """Load and collate the rows of a batch a few at a time, so that few decoded pictures are held.

    Args:
        dataset: loads a row by its index.
        collator: the head's collator.
        size: rows to load at a time, see `rows_per_part`.
    """

    def __init__(self, dataset: Any, collator: Callable[[list], Batch], size: int):
        self.dataset = dataset
        self.collator = collator
        self.size = size

    def __call__(self, items: Sequence) -> dict[str, list[Batch]]:
        parts = []
        # Decoded pictures of one group are freed when it is collated.
        for start in range(0, len(items), self.size):
            rows = [self.dataset[item] for item in items[start : start + self.size]]
            parts.append(self.collator(rows))
        return {"parts": parts}


def rows_per_part(budget: int) -> int:
    """Return how many rows to load and collate together for chunks of `budget` tokens."""
    return max(8, budget // ROW_TOKENS)


def worker_error(error: InputError) -> InputError:
    """Return an InputError of a loading worker with the message that it was raised with.

    torch cannot send an exception object from a DataLoader worker to the training process. It
    raises another one of the same class there, whose message is "Caught InputError in DataLoader
    worker process 0." and the worker's complete traceback (torch._utils.ExceptionWrapper). The last
    line of that traceback is the only place that holds the original message.
    """
    text = str(error).rstrip()
    if not text.startswith("Caught InputError in DataLoader worker"):
        return InputError(text)
    return InputError(text.rpartition("InputError: ")[2])
