"""Files of hard negatives: for each query of a training split, pictures that a retriever ranks near its target.

JSONL, a query a line: {"id": query, "negatives": [image ids, hardest first], "scores": [their cosines]}. Beside
FILE.jsonl stands FILE.json with what the file depends on: retriever, benchmark, margin.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from cir_cot.errors import InputError
from cir_cot.files import check_keys, read_jsonl, write_json, write_text_atomic

KEYS = ("id", "negatives", "scores")


class Negatives(NamedTuple):
    """Hard negatives of a query: image ids, and their scores."""

    images: tuple[str, ...]
    scores: tuple[float, ...]


def write_negatives(path: Path, mined: Mapping[str, Negatives], protocol: Mapping) -> None:
    """Write a file of negatives, and what it depends on beside it."""
    lines = []
    for name, found in mined.items():
        scores = [round(score, 6) for score in found.scores]
        row = {"id": name, "negatives": list(found.images), "scores": scores}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_text_atomic(path, "".join(lines))
    write_json(protocol_file(path), protocol)


def protocol_file(path: Path) -> Path:
    """Return the file that says what a file of negatives depends on."""
    return path.with_suffix(".json")


def read_negatives(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Return the negatives of each query by its id, hardest first.

    Raises:
        InputError: a line is no such object, or a query is there twice.
    """
    found: dict[str, tuple[str, ...]] = {}
    for number, row in read_jsonl(path):
        where = f"{path}:{number}"
        if not isinstance(row, dict):
            raise InputError(f"{where}: negatives of a query are a JSON object")
        check_keys(row, where, required=KEYS[:2], allowed=KEYS)
        if not isinstance(row["id"], str) or not _are_names(row["negatives"]):
            raise InputError(f'{where}: "id" is a text and "negatives" a list of image ids')
        if row["id"] in found:
            raise InputError(f"{where}: query {row['id']!r} is there twice")
        found[row["id"]] = tuple(row["negatives"])
    return found


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
