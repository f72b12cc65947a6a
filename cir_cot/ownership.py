"""Record which files of a folder a command wrote, so that it replaces those and no others.

A folder's `.cir-cot.json` lists the files that each command wrote there, each with a digest. A file
that is not listed, or whose content has changed since, belongs to the user. A digest of null means
that the command may replace the file whatever it contains: either the command was stopped while
writing it, or the file is one of too many to read (images).
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError
from .files import read_json, write_text_atomic

MANIFEST = ".cir-cot.json"
Manifest = dict[str, dict[str, str | None]]  # {command: {file name: digest or null}}
Recognise = Callable[[Path], bool]  # tells whether a file is one of an earlier version's


def never(path: Path) -> bool:
    """Recognise no file: every earlier version of the command has written a manifest."""
    return False


@contextmanager
def writing(
    folder: Path,
    command: str,
    names: Collection[str],
    overwrite: bool = False,
    unread: Collection[str] = (),
    stale: Collection[str] = (),
    recognise: Recognise = never,
) -> Iterator[None]:
    """Let a command write files into an existing folder, and list them in its manifest.

    The files are listed twice: without digests before the block, so that a run that is stopped
    finds its own files again, and with digests after it.

    Args:
        folder: the folder, which must exist.
        command: the key under which the manifest lists the files.
        names: files that the block writes, as paths relative to the folder.
        overwrite: replace files that the command did not write, too.
        unread: more files that the block writes, listed without a digest.
        stale: files that an earlier run may have left. Those that the command wrote are removed
            before the block, in the given order.
        recognise: tells whether a file was written by a version of the command that kept no
            manifest. It is asked only where the folder has no list of the command.

    Raises:
        InputError: one of the files exists and the command did not write it, or it was edited
            since.

    Example:
        >>> with writing(root, "triplets", ["records.val.jsonl"]):
        ...     write_records(root / "records.val.jsonl", records)
    """
    # refuse before anything changes
    check_replaceable(folder, command, (*names, *unread, *stale), overwrite, recognise)
    content = read_manifest(folder)
    old = [name for name in stale if is_own(folder, command, name, content, recognise)]

    # list the files before anything changes: a run that is stopped can then be repeated
    listed = content.setdefault(command, {})
    listed |= dict.fromkeys((*names, *unread, *old))
    write_manifest(folder, content)
    # remove what an earlier run left
    for name in old:
        (folder / name).unlink(missing_ok=True)
    yield

    # read the manifest again, since the block may have listed other files
    content = read_manifest(folder)
    listed = content.setdefault(command, {})
    # drop what was removed, then list what was written with its digest
    for name in stale:
        listed.pop(name, None)
    for name in names:
        listed[name] = digest(folder / name)
    write_manifest(folder, content)


def check_replaceable(
    folder: Path,
    command: str,
    names: Collection[str],
    overwrite: bool = False,
    recognise: Recognise = never,
) -> None:
    """Refuse files that exist and were not written by the command; to be called before long work.

    `writing` explains the arguments. The folder need not exist.
    """
    # a file in place of the folder
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; --out names a folder")
    if overwrite:
        return
    content = read_manifest(folder)
    for name in names:
        path = folder / name
        # a link that leads nowhere is a file of the user, too
        exists = path.exists() or path.is_symlink()
        if exists and not is_own(folder, command, name, content, recognise):
            raise InputError(
                f"{path}: not written by this command, or edited since; give another folder, or --overwrite"
            )


def is_own(
    folder: Path, command: str, name: str, content: Manifest, recognise: Recognise = never
) -> bool:
    """Return whether the command wrote the file `name` of a folder and nobody changed it since."""
    path = folder / name
    # no list: perhaps an earlier version of the command wrote the file
    if command not in content:
        return path.is_file() and recognise(path)
    listed = content[command]
    if name not in listed:
        return False
    return listed[name] is None or listed[name] == digest(path)


def read_manifest(folder: Path) -> Manifest:
    """Return {command: {file: digest}} of a folder, empty where there is no manifest."""
    path = folder / MANIFEST
    if not path.exists():
        return {}
    content = read_json(path)
    # a damaged list may not pass for an empty one
    valid = isinstance(content, dict) and all(isinstance(files, dict) for files in content.values())
    if not isinstance(content, dict) or not valid:
        raise InputError(
            f"{path}: not a list of files by command; remove it and give --overwrite to write anew"
        )
    return content


def write_manifest(folder: Path, content: Manifest) -> None:
    """Write {command: {file: digest}} of a folder."""
    write_text_atomic(folder / MANIFEST, json.dumps(content, indent=0, ensure_ascii=False) + "\n")


def digest(path: Path) -> str | None:
    """Return the SHA-256 of a file's content in hexadecimal, or None if it does not exist."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
