"""Checkpoints that survive a crash at any moment: written aside, brought to the disk, marked, then named.

A checkpoint is written to `.saving/checkpoint-N`. Once everything in it has reached the disk (fsync) it gets
`complete.json`, and only then the name `checkpoint-N`. A run that dies in between loses that save alone; the unnamed
folder that it leaves is deleted when training starts again. Older checkpoints are deleted last, by step number and not
by any clock; one that is to be deleted loses its name before its first file. `complete.json` lists every file with its
size, so a checkpoint that lost some is not resumed from.
"""

import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from cir_cot.errors import InputError
from cir_cot.files import read_json, sync, write_text_atomic

COMPLETE, SAVING, PREFIX = "complete.json", ".saving", "checkpoint"
FILES, RUN = "files", "run"  # keys of complete.json beside those that decide the order of rows
NAME = re.compile(rf"{PREFIX}-(\d+)")

logger = logging.getLogger(__name__)


def publish(run: Path, name: str, facts: Mapping | None) -> None:
    """Give the finished checkpoint `name` in the run's `.saving` its place, with `facts` as its complete.json.

    Without facts it gets none: nothing can be resumed from it, as when weights alone are saved.
    """
    written, place = run / SAVING / name, run / name
    files = {
        str(path.relative_to(written)): path.stat().st_size
        for path in written.rglob("*")
        if path.is_file()
    }
    for path in (*written.rglob("*"), written):
        sync(path)
    if facts is not None:
        write_text_atomic(written / COMPLETE, json.dumps({**facts, FILES: files}))
        sync(written)
    if place.exists():  # a run that went on from an older checkpoint comes by here once more
        place.rename(run / SAVING / "replaced")
    written.rename(place)
    sync(run)
    shutil.rmtree(run / SAVING)


def checkpoints(run: Path) -> dict[int, Path]:
    """Return the checkpoint folders of a run by step, ascending; folders of any other name are not looked at."""
    found = {
        int(match[1]): path
        for path in run.glob(f"{PREFIX}-*")
        if (match := NAME.fullmatch(path.name))
    }
    return {step: found[step] for step in sorted(found) if found[step].is_dir()}


def rotate(run: Path, limit: int | None, step: int) -> None:
    """Delete checkpoints beyond `limit`, never that of `step`, which was saved just now.

    Those above `step` are of a course that the run has left: they go first, then the oldest.
    """
    if limit is None or limit < 1:
        return
    found = checkpoints(run)
    oldest_first = sorted(found, key=lambda number: (number <= step, number))
    discard(run, [found[number] for number in oldest_first[:-limit]])


def discard(run: Path, folders: Sequence[Path]) -> None:
    """Delete checkpoints such that a crash leaves none half deleted under its name."""
    aside = run / SAVING
    for folder in folders:
        aside.mkdir(exist_ok=True)
        folder.rename(aside / folder.name)
        sync(run)
        shutil.rmtree(aside)


@contextmanager
def whole(head: nn.Module, weights: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Within it a head whose weights are sharded has the gathered ones: it saves them as any head does."""
    kept = []
    for name, module in head.named_modules() if weights else ():
        for key, value in module._parameters.items():
            if (
                value is not None
                and (full := weights.get(f"{name}.{key}" if name else key)) is not None
            ):
                kept.append((module, key, value))
                module._parameters[key] = nn.Parameter(full, requires_grad=False)
    try:
        yield
    finally:
        for module, key, value in kept:
            module._parameters[key] = value


def latest_checkpoint(folder: str | Path) -> str | None:
    """The newest complete checkpoint of a run folder; one that is not complete is passed over with a warning."""
    for path in reversed(checkpoints(Path(folder)).values()):
        if not (problem := damage(path)):
            return str(path)
        logger.warning("%s is not complete: %s; taking an older one", path, problem)
    return None


def damage(folder: Path) -> str:
    """Say what a checkpoint lacks, by its complete.json; "" when it is whole. Older ones list no files."""
    if not (folder / COMPLETE).is_file():
        return f"it has no {COMPLETE}: the run ended while it was written"
    try:
        files = _facts(folder).get(FILES, {})
    except InputError as error:
        return str(error)
    for name, size in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, {size} were written"
    return ""


def _facts(folder: Path) -> dict:
    """Return the content of complete.json; InputError when it is damaged."""
    facts = read_json(folder / COMPLETE)
    if not isinstance(facts, dict) or not isinstance(facts.get(FILES, {}), dict):
        raise InputError(f"{folder / COMPLETE}: not what training writes")
    return facts


def check_resumable(folder: Path, facts: Mapping) -> None:
    """InputError when `folder` is no complete checkpoint, or a run with `facts` would go another way from it."""
    if problem := damage(folder):
        raise InputError(
            f"{folder}: no complete checkpoint: {problem}; resume from another, or 'last'"
        )
    was = _facts(folder)
    for name, value in facts.items():
        if was.get(name) != value:
            raise InputError(
                f"{folder}: was made with {name} {was.get(name)}, this run has {value}: it would not go on as it "
                f"began; use {was.get(name)}, or start a new run from its weights with --model"
            )


def check_same_run(folder: Path, identity: Mapping) -> None:
    """InputError when the checkpoint that 'last' found is of a run with other arguments or rows.

    A checkpoint of an earlier version does not say of which run it is, and passes.
    """
    was = _facts(folder).get(RUN)
    if not isinstance(was, dict):
        return
    for name, value in identity.items():
        if was.get(name) != value:
            raise InputError(
                f"{folder}: is of a run with {name} {was.get(name)!r}, this one has {value!r}; 'last' continues the "
                "same run only: give its arguments, another --output_dir, or name the checkpoint to resume from"
            )
