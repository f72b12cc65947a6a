"""Where a model runs: the device that a user names, or a GPU where there is one."""

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
    here = device.type == "cpu" or (device.type == "cuda" and (device.index or 0) < torch.cuda.device_count())
    others = device.type == "mps" and torch.backends.mps.is_available()
    if not here and not others:
        raise InputError(f"device {name!r}: not on this machine; here are {known}")
    return device
