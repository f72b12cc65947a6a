"""Folders of results: which files a command wrote there, so that it replaces those and no others.

They are listed in the folder's manifest (`cir_cot.ownership`). Beside what that module does, files that an earlier run
wrote and this one may not write again are removed, and folders of earlier versions, which have no list, are recognised:
a file is ours there if results.json says that it is such a folder and the file has the form that was written.
"""

import gzip
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from .errors import InputError
from .files import read_json
from .ownership import digest, read_manifest, write_manifest

COMMAND, RESULTS = "results", "results.json"
CHAIN_KEYS = {"id", "explanation", "flag"}


def check(folder: str | Path, names: Iterable[str], overwrite: bool = False) -> None:
    """Refuse to replace a file below `folder` that no earlier run wrote there; asked before hours of work, too."""
    if Path(folder).exists() and not Path(folder).is_dir():
        raise InputError(f"{folder} is a file; --out names a folder")
    for name in () if overwrite else names:
        path = Path(folder) / name
        if path.exists() and not is_ours(path):
            raise InputError(
                f"{path}: not written by this command, or changed since, and would be replaced; give another --out, "
                "or --overwrite"
            )


def claim(folder: str | Path, names: Sequence[str], overwrite: bool = False) -> None:
    """Remove what an earlier run wrote under `names`, in their order, and list them as files to be written."""
    folder = Path(folder)
    check(folder, names, overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    ours = [folder / name for name in names if is_ours(folder / name)]
    _list(
        folder, dict.fromkeys(names)
    )  # before the first is removed: a run that dies in between finds its own again
    for path in ours:
        path.unlink(missing_ok=True)


def finish(folder: str | Path, names: Sequence[str], done: Sequence[str]) -> None:
    """List those of `names` that were written, `done`, with their digests."""
    _list(Path(folder), {name: digest(Path(folder) / name) for name in done}, names)


def is_ours(path: Path) -> bool:
    """Whether a run of this project wrote the file, and nobody changed it."""
    if not path.is_file():
        return False
    files = read_manifest(path.parent).get(COMMAND)
    if files is None:
        return _is_of_an_earlier_version(path)
    return path.name in files and files[path.name] in (None, digest(path))


def _list(folder: Path, files: dict, without: Sequence[str] = ()) -> None:
    """Add files to a folder's list, and take names from it."""
    content = read_manifest(folder)
    kept = {name: value for name, value in content.get(COMMAND, {}).items() if name not in without}
    write_manifest(folder, content | {COMMAND: kept | files})


def _is_of_an_earlier_version(path: Path) -> bool:
    """Recognise a file of a results folder that was written before there was a list."""
    try:
        results = read_json(path.parent / RESULTS)
        if (
            not isinstance(results, dict)
            or not {"metrics", "by_source", "protocol"} <= results.keys()
        ):
            return False
        if path.name.endswith("chains.jsonl"):
            with path.open("rb") as file:
                first = json.loads(file.readline(2**22))
            return isinstance(first, dict) and first.keys() == CHAIN_KEYS
        return path.name in (RESULTS, "report.md", "report.html") or _is_of_rankings(path)
    except ValueError:  # InputError, no JSON, no UTF-8
        return False


def _is_of_rankings(path: Path) -> bool:
    """Whether a file begins as packed JSON of rankings does."""
    try:
        with gzip.open(path) as file:
            return file.read(1) == b"{"
    except (OSError, EOFError):
        return False
