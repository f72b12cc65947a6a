"""Measure a device: its peak rates, its kernels and their time, and where the host waits for it.

Everything works on a CPU as well, where operators stand in for kernels and the host never waits.
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

# Kinds of kernels, by the first pattern that matches the kernel's name.
KINDS = {
    "attention": "flash|fmha|attention|sdpa|softmax_warp",
    "matrix products": "gemm|nvjet|cutlass|xmma|gemv|splitk|cublas|addmm|aten::mm|aten::bmm|conv",
    "copies": "copy|memcpy|memset|cat",
}
SHOWN = 12  # kernels that are listed by name
WAITED = "called a synchronizing"  # in torch's warning about an operation that waits for the device


def wait(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Time `work` and everything that the device does for it -> seconds."""
    wait(device)
    started = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - started


def measure_card(device: torch.device) -> Card:
    """Measure the rates of a large bfloat16 matrix product and of a large copy, the best of ten each."""
    large = device.type == "cuda"
    # A product of two square matrices takes 2 side^3 operations.
    side = 8192 if large else 512
    a, b = torch.randn(2, side, side, device=device, dtype=torch.bfloat16)
    product = min(timed(lambda: a @ b, device) for _ in range(10))
    # A copy reads and writes every byte.
    source = torch.ones(2**30 if large else 2**22, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    copy = min(timed(lambda: target.copy_(source), device) for _ in range(10))
    return Card(2 * side**3 / product, 2 * source.nbytes / copy)


def forget_peak(device: torch.device) -> None:
    """Reset the peak of allocated memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


@contextmanager
def count_waits(device: torch.device) -> Iterator[Counter]:
    """Within it, count how often the host waits for the device, by the line of code where it waits.

    torch warns at each operation that waits; the warnings are collected, and none is shown.
    """
    places: Counter = Counter()
    if device.type != "cuda":
        yield places
        return
    # Turn the warnings on, and back to what they were.
    before = torch.cuda.get_sync_debug_mode()
    # "always": a repeated warning would otherwise be shown once.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode(before)
            for warning in caught:
                if WAITED in str(warning.message):
                    file = "/".join(Path(warning.filename).parts[-2:])
                    places[f"{file}:{warning.lineno}"] += 1


@contextmanager
def trace(device: torch.device) -> Iterator[dict]:
    """Within it, record kernels; afterwards the dictionary holds the result of `summarise`.

    Recording makes the host slower.
    """
    found: dict = {}
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as recorder:
        # Work that was queued before is not recorded, work that is queued within is.
        wait(device)
        started = time.perf_counter()
        yield found
        wait(device)
        seconds = time.perf_counter() - started
    # The profiler gives its events only by way of a file.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorder.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    found.update(summarise(events, seconds))


def summarise(events: list[dict], seconds: float) -> dict:
    """Count and time the kernels among a trace's events.

    Args:
        events: Of torch's profiler, in Chrome's trace format; durations are microseconds.
        seconds: Wall-clock time of the trace.

    Returns:
        Number and seconds of kernels, in total, by kind, and of the longest by name; `busy` is the share of the time
        during which a kernel ran.
    """
    kernels = [
        event
        for event in events
        if event.get("cat") in ("kernel", "cpu_op", "gpu_memcpy", "gpu_memset")
    ]
    # Add up by name and by kind; an event without a duration is a marker.
    times: Counter = Counter()
    counts: Counter = Counter()
    kinds: dict[str, dict] = {}
    for event in kernels:
        name = event["name"]
        took = event.get("dur", 0) / 1e6
        times[name] += took
        counts[name] += 1
        kind = kinds.setdefault(kind_of(name), {"count": 0, "seconds": 0.0})
        kind["count"] += 1
        kind["seconds"] += took
    return {
        "kernels": len(kernels),
        "kernel_seconds": sum(times.values()),
        "seconds": seconds,
        "busy": sum(times.values()) / seconds,
        "kinds": kinds,
        "longest": [
            {"name": name[:120], "count": counts[name], "seconds": took}
            for name, took in times.most_common(SHOWN)
        ],
    }


def kind_of(name: str) -> str:
    """Return the kind of a kernel by its name; what no pattern of KINDS matches is mostly elementwise."""
    found = (kind for kind, pattern in KINDS.items() if re.search(pattern, name.lower()))
    return next(found, "elementwise and others")


class StepWatch(TrainerCallback):
    """Time the optimizer steps of a Trainer, without data loading, with the optimizer.

    Args:
        device: Of the model.
        warm: Number of first steps that are not timed. The first of them counts the host's `waits`.
        recorded: Index of a step whose `kernels` are recorded instead of being timed.

    Peak memory is that of the steps after the first `warm` ones.
    """

    def __init__(self, device: torch.device, warm: int = 1, recorded: int | None = None):
        self.device = device
        self.warm = warm
        self.recorded = recorded
        self.seconds: list[float] = []
        self.waits: Counter = Counter()
        self.kernels: dict = {}
        self.open = ExitStack()
        self.started = 0.0

    def on_step_begin(self, args, state, control, **options):
        """Start counting, recording or timing; `global_step` is the number of finished steps."""
        wait(self.device)
        # The peak is that of steady steps.
        if state.global_step == self.warm:
            forget_peak(self.device)
        if state.global_step == 0:
            self.waits = self.open.enter_context(count_waits(self.device))
        if state.global_step == self.recorded:
            self.kernels = self.open.enter_context(trace(self.device))
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, **options):
        """Stop, and keep the seconds of a step that was only timed; `global_step` includes this step."""
        wait(self.device)
        seconds = time.perf_counter() - self.started
        self.open.close()
        # Counting and recording slow a step down.
        if state.global_step > self.warm and state.global_step - 1 != self.recorded:
            self.seconds.append(seconds)
