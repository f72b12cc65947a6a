"""Count floating-point operations and bytes, and time functions in turns.

Counts are the same on every machine and in every run, so that a ratio of two counts is reliable. Times are medians of
interleaved runs, so that other load on the machine affects all sides alike.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from torch.utils.flop_counter import FlopCounterMode

from cir_cot.files import write_text_atomic
from cir_cot.provenance import package_versions


def flops(work: Callable[[], object]) -> int:
    """Count the floating-point operations of matrix products and convolutions, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


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
