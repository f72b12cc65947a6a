"""Folders of results: which files a command wrote there, so that it replaces those and no others.

`written.json` lists them with digests. A file that is not listed, or that somebody has changed since, is not ours: a
command refuses to replace it unless it is told to. Folders of earlier versions have no list; there a file is ours if
results.json says that it is one of these folders and the file has the form that was written.
"""

import gzip
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from .files import read_json, write_text_atomic
from .records import InputError

MANIFEST, RESULTS = "written.json", "results.json"
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
    _list(folder, dict.fromkeys(names))  # before the first is removed: a run that dies in between finds its own again
    for path in ours:
        path.unlink(missing_ok=True)


def finish(folder: str | Path, names: Sequence[str], done: Sequence[str]) -> None:
    """List those of `names` that were written, `done`, with their digests."""
    _list(Path(folder), {name: digest(Path(folder) / name) for name in done}, names)


def is_ours(path: Path) -> bool:
    """Whether a run of this project wrote the file, and nobody changed it."""
    if not path.is_file():
        return False
    manifest = _read(path.parent)
    if manifest is None:
        return _is_of_an_earlier_version(path)
    return path.name in manifest and manifest[path.name] in (None, digest(path))


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(folder: Path) -> dict | None:
    """Return the list of a folder, None where there is none."""
    if not (folder / MANIFEST).is_file():
        return None
    content = read_json(folder / MANIFEST)
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        raise InputError(f"{folder / MANIFEST}: not the list that a command writes; remove it and give --overwrite")
    return content["files"]


def _list(folder: Path, files: dict, without: Sequence[str] = ()) -> None:
    """Add files to a folder's list."""
    kept = {name: value for name, value in (_read(folder) or {}).items() if name not in without}
    write_text_atomic(folder / MANIFEST, json.dumps({"files": kept | files}, indent=1) + "\n")


def _is_of_an_earlier_version(path: Path) -> bool:
    """Recognise a file of a results folder that was written before there was a list."""
    try:
        results = read_json(path.parent / RESULTS)
        if not isinstance(results, dict) or not {"metrics", "by_source", "protocol"} <= results.keys():
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
