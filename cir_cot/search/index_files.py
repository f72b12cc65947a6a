"""The files of an index: `rows.N.jsonl`, `vectors.N.faiss`, `near.N.faiss`, and `index.json`, which tells the right N.

A new state is written beside the old one under the next free number and forced to the disk, then index.json changes
over, then the old files go. `.saving.json` names the numbers of a save in progress, so that whoever comes after a crash
removes what it left, and nothing but that. index.json holds a digest of each file, which is checked when it is read.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import faiss

from cir_cot.errors import InputError
from cir_cot.files import parse_json, read_json, sync, write_text_atomic
from cir_cot.provenance import git_state, package_versions
from cir_cot.storage import written

from .vector_store import is_probe

FORMAT = 1
STORES = {"float32": "Flat", "float16": "SQfp16", "int8": "SQ8"}
SAVING = ".saving.json"
DIGEST = 16  # bytes
CURE = "restore the file, or encode the gallery into a new folder"


def file_names(number: int) -> dict[str, str]:
    """Return the names of the files of one state, by what they hold."""
    return {
        "rows": f"rows.{number}.jsonl",
        "vectors": f"vectors.{number}.faiss",
        "near": f"near.{number}.faiss",
    }


def words_of(error: BaseException) -> str:
    """Return the end of what FAISS says of an error, without its place in FAISS's source."""
    return str(error).strip().split("\n")[0][-120:]


# ---- writing


def save_files(
    folder: Path, facts: Mapping, rows: Iterable[Mapping], stores: Mapping[str, faiss.Index]
) -> dict:
    """Make rows and stores ("vectors", "near") the state of the index in `folder` -> facts with its number and digests.

    Readers see the old state or the whole new one. InputError when the disk refuses it; the old state then stays.
    """
    with written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        old = settle(folder)
        number = 1 + max(_taken(folder), default=old)
        # Say what will be written, for whoever comes after a crash.
        write_text_atomic(folder / SAVING, json.dumps({"numbers": [old, number]}))
        try:
            # Write the new state, which nobody reads yet.
            names = file_names(number)
            lines = ((json.dumps(row, ensure_ascii=False) + "\n").encode() for row in rows)
            digests = {"rows": _write_new(folder / names["rows"], lines)}
            for part, store in stores.items():
                digests[part] = _write_store(folder / names[part], store)
            sync(folder)
            # Change over.
            facts = {**facts, "number": number, "digests": digests}
            write_facts(folder, facts)
        finally:
            settle(folder)
    return facts


def settle(folder: Path) -> int:
    """Remove what a finished or an interrupted save has left over -> the number of the state that counts, or 0."""
    current = read_facts(folder).get("number", 0) if (folder / "index.json").exists() else 0
    if (folder / SAVING).exists():
        saving = read_json(folder / SAVING)
        numbers = saving.get("numbers") if isinstance(saving, dict) else None
        if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
            raise InputError(f"{folder / SAVING}: damaged; remove it")
        for number in numbers:
            for name in file_names(number).values() if number not in (0, current) else ():
                (folder / name).unlink(missing_ok=True)
        (folder / SAVING).unlink()
        sync(folder)
    return current


def _taken(folder: Path) -> list[int]:
    found = (
        re.fullmatch(r"(?:rows|vectors|near)\.(\d{1,9})\.(?:jsonl|faiss)", path.name)
        for path in folder.iterdir()
    )
    return [int(match[1]) for match in found if match]


def _write_new(path: Path, chunks: Iterable[bytes]) -> str:
    """Write a file that must not exist yet, on the disk when this returns -> its digest."""
    digest = hashlib.blake2b(digest_size=DIGEST)
    with path.open("xb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _write_store(path: Path, store: faiss.Index) -> str:
    digest = hashlib.blake2b(digest_size=DIGEST)
    with path.open("xb") as file:

        def write(chunk: bytes) -> int:
            digest.update(chunk)
            return file.write(chunk)

        faiss.write_index(store, faiss.PyCallbackIOWriter(write))
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def write_facts(folder: Path, facts: Mapping) -> None:
    """Write index.json: what the index holds, of which retriever, made by which code."""
    with written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        facts = {"format": FORMAT, **facts, "git": git_state(), "versions": package_versions()}
        write_text_atomic(
            folder / "index.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
        )


# ---- reading


def read_facts(folder: Path) -> dict:
    """Return index.json of a folder; InputError when it is no index, a damaged one or one of another version."""
    path = folder / "index.json"
    if not path.is_file():
        raise InputError(
            f"{folder}: no index.json here; make an index with cir-cot index --out {folder}"
        )
    facts = read_json(path)
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise InputError(
            f"{path}: not an index of format {FORMAT}; encode the gallery into a new folder"
        )
    for key, right in FACTS.items():
        if not right(facts.get(key)):
            raise InputError(
                f"{path}: {key!r} is {str(facts.get(key))[:60]!r}, so it is damaged; {CURE}"
            )
    if facts["width"] > facts["dim"]:
        raise InputError(
            f"{path}: width {facts['width']} of {facts['dim']} numbers, so it is damaged; {CURE}"
        )
    facts.setdefault("unreadable", {})
    return facts


def _count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**40


def _text(value: object) -> bool:
    return isinstance(value, str) and value.isprintable()


def _texts(value: object) -> bool:
    return value is None or (
        isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
    )


FACTS = {
    "kind": _text,
    "dtype": lambda value: isinstance(value, str) and value in STORES,
    "dim": lambda value: _count(value) and value > 0,
    "width": lambda value: _count(value) and value > 0,
    "count": _count,
    "number": lambda value: value is None or _count(value),  # a Qdrant collection has none
    "probe": is_probe,
    "digests": _texts,
    "unreadable": _texts,
    "tuned": lambda value: value is None or _text(value),
}


def read_rows(path: Path, digest: str | None) -> Iterator[dict]:
    """Yield the rows {"id", "hash"} and perhaps "payload" of a file, checked; InputError names what is damaged."""
    check_digest(path, digest)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            row = parse_json(line, f"{path}:{number}")
            good = (
                isinstance(row, dict)
                and isinstance(row.get("id"), str)
                and isinstance(row.get("hash"), str)
            )
            if not good or not isinstance(row.get("payload", {}), dict):
                raise InputError(f"{path}:{number}: no row of an index, so it is damaged; {CURE}")
            yield row


def read_store(path: Path, digest: str | None, width: int, count: int) -> faiss.Index:
    """Read `count` vectors of `width` numbers; InputError names what is damaged."""
    check_digest(path, digest)
    try:
        with path.open("rb") as file:
            store = faiss.read_index(faiss.PyCallbackIOReader(file.read))
    except (RuntimeError, MemoryError) as error:
        raise InputError(f"{path}: cannot be read ({words_of(error)}); {CURE}") from None
    if (store.ntotal, store.d) != (count, width):
        raise InputError(
            f"{path}: {store.ntotal} vectors of {store.d} numbers, not {count} of {width}, so it is damaged; {CURE}"
        )
    return store


def check_digest(path: Path, digest: str | None) -> None:
    """Refuse a file that is missing or not what was written; an earlier version wrote down no digest."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(
                file, lambda: hashlib.blake2b(digest_size=DIGEST)
            ).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {CURE}") from None
    if digest is not None and found != digest:
        raise InputError(f"{path}: altered since it was written, so it is damaged; {CURE}")
