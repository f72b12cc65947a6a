"""Which files of a folder a command wrote itself, so that it replaces those and refuses to touch a user's.

A folder's `.cir-cot.json` lists, by command, the files that it wrote, each with a digest: a file that was there before,
or has been edited since, is the user's. A digest of null says that the command may replace the file whatever is in it:
it was being written when the command was stopped, or it is one of too many to be read (pictures).
"""

import hashlib
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError
from .files import read_json, write_text_atomic

MANIFEST = ".cir-cot.json"


@contextmanager
def writing(
    folder: Path,
    command: str,
    names: Collection[str],
    overwrite: bool = False,
    unread: Collection[str] = (),
) -> Iterator[None]:
    """Let a command write files into a folder, which must exist; InputError where one of them is not its own.

    Args:
        names: files that will be written, as paths from the folder.
        overwrite: replace foreign files, too.
        unread: more files, which are known by their names alone.

    Example: `with writing(root, "triplets", ["records.val.jsonl"]): write_records(root / "records.val.jsonl", records)`
    """
    content = read_manifest(folder)
    known = content.setdefault(command, {})

    # refuse before anything is written
    for name in (*names, *unread):
        path = folder / name
        own = name in known and known[name] in (None, digest(path))
        if not (overwrite or own) and (path.exists() or path.is_symlink()):
            raise InputError(
                f"{path}: not written by cir-cot {command}, or edited since; give another folder, or --overwrite"
            )

    # list the files first, so that those of a run that is stopped are known to be its own
    known |= dict.fromkeys((*names, *unread))
    write_manifest(folder, content)
    yield
    known |= {name: digest(folder / name) for name in names}
    write_manifest(folder, content)


def read_manifest(folder: Path) -> dict[str, dict[str, str | None]]:
    """Return {command: {file: digest}} of a folder, empty where there is no manifest."""
    path = folder / MANIFEST
    if not path.exists():
        return {}
    content = read_json(path)
    if not isinstance(content, dict) or not all(
        isinstance(files, dict) for files in content.values()
    ):
        raise InputError(
            f"{path}: no list of files by command; remove it and give --overwrite to write anew"
        )
    return content


def write_manifest(folder: Path, content: dict) -> None:
    """Write {command: {file: digest}} of a folder."""
    write_text_atomic(folder / MANIFEST, json.dumps(content, indent=0, ensure_ascii=False) + "\n")


def digest(path: Path) -> str | None:
    """Return a digest of a file's content, None where there is no such file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
