"""Checkpoints that survive a crash at any moment: written aside, brought to the disk, marked, then named.

A checkpoint is written to `.saving/checkpoint-N`. Once everything in it has reached the disk (fsync) it gets
`complete.json`, and only then the name `checkpoint-N`. A run that dies in between loses that save alone; the unnamed
folder that it leaves is deleted when training starts again. Older checkpoints are deleted last.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from .records import InputError, write_text_atomic

COMPLETE, SAVING, PREFIX = "complete.json", ".saving", "checkpoint"

logger = logging.getLogger(__name__)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(run: Path, name: str, facts: Mapping | None) -> None:
    """Give the finished checkpoint `name` in the run's `.saving` its place, with `facts` as its complete.json.

    Without facts it gets none: nothing can be resumed from it, as when weights alone are saved.
    """
    written, place = run / SAVING / name, run / name
    for path in (*written.rglob("*"), written):
        sync(path)
    if facts is not None:
        write_text_atomic(written / COMPLETE, json.dumps(facts))
        sync(written)
    if place.exists():  # a run that went on from an older checkpoint comes by here once more
        place.rename(run / SAVING / "replaced")
    written.rename(place)
    sync(run)
    shutil.rmtree(run / SAVING)


@contextmanager
def whole(head: nn.Module, weights: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Within it a head whose weights are sharded has the gathered ones: it saves them as any head does."""
    kept = []
    for name, module in head.named_modules() if weights else ():
        for key, value in module._parameters.items():
            if value is not None and (full := weights.get(f"{name}.{key}" if name else key)) is not None:
                kept.append((module, key, value))
                module._parameters[key] = nn.Parameter(full, requires_grad=False)
    try:
        yield
    finally:
        for module, key, value in kept:
            module._parameters[key] = value


def latest_checkpoint(folder: str | Path) -> str | None:
    """The newest complete checkpoint of a run folder; one that is not complete is passed over with a warning."""
    checkpoints = [path for path in Path(folder).glob(f"{PREFIX}-*") if path.is_dir()]
    for path in sorted(checkpoints, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        if (path / COMPLETE).is_file():
            return str(path)
        logger.warning("%s is not complete: the run ended while it was written; taking an older one", path)
    return None


def check_resumable(folder: Path, facts: Mapping) -> None:
    """InputError when `folder` is no complete checkpoint, or a run with `facts` would go another way from it."""
    if not (folder / COMPLETE).is_file():
        raise InputError(f"{folder}: no complete checkpoint (no {COMPLETE}); resume from another, or 'last'")
    was = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
    for name, value in facts.items():
        if was.get(name) != value:
            raise InputError(
                f"{folder}: was made with {name} {was.get(name)}, this run has {value}: it would not go on as it "
                f"began; use {was.get(name)}, or start a new run from its weights with --model"
            )
