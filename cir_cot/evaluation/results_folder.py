"""Write folders of results so that a measurement replaces files of measurements only.

`cir_cot.ownership` keeps the list of the files. Two things are added here: what an earlier
measurement left is removed before a new one writes, and folders of earlier versions, which have no
list, are recognised by the form of their files.
"""

import gzip
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from cir_cot.files import read_json
from cir_cot.ownership import check_replaceable, writing

COMMAND = "results"  # the key of measurements in a folder's manifest
RESULTS = "results.json"
REPORT = ("report.md", "report.html")
CHAIN_KEYS = {"id", "explanation", "flag"}
MAX_LINE = 2**22  # bytes of a chain file's first line


def check_results_folder(
    folder: str | Path, names: Collection[str], overwrite: bool = False
) -> None:
    """Refuse to replace files that no measurement wrote; to be called before long work."""
    check_replaceable(Path(folder), COMMAND, names, overwrite, is_of_an_earlier_version)


@contextmanager
def writing_results(
    folder: str | Path, names: Collection[str], stale: Collection[str], overwrite: bool = False
) -> Iterator[None]:
    """Let a measurement write the files `names` into a folder, which is created if needed.

    Files among `stale` that an earlier measurement wrote are removed first, in that order.

    Raises:
        InputError: one of the files exists and no measurement wrote it, or it was edited since.
    """
    folder = Path(folder)
    check_results_folder(folder, (*names, *stale), overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    with writing(
        folder, COMMAND, names, overwrite, stale=stale, recognise=is_of_an_earlier_version
    ):
        yield


def is_of_an_earlier_version(path: Path) -> bool:
    """Return whether a measurement wrote a file before folders of results had a manifest."""
    try:
        results = read_json(path.parent / RESULTS)
        if not isinstance(results, dict):
            return False
        if not {"metrics", "by_source", "protocol"} <= results.keys():
            return False

        # chains are known by the keys of their first line, rankings by their first character
        if path.name.endswith("chains.jsonl"):
            with path.open("rb") as file:
                first = json.loads(file.readline(MAX_LINE))
            return isinstance(first, dict) and first.keys() == CHAIN_KEYS
        return path.name in (RESULTS, *REPORT) or _is_of_rankings(path)
    except ValueError:  # InputError, no JSON, no UTF-8
        return False


def _is_of_rankings(path: Path) -> bool:
    """Return whether a file begins like gzipped JSON of rankings."""
    try:
        with gzip.open(path) as file:
            return file.read(1) == b"{"
    except (OSError, EOFError):
        return False
