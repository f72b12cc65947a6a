"""Write checkpoints that survive a crash at any moment: saved aside, synced, marked, then renamed.

A checkpoint is written to `.saving/checkpoint-N`. Once all of it has reached the disk (fsync), it
gets `complete.json`, and only then the name `checkpoint-N`. A run that is killed in between loses
that save alone; the unnamed folder that it leaves is deleted when training starts again. Older
checkpoints are deleted last, by step number and not by any clock; one that is to be deleted loses
its name before its first file. `complete.json` lists every file with its size, so a checkpoint that
lost some is not resumed from.
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

COMPLETE = "complete.json"
SAVING = ".saving"
PREFIX = "checkpoint"
# Keys of complete.json beside those that decide the order of rows.
FILES = "files"
RUN = "run"
NAME = re.compile(rf"{PREFIX}-(\d+)")

logger = logging.getLogger(__name__)


def commit_checkpoint(run: Path, name: str, facts: Mapping | None) -> None:
    """Move the finished checkpoint `name` from the run's `.saving` to its place.

    Args:
        facts: content of its complete.json; None for a checkpoint that cannot be resumed from,
            because only weights were saved.
    """
    written = run / SAVING / name
    place = run / name
    # List the files with their sizes, to notice later that one is missing or truncated.
    files = {}
    for path in written.rglob("*"):
        if path.is_file():
            files[str(path.relative_to(written))] = path.stat().st_size
    # Everything reaches the disk before the marker, and the marker before the name.
    for path in (*written.rglob("*"), written):
        sync(path)
    if facts is not None:
        write_text_atomic(written / COMPLETE, json.dumps({**facts, FILES: files}))
        sync(written)
    if place.exists():  # a run that continues from an older checkpoint saves this step again
        place.rename(run / SAVING / "replaced")
    written.rename(place)
    sync(run)
    # Only the checkpoint that was replaced is left in there.
    shutil.rmtree(run / SAVING)


def checkpoints(run: Path) -> dict[int, Path]:
    """Return the checkpoint folders of a run by step, ascending; other names are ignored."""
    found = {}
    for path in run.glob(f"{PREFIX}-*"):
        if match := NAME.fullmatch(path.name):
            found[int(match[1])] = path
    return {step: found[step] for step in sorted(found) if found[step].is_dir()}


def rotate(run: Path, limit: int | None, step: int, best: int = 0) -> None:
    """Delete checkpoints beyond `limit`, but never that of `step`, which was saved just now, or of `best`.

    Those above `step` were saved before the run resumed from an older one: they are deleted first,
    then the oldest.
    """
    if limit is None or limit < 1:
        return
    found = checkpoints(run)
    # A step above `step` sorts first: its training was abandoned.
    oldest_first = sorted(found, key=lambda number: (number <= step, number))
    discard(run, [found[number] for number in oldest_first[:-limit] if number != best])


def discard(run: Path, folders: Sequence[Path]) -> None:
    """Delete checkpoints so that a crash never leaves one partly deleted under its name."""
    aside = run / SAVING
    for folder in folders:
        # The name is gone on the disk before the first file is.
        aside.mkdir(exist_ok=True)
        folder.rename(aside / folder.name)
        sync(run)
        shutil.rmtree(aside)


@contextmanager
def gathered_weights(head: nn.Module, weights: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Give a sharded head its gathered weights within a `with` block, so that it saves as usual.

    Args:
        weights: full tensors by parameter name; None for a head that is not sharded.
    """
    gathered = weights or {}
    sharded = []  # what to restore at the end
    # Exchange each sharded parameter for the full tensor of its name.
    for name, module in head.named_modules():
        for key, value in module._parameters.items():
            full = gathered.get(f"{name}.{key}" if name else key)
            if value is not None and full is not None:
                sharded.append((module, key, value))
                module._parameters[key] = nn.Parameter(full, requires_grad=False)
    try:
        yield
    finally:
        for module, key, value in sharded:
            module._parameters[key] = value


def latest_checkpoint(folder: str | Path) -> str | None:
    """Return the newest complete checkpoint of a run folder; warn about incomplete ones."""
    for path in reversed(checkpoints(Path(folder)).values()):
        problem = damage(path)
        if not problem:
            return str(path)
        logger.warning("%s is not complete: %s; taking an older one", path, problem)
    return None


def damage(folder: Path) -> str:
    """Say what a checkpoint lacks by its complete.json, "" for nothing; older ones list no files."""
    if not (folder / COMPLETE).is_file():
        return f"it has no {COMPLETE}: the run ended while it was written"
    try:
        files = _facts(folder).get(FILES, {})
    except InputError as error:
        return str(error)
    # Every listed file must be there, in full.
    for name, size in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, {size} were written"
    return ""


def _facts(folder: Path) -> dict:
    """Read complete.json; InputError when it is damaged."""
    facts = read_json(folder / COMPLETE)
    if not isinstance(facts, dict) or not isinstance(facts.get(FILES, {}), dict):
        raise InputError(f"{folder / COMPLETE}: not what training writes")
    return facts


def check_resumable(folder: Path, facts: Mapping) -> None:
    """Raise InputError when a run with `facts` cannot resume exactly from a checkpoint.

    Args:
        facts: what decides the order of rows and their features, as in complete.json.
    """
    problem = damage(folder)
    if problem:
        raise InputError(
            f"{folder}: no complete checkpoint: {problem}; resume from another, or 'last'"
        )
    # The order of rows must be the same.
    was = _facts(folder)
    for name, value in facts.items():
        if was.get(name) != value:
            raise InputError(
                f"{folder}: cannot resume: the checkpoint used {name}={was.get(name)}, this run "
                f"uses {name}={value}, which changes the data order. Use {was.get(name)}, or start "
                "a new run with --model"
            )


def check_same_run(folder: Path, identity: Mapping) -> None:
    """Raise InputError when a checkpoint is of a run with other arguments or rows.

    A checkpoint of an earlier version does not name its run, and passes.

    Args:
        identity: of this run, see `cir_cot.training.run_folder.identity`.
    """
    was = _facts(folder).get(RUN)
    if not isinstance(was, dict):
        return
    # Name the first difference.
    for name, value in identity.items():
        if was.get(name) != value:
            raise InputError(
                f"{folder}: is of a run with {name} {was.get(name)!r}, this one has {value!r}; "
                "'last' continues the same run only: give its arguments, another --output_dir, or "
                "name the checkpoint to resume from"
            )
