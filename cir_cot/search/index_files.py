"""Save an index so that readers see either the old state or the complete new one, even after a crash.

A state N is `rows.N.jsonl`, `vectors.N.faiss` and, of an approximate kind, `near.N.faiss`; `index.json` names the N
that counts. A new state is written beside the old one under the next free number and forced to the disk; then
index.json is replaced, then the old files are removed. `.saving.json` lists the numbers of a save in progress, so that
the next process after a crash removes what it left behind, and nothing else. index.json holds a digest of each file,
which is checked when the file is read.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import faiss

from cir_cot.digests import digest_file, new_digest
from cir_cot.errors import InputError
from cir_cot.files import parse_json, read_json, sync, write_text_atomic
from cir_cot.provenance import git_state, package_versions
from cir_cot.storage import written

from .vector_store import is_bounds, is_fingerprint

FORMAT = 1  # of index.json
STORES = {"float32": "Flat", "float16": "SQfp16", "int8": "SQ8"}  # dtype -> FAISS factory string
SAVING = ".saving.json"  # the numbers of a save in progress
# What to do about every damaged file.
CURE = "restore the file, or encode the gallery into a new folder"

_FAISS_IO: Any = faiss  # for the two classes that its type stubs lack

Metadata = dict[str, Any]  # the content of index.json


def file_names(number: int) -> dict[str, str]:
    """Return the names of the files of state `number`, by what they hold."""
    return {
        "rows": f"rows.{number}.jsonl",
        "vectors": f"vectors.{number}.faiss",
        "near": f"near.{number}.faiss",
    }


def faiss_message(error: BaseException) -> str:
    """Return the end of a FAISS error message, without its place in FAISS's source."""
    return str(error).strip().split("\n")[0][-120:]


# ---- writing


def save_files(
    folder: Path, metadata: Mapping, rows: Iterable[Mapping], stores: Mapping[str, faiss.Index]
) -> Metadata:
    """Save a new state of the index in `folder`.

    Args:
        folder: the index; it is made if needed.
        metadata: what index.json holds, without number and digests.
        rows: one mapping for each picture, in the order of the vectors.
        stores: FAISS indexes by what they hold, "vectors" and perhaps "near".

    Returns:
        The metadata with the state's number and its files' digests.

    Raises:
        InputError: the disk refuses; the old state stays as it is.
    """
    with written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        old = settle(folder)
        number = 1 + max(_used_numbers(folder), default=old)
        # Write down the numbers, for the process that comes after a crash.
        write_text_atomic(folder / SAVING, json.dumps({"numbers": [old, number]}))
        try:
            # Write the new state, which nobody reads yet.
            names = file_names(number)
            lines = ((json.dumps(row, ensure_ascii=False) + "\n").encode() for row in rows)
            digests = {"rows": _write_new(folder / names["rows"], lines)}
            for part, store in stores.items():
                digests[part] = _write_store(folder / names[part], store)
            sync(folder)
            # Make it the state that counts.
            saved = {**metadata, "number": number, "digests": digests}
            write_metadata(folder, saved)
        finally:
            settle(folder)
    return saved


def settle(folder: Path) -> int:
    """Remove what a finished or interrupted save has left; return the number of the state that counts, or 0."""
    current = 0
    if (folder / "index.json").exists():
        current = read_metadata(folder).get("number", 0)
    if (folder / SAVING).exists():
        # Remove the files of the listed states, other than the one that counts.
        for number in _read_saving(folder / SAVING):
            if number not in (0, current):
                for name in file_names(number).values():
                    (folder / name).unlink(missing_ok=True)
        (folder / SAVING).unlink()
        sync(folder)
    return current


def _read_saving(path: Path) -> list[int]:
    """Return the numbers of a save in progress; InputError when the file is damaged."""
    saving = read_json(path)
    # A list of integers, and nothing else: files of these numbers are removed.
    numbers = saving.get("numbers") if isinstance(saving, dict) else None
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        raise InputError(f"{path}: damaged; remove it")
    return numbers


def _used_numbers(folder: Path) -> list[int]:
    """List the numbers that occur in names of files, whoever wrote them."""
    pattern = re.compile(r"(?:rows|vectors|near)\.(\d{1,9})\.(?:jsonl|faiss)")
    matches = (pattern.fullmatch(path.name) for path in folder.iterdir())
    return [int(match[1]) for match in matches if match]


def _write_new(path: Path, chunks: Iterable[bytes]) -> str:
    """Write a file that must not exist yet; return its digest once it is on the disk."""
    digest = new_digest()
    # "x" refuses to open a file that exists: it would be somebody else's.
    with path.open("xb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _write_store(path: Path, store: faiss.Index) -> str:
    """Write vectors to a file that must not exist yet; return its digest once it is on the disk."""
    digest = new_digest()
    with path.open("xb") as file:

        def write(chunk: bytes) -> int:
            # FAISS calls this for each piece it writes.
            digest.update(chunk)
            return file.write(chunk)

        faiss.write_index(store, _FAISS_IO.PyCallbackIOWriter(write))
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def write_metadata(folder: Path, metadata: Mapping) -> None:
    """Write index.json: the settings, the retriever's fingerprint, and the code that wrote it."""
    with written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "format": FORMAT,
            **metadata,
            "git": git_state(),
            "versions": package_versions(),
        }
        write_text_atomic(
            folder / "index.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        )


# ---- reading


def read_metadata(folder: Path) -> Metadata:
    """Return index.json of a folder; InputError when it is missing, damaged or of another format."""
    path = folder / "index.json"
    if not path.is_file():
        raise InputError(
            f"{folder}: no index.json here; make an index with cir-cot index --out {folder}"
        )
    metadata = read_json(path)
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise InputError(
            f"{path}: not an index of format {FORMAT}; encode the gallery into a new folder"
        )
    # Check each value, then that they fit each other.
    for key, is_valid in CHECKS.items():
        value = metadata.get(key)
        if not is_valid(value):
            raise InputError(f"{path}: {key!r} is {str(value)[:60]!r}, so it is damaged; {CURE}")
    width, dim = metadata["width"], metadata["dim"]
    if width > dim:
        raise InputError(f"{path}: width {width} of {dim} numbers, so it is damaged; {CURE}")
    # Earlier versions did not list unreadable pictures.
    metadata.setdefault("unreadable", {})
    return metadata


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**40


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value.isprintable()


def _is_texts(value: object) -> bool:
    if value is None:
        return True
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


# What index.json must hold: key -> check of its value; None is the value of a missing key.
CHECKS: dict[str, Callable[[object], bool]] = {
    "kind": _is_text,
    "dtype": lambda value: isinstance(value, str) and value in STORES,
    "dim": lambda value: _is_count(value) and value != 0,
    "width": lambda value: _is_count(value) and value != 0,
    "count": _is_count,
    "number": lambda value: value is None or _is_count(value),  # a Qdrant collection has none
    "probe": is_fingerprint,
    "pixels": is_bounds,  # earlier versions wrote none
    "digests": _is_texts,  # file -> digest
    "unreadable": _is_texts,  # image id -> problem
    "tuned": lambda value: value is None or _is_text(value),
}


def read_rows(path: Path, digest: str | None) -> Iterator[dict[str, Any]]:
    """Yield the rows {"id", "hash"} and perhaps "payload" of a file; InputError names what is damaged."""
    check_digest(path, digest)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            row = parse_json(line, f"{path}:{number}")
            if not _is_row(row):
                raise InputError(f"{path}:{number}: no row of an index, so it is damaged; {CURE}")
            yield cast(dict[str, Any], row)


def _is_row(row: object) -> bool:
    """Tell whether a value is a row of an index."""
    if not isinstance(row, dict) or not isinstance(row.get("payload", {}), dict):
        return False
    return isinstance(row.get("id"), str) and isinstance(row.get("hash"), str)


def read_store(path: Path, digest: str | None, width: int, count: int) -> faiss.Index:
    """Read `count` vectors of `width` numbers; InputError names what is damaged."""
    check_digest(path, digest)
    try:
        with path.open("rb") as file:
            store = faiss.read_index(_FAISS_IO.PyCallbackIOReader(file.read))
    except (RuntimeError, MemoryError) as error:
        raise InputError(f"{path}: cannot be read ({faiss_message(error)}); {CURE}") from None
    # A readable file may still be another index's.
    if (store.ntotal, store.d) != (count, width):
        raise InputError(
            f"{path}: {store.ntotal} vectors of {store.d} numbers, not {count} of {width}, "
            f"so it is damaged; {CURE}"
        )
    return store


def check_digest(path: Path, digest: str | None) -> None:
    """Refuse a file that is missing or altered; an earlier version wrote down no digest."""
    try:
        found = digest_file(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {CURE}") from None
    if digest is not None and found != digest:
        raise InputError(f"{path}: altered since it was written, so it is damaged; {CURE}")
