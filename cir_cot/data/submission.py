"""Write the files that the test servers of CIRR and CIRCO take.

CIRR (cirr.cecs.anu.edu.au) takes two files, one with 50 images a query and one with 3 of the
query's image set. CIRCO (circo.micc.unifi.it) takes one, with 50 COCO ids a query.
`submission_check` validates files before they are uploaded. Sources: the datasets' repositories and
their example files.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from cir_cot.errors import InputError
from cir_cot.files import write_text_atomic
from cir_cot.ownership import writing
from cir_cot.storage import written

from .benchmark import Benchmark, label
from .metrics import restrict
from .rankings import CIRR_VERSION, Rankings, ranked_lists, subset_lists, subset_members

LENGTHS = {"recall": 50, "recall_subset": 3, "circo": 50}  # images a query, by kind of file
# CIRCO's repository has an example of val, too.
SPLITS = {
    "cirr": ("test1",),
    "circo": ("test", "val"),
}


def write_submission(
    folder: str | Path,
    benchmark: Benchmark,
    rankings: Rankings,
    subset_rankings: Rankings | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write the files of a benchmark's test server and return their paths.

    Args:
        folder: where they are written; it is created if needed.
        benchmark: CIRR or CIRCO.
        rankings: for each query image ids, best first.
        subset_rankings: CIRR: the same for the image sets; not needed if `rankings` hold them.
        overwrite: replace files that this function did not write, too.

    Raises:
        InputError: rankings that the server would refuse, or a file that would be replaced.
    """
    folder = Path(folder)
    # what is written, before the folder is touched
    lists = ranked_lists(benchmark, rankings)
    if benchmark.name == "circo":
        contents = _circo_contents(benchmark, lists)
    else:
        contents = _cirr_contents(benchmark, lists, subset_rankings)
    with written(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with writing(folder, "submit", contents, overwrite):
        for name, content in contents.items():
            write_text_atomic(folder / name, json.dumps(content, separators=(",", ":")))
    return [folder / name for name in contents]


def _circo_contents(
    benchmark: Benchmark, lists: Sequence[Sequence[str]]
) -> dict[str, dict[str, object]]:
    """Return {file name: content} of CIRCO's file: {query id: [COCO ids as numbers]}."""
    content: dict[str, object] = {}
    cut_lists = cut(benchmark, lists, "circo")
    for record, images in zip(benchmark.records, cut_lists, strict=True):
        content[record.id] = [int(image) for image in images]
    return {f"circo.{benchmark.split}.json": content}


def _cirr_contents(
    benchmark: Benchmark, lists: list[list[str]], subset_rankings: Rankings | None
) -> dict[str, dict[str, object]]:
    """Return {file name: content} of CIRR's two files: version, metric, and lists by query id."""
    subsets = cirr_subsets(benchmark, lists, subset_rankings)
    contents = {}
    for metric, some in {"recall": lists, "recall_subset": subsets}.items():
        content: dict[str, object] = {"version": CIRR_VERSION, "metric": metric}
        cut_lists = cut(benchmark, some, metric)
        for record, images in zip(benchmark.records, cut_lists, strict=True):
            content[record.id] = images
        contents[f"cirr.{benchmark.split}.{metric}.json"] = content
    return contents


def cirr_subsets(
    benchmark: Benchmark, lists: list[list[str]], rankings: Rankings | None
) -> list[list[str]]:
    """Return the members of each query's image set, best first.

    Args:
        benchmark: CIRR.
        lists: rankings of the gallery, in the order of the records.
        rankings: rankings of the image sets; if None, `lists` must hold every member of them.
    """
    if rankings is not None:
        return subset_lists(benchmark, rankings)
    # derive the rankings of the sets from the full lists
    subsets = [subset_members(record) for record in benchmark.records]
    for record, members, images in zip(benchmark.records, subsets, lists, strict=True):
        absent = set(members).difference(images)
        if absent:
            raise InputError(
                f"{label(benchmark)}: query {record.id!r} does not rank {min(absent)!r} of its image set; rank the "
                "complete gallery or give --subset-rankings"
            )
    return restrict(lists, subsets)


def cut(benchmark: Benchmark, lists: Sequence[Sequence[str]], kind: str) -> list[list[str]]:
    """Return the first images of each list, as many as the server takes; refuse shorter lists."""
    length = LENGTHS[kind]
    # the servers refuse short lists
    for record, images in zip(benchmark.records, lists, strict=True):
        if len(images) < length:
            raise InputError(
                f"{label(benchmark)}: query {record.id!r} ranks {len(images)} images; the server wants {length}"
            )
    return [list(images[:length]) for images in lists]
