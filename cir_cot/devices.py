"""Choose the device that a model runs on, and measure its memory."""

import os
import platform
import resource
import sys

import torch

from .errors import InputError

MIB = 2**20


def pick_device(name: str | None = None) -> torch.device:
    """Return the device of a name, e.g. "cuda:1"; without a name a GPU if there is one, else the CPU.

    Raises:
        InputError: this machine has no device of that name; the message lists those it has.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # for messages
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    known = ", ".join(["cpu", *gpus])
    try:
        # torch knows which names are possible, not which exist
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device {name!r}: no device has this name; here are {known}") from error
    if not _exists(device):
        raise InputError(f"device {name!r}: not on this machine; here are {known}")
    return device


def fast_dtype(device: torch.device) -> str:
    """Return the precision to evaluate a large model in: bfloat16 on a GPU that computes in it, else float32."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bfloat16"
    return "float32"


def _exists(device: torch.device) -> bool:
    """Return whether this machine has a device."""
    if device.type == "cuda":
        return (device.index or 0) < torch.cuda.device_count()
    if device.type == "mps":
        return torch.backends.mps.is_available()
    return device.type == "cpu"


def device_name(device: torch.device) -> str:
    """Return the GPU's name, or the processor's architecture and number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {platform.machine()}, {os.cpu_count()} cores, {sys.platform}"


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory of this process in MiB: torch's on a GPU, else the resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    unit = 1 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a GPU, or of this machine, in bytes."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    return os.sysconf("SC_AVPHYS_PAGES") * resource.getpagesize()
