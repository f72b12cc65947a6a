"""Count floating-point operations and bytes, and time functions in turns.

Counts are the same on every machine and in every run, so that a ratio of two counts is reliable. Times are medians of
interleaved runs, so that other load on the machine affects all sides alike.
"""

import json
import statistics
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from cir_cot.files import write_text_atomic
from cir_cot.provenance import package_versions


class PeakBytes(TorchDispatchMode):
    """Record in `peak` the most bytes held at one time by tensors that are created within; views count once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0  # bytes that are alive
        self.peak = 0
        self.known: set[int] = set()  # storages that have been counted

    def __torch_dispatch__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Run the operation, then count storages that are new."""
        old = {
            leaf.untyped_storage()._cdata
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor)
        }
        out = function(*args, **kwargs or {})
        # A view has the storage of an input, or one that was counted before.
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in old | self.known:
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        """Add a new storage, and subtract it as soon as it is freed."""
        name = storage._cdata
        size = storage.nbytes()
        self.known.add(name)
        self.now += size
        self.peak = max(self.peak, self.now)
        # torch may reuse the address of a freed storage.
        weakref.finalize(storage, self._free, name, size)

    def _free(self, name: int, size: int) -> None:
        self.known.discard(name)
        self.now -= size


def flops(work: Callable[[], object]) -> int:
    """Count the floating-point operations of matrix products and convolutions, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def peak_bytes(work: Callable[[], object]) -> int:
    """Count the most bytes that tensors created by `work` hold at one time."""
    with PeakBytes() as meter:
        work()
    return meter.peak


def seconds(
    sides: Mapping[str, Callable[[], object]],
    pairs: int,
    before: Callable[[], object] | None = None,
) -> dict[str, float]:
    """Time functions in turns.

    Args:
        sides: Functions by name.
        pairs: Times that each of them runs, after one run that is not timed.
        before: Runs ahead of each function, untimed, e.g. to synchronise processes.

    Returns:
        Median seconds by name.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    # The first turn warms up.
    for turn in range(pairs + 1):
        for name, work in sides.items():
            if before is not None:
                before()
            started = time.perf_counter()
            work()
            if turn:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def write_ratios(
    path: str | Path | None, name: str, ours: Mapping, peer: Mapping, ratio: Mapping, **more: object
) -> str:
    """Format a benchmark's results as a table -> the table; with a `path`, write them there as JSON as well.

    Args:
        path: A JSON file.
        name: Of the benchmark.
        ours: Numbers of this library by name.
        peer: Numbers of what it is compared with.
        ratio: Ratios of the two.
        more: Further fields of the JSON file, e.g. settings.
    """
    sides = {"ours": ours, "peer": peer, "ratio": ratio}
    # The file says with which versions the numbers were measured.
    found = {"name": name, **sides, **more, "versions": package_versions()}
    if path is not None:
        write_text_atomic(path, json.dumps(found, indent=1) + "\n")
    # One line a number, in columns.
    rows = [(side, key, value) for side, numbers in sides.items() for key, value in numbers.items()]
    width = max(len(key) for _, key, _ in rows)
    lines = [f"{side:5}  {key:<{width}}  {_number(value):>16}" for side, key, value in rows]
    return "\n".join([name, *lines])


def _number(value: object) -> str:
    """Format a number with separators of thousands."""
    if isinstance(value, float):
        return f"{value:,.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
