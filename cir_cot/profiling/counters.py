"""Counts instead of clocks: floating-point operations, bytes alive at the peak, bytes kept for the backward pass.

They are the same on every machine and every run, so that a ratio of two of them can be trusted; times are medians of
interleaved pairs, so that whatever else the machine does falls on both sides.
"""

import json
import statistics
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from cir_cot.files import write_text_atomic
from cir_cot.provenance import package_versions


class PeakBytes(TorchDispatchMode):
    """Within it, `peak` is the most bytes that tensors made within it held at one time; views count once."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Run the operation, then count storages that are new."""
        old = {
            leaf.untyped_storage()._cdata
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor)
        }
        out = function(*args, **kwargs or {})
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in old | self.known:
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        name, size = storage._cdata, storage.nbytes()
        self.known.add(name)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, name, size)

    def _free(self, name: int, size: int) -> None:
        self.known.discard(name)
        self.now -= size


def flops(work: Callable[[], object]) -> int:
    """Floating-point operations of matrix products and convolutions, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes that what `work` allocates holds at one time."""
    with PeakBytes() as meter:
        work()
    return meter.peak


def seconds(
    sides: Mapping[str, Callable[[], object]], pairs: int, before: Callable[[], object] = int
) -> dict:
    """Median seconds of each side, run in turn `pairs` times after one warm-up; `before` is run ahead, untimed."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(pairs + 1):
        for name, work in sides.items():
            before()
            started = time.perf_counter()
            work()
            if turn:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def write_ratios(
    path: str | Path | None, name: str, ours: Mapping, peer: Mapping, ratio: Mapping, **more
) -> str:
    """Write what a benchmark found as JSON, if `path` says where -> the table to print."""
    found = {
        "name": name,
        "ours": ours,
        "peer": peer,
        "ratio": ratio,
        **more,
        "versions": package_versions(),
    }
    if path is not None:
        write_text_atomic(path, json.dumps(found, indent=1) + "\n")
    rows = [
        (side, key, value)
        for side in ("ours", "peer", "ratio")
        for key, value in found[side].items()
    ]
    width = max(len(key) for _, key, _ in rows)
    lines = [f"{side:5}  {key:<{width}}  {_number(value):>16}" for side, key, value in rows]
    return "\n".join([name, *lines])


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
