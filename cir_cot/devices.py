"""Where a model runs: the device that a user names, or a GPU where there is one."""

import os
import platform
import resource
import sys

import torch

from .errors import InputError


def pick_device(name: str | None = None) -> torch.device:
    """Return the device `name`, e.g. "cuda:1" or "cpu"; InputError when this machine has none of that name.

    Without a name: a GPU where there is one, else the CPU.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    known = ", ".join(["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))])
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device {name!r}: no device is named so; here are {known}") from error
    here = device.type == "cpu" or (
        device.type == "cuda" and (device.index or 0) < torch.cuda.device_count()
    )
    others = device.type == "mps" and torch.backends.mps.is_available()
    if not here and not others:
        raise InputError(f"device {name!r}: not on this machine; here are {known}")
    return device


def device_name(device: torch.device) -> str:
    """What computes, in words: the GPU's name, or the processor's architecture and core count."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {platform.machine()}, {os.cpu_count()} cores, {sys.platform}"


def peak_memory_mb(device: torch.device) -> float:
    """Most memory this process ever held: on a GPU what torch allocated, else the resident set, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def free_bytes(device: torch.device) -> int:
    """Memory that is free now, on the device or on this machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * resource.getpagesize()
