"""What a device did: its peak rates, kernels and their time, moments at which the host waited for it.

Everything works on a CPU as well, where operators stand in for kernels and nothing is ever waited for.
"""

import json
import re
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from cir_cot import compat  # noqa: F401  # isort: skip
from transformers import TrainerCallback

from .roofline import Card

KINDS = {  # of kernels, by the first pattern that their name matches
    "attention": "flash|fmha|attention|sdpa|softmax_warp",
    "matrix products": "gemm|nvjet|cutlass|xmma|gemv|splitk|cublas|addmm|aten::mm|aten::bmm|conv",
    "copies": "copy|memcpy|memset|cat",
}
SHOWN = 12  # kernels and places that are kept by name
WAITED = "called a synchronizing"


def wait(device: torch.device) -> None:
    """Wait until the device has done all its work."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of `work` and of everything that the device does for it."""
    wait(device)
    started = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - started


def measure_card(device: torch.device) -> Card:
    """Measure the rates of a large bfloat16 matrix product and of a large copy, the best of ten each."""
    side = 8192 if device.type == "cuda" else 512
    a, b = torch.randn(2, side, side, device=device, dtype=torch.bfloat16)
    product = min(timed(lambda: a @ b, device) for _ in range(10))
    source = torch.ones(
        2**30 if device.type == "cuda" else 2**22, dtype=torch.float32, device=device
    )
    goal = torch.empty_like(source)
    copy = min(timed(lambda: goal.copy_(source), device) for _ in range(10))
    return Card(2 * side**3 / product, 2 * source.nbytes / copy)


def forget_peak(device: torch.device) -> None:
    """Count the peak of allocated memory from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


@contextmanager
def count_waits(device: torch.device) -> Iterator[Counter]:
    """Within it, count the moments at which the host waits for the device, by the line of code that makes it wait."""
    places: Counter = Counter()
    if device.type != "cuda":
        yield places
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode(before)
            for warning in caught:
                if WAITED in str(warning.message):
                    places[f"{'/'.join(Path(warning.filename).parts[-2:])}:{warning.lineno}"] += 1


@contextmanager
def trace(device: torch.device) -> Iterator[dict]:
    """Within it, record kernels; afterwards the dictionary holds their number, their seconds, and which took longest.

    `busy` is the share of the time in which a kernel ran; recording itself makes the host slower.
    """
    found: dict = {}
    with profile(
        activities=[ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU]
    ) as recorder:
        wait(device)
        started = time.perf_counter()
        yield found
        wait(device)
        seconds = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorder.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    found.update(summarise(events, seconds))


def summarise(events: list[dict], seconds: float) -> dict:
    """Return the number and seconds of the kernels among a trace's events, by kind and, for the longest, by name."""
    kernels = [
        event
        for event in events
        if event.get("cat") in ("kernel", "cpu_op", "gpu_memcpy", "gpu_memset")
    ]
    times: Counter = Counter()
    counts: Counter = Counter()
    kinds: dict[str, list[float]] = {}
    for event in kernels:
        took = event.get("dur", 0) / 1e6
        times[event["name"]] += took
        counts[event["name"]] += 1
        kind = kinds.setdefault(kind_of(event["name"]), [0, 0.0])
        kind[0] += 1
        kind[1] += took
    return {
        "kernels": len(kernels),
        "kernel_seconds": sum(times.values()),
        "seconds": seconds,
        "busy": sum(times.values()) / seconds,
        "kinds": {
            name: {"count": int(count), "seconds": took} for name, (count, took) in kinds.items()
        },
        "longest": [
            {"name": name[:120], "count": counts[name], "seconds": took}
            for name, took in times.most_common(SHOWN)
        ],
    }


def kind_of(name: str) -> str:
    """Return the kind of a kernel: the first of KINDS that its name matches, or the rest, elementwise ones mostly."""
    found = (kind for kind, pattern in KINDS.items() if re.search(pattern, name.lower()))
    return next(found, "elementwise and others")


class StepWatch(TrainerCallback):
    """Times optimizer steps of a Trainer behind the first `warm` ones: data loading left out, the optimizer included.

    The first step counts the host's `waits` instead; step `recorded`, if any, records its `kernels`. Peak memory is
    that of the steps behind the warm ones.
    """

    def __init__(self, device: torch.device, warm: int = 1, recorded: int | None = None):
        self.device, self.warm, self.recorded = device, warm, recorded
        self.seconds: list[float] = []
        self.waits: Counter = Counter()
        self.kernels: dict = {}
        self.open = ExitStack()
        self.started = 0.0

    def on_step_begin(self, args, state, control, **options):
        """Start counting, recording or timing."""
        wait(self.device)
        if state.global_step == self.warm:
            forget_peak(self.device)
        if state.global_step == 0:
            self.waits = self.open.enter_context(count_waits(self.device))
        if state.global_step == self.recorded:
            self.kernels = self.open.enter_context(trace(self.device))
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, **options):
        """Stop, and keep the seconds of a step that was only timed; `global_step` counts it already."""
        wait(self.device)
        seconds = time.perf_counter() - self.started
        self.open.close()
        if state.global_step > self.warm and state.global_step - 1 != self.recorded:
            self.seconds.append(seconds)
