"""Examine an installation: versions against setup.cfg, torch beside torchvision, accelerators, disk and caches."""

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal, NamedTuple

from packaging.requirements import Requirement

from . import __version__

GIB = 2**30
# What a run writes at least: a 7B adapter's checkpoints with their optimizer.
ROOM = 10 * GIB
# Extras whose absence is worth a word, and what they are for.
EXTRAS = {
    "deepspeed": "ZeRO on several GPUs",
    "bitsandbytes": "4- and 8-bit bases (--quantization)",
    "flash_attn": "flash attention (--attn flash_attention_2)",
    "gradio": "the web page (cir-cot demo)",
    "qdrant_client": "indexes in Qdrant (--kind qdrant:...)",
}


class Finding(NamedTuple):
    """One thing that was examined."""

    what: str
    state: Literal["ok", "note", "problem"]
    text: str


def examine() -> list[Finding]:
    """Return what was found, in the order in which it is read; nothing is changed, nothing is downloaded."""
    checks: tuple[Callable[[], list[Finding]], ...] = (
        _python,
        _packages,
        _torch,
        _extras,
        _disk,
        _hub,
    )
    findings = []
    for check in checks:
        findings += check()
    return findings


def _python() -> list[Finding]:
    name = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    threads = os.cpu_count()
    return [Finding("system", "ok", f"cir-cot {__version__}, {name}, {threads} processors")]


def _packages() -> list[Finding]:
    """Compare the installed versions with what the package asks for."""
    problems = []
    right = 0
    for text in requires("cir-cot") or ():
        asked = Requirement(text)
        if asked.marker is not None and not asked.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(asked.name)
        except PackageNotFoundError:
            problems.append(f"{asked.name} is not installed")
            continue
        if asked.specifier.contains(found, prereleases=True):
            right += 1
        else:
            problems.append(f"{asked.name} {found}, but {asked.specifier} is needed")
    if problems:
        cure = "; install again: pip install -c constraints.txt ."
        return [Finding("packages", "problem", ", ".join(problems) + cure)]
    return [Finding("packages", "ok", f"{right} packages as setup.cfg asks for them")]


def _torch() -> list[Finding]:
    """Name the torch build, the accelerators, and whether torchvision belongs to it."""
    import torch

    from .compat import torchvision_build

    found = []
    build = torchvision_build()
    cuda = torch.version.cuda
    # A CUDA build of torchvision beside a CPU torch is helped by `compat`; the reverse is not.
    if not build:
        text = "not installed: no Qwen processor works; pip install torchvision"
        found.append(Finding("torchvision", "problem", text))
    elif cuda and "+cpu" in build:
        text = f"{build} is a CPU build beside torch {torch.__version__}; install the one for CUDA {cuda}"
        found.append(Finding("torchvision", "problem", text))
    else:
        found.append(Finding("torchvision", "ok", f"{build} beside torch {torch.__version__}"))
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            found.append(_gpu(number))
    elif cuda:
        text = (
            f"torch is built for CUDA {cuda}, but no GPU answers: check the driver with nvidia-smi"
        )
        found.append(Finding("accelerator", "problem", text))
    elif torch.accelerator.is_available():
        found.append(Finding("accelerator", "ok", str(torch.accelerator.current_accelerator())))
    else:
        text = "none: everything runs on the CPU; the quickstart and small galleries do"
        found.append(Finding("accelerator", "note", text))
    return found


def _gpu(number: int) -> Finding:
    """Describe a GPU, its free memory and whether it computes in bfloat16."""
    import torch

    name = torch.cuda.get_device_name(number)
    free, total = torch.cuda.mem_get_info(number)
    text = f"{name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if torch.cuda.get_device_capability(number) < (8, 0):
        return Finding(f"GPU {number}", "note", f"{text}; no bfloat16: give --dtype float16")
    return Finding(f"GPU {number}", "ok", text)


def _extras() -> list[Finding]:
    from importlib.util import find_spec

    found = []
    for module, use in EXTRAS.items():
        there = find_spec(module) is not None
        text = use if there else f"not installed; only for {use}"
        found.append(Finding(module, "ok" if there else "note", text))
    return found


def _disk() -> list[Finding]:
    """Tell the room where runs, temporary files and the hub's cache are."""
    places = {
        "this folder": Path.cwd(),
        "temporary files": Path(tempfile.gettempdir()),
        "hub cache": _existing(_hub_cache()),
    }
    found = []
    for what, path in places.items():
        free = shutil.disk_usage(path).free
        text = f"{free / GIB:.0f} GiB free"
        if not os.access(path, os.W_OK):
            found.append(Finding(what, "problem", f"{path} cannot be written"))
        elif free < ROOM:
            found.append(Finding(what, "note", f"{text}; a run at full size may need more"))
        else:
            found.append(Finding(what, "ok", text))
    return found


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _existing(path: Path) -> Path:
    """Return the first folder above a path that is there."""
    while not path.is_dir():
        path = path.parent
    return path


def _hub() -> list[Finding]:
    """Tell which checkpoints are in the cache, and whether the hub may be asked."""
    cached = sorted(path.name for path in _hub_cache().glob("models--*"))
    names = ", ".join(name.removeprefix("models--").replace("--", "/") for name in cached[:5])
    more = f" and {len(cached) - 5} more" if len(cached) > 5 else ""
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    text = f"checkpoints in the cache: {names or 'none'}{more}"
    found = [Finding("hub", "ok", text + ("; HF_HUB_OFFLINE is set" if offline else ""))]
    if sys.stdin is not None and not os.environ.get("HF_TOKEN") and not offline:
        found.append(
            Finding("token", "note", "HF_TOKEN is not set: gated checkpoints cannot be loaded")
        )
    return found
