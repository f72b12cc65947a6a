"""Files for the test servers of CIRR and CIRCO: written from rankings, and checked offline before a server sees them.

CIRR (cirr.cecs.anu.edu.au) takes two files, one with 50 pictures a query and one with 3 of the query's image set; CIRCO
(circo.micc.unifi.it) takes one, with 50 COCO ids a query. Sources: the datasets' repositories and their example files.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cir_cot.errors import InputError, shown
from cir_cot.files import first_repeated, read_json, write_text_atomic
from cir_cot.ownership import writing
from cir_cot.records import Record
from cir_cot.storage import written

from . import load_benchmark
from .benchmark import Benchmark, coco_id, label
from .metrics import restrict
from .scoring import CIRR_VERSION, Rankings, ranked_lists, subset_lists

LENGTHS = {"recall": 50, "recall_subset": 3, "circo": 50}  # pictures a query, by kind of file
MAX_BYTES = 5_000_000  # CIRR's server refuses more; the official example has 4,192,413
SPLITS = {
    "cirr": ("test1",),
    "circo": ("test", "val"),
}  # CIRCO's repository has an example of val, too
META = ("version", "metric")  # CIRR's keys beside the queries


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a file: a fixed name, and the place and value in words."""

    name: str
    what: str


# ---- writing


def write_submission(
    folder: str | Path,
    benchmark: Benchmark,
    rankings: Rankings,
    subset_rankings: Rankings | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write the files of a benchmark's test server into `folder` -> their paths.

    InputError for unfit rankings, and for a file that this did not write before, unless `overwrite`.
    """
    folder = Path(folder)
    lists = ranked_lists(benchmark, rankings)
    ids = [record.id for record in benchmark.records]
    stem = f"{benchmark.name}.{benchmark.split}"
    if benchmark.name == "circo":
        kinds = {"circo": [[int(image) for image in images] for images in lists]}
        files = {f"{stem}.json": cut(benchmark, kinds["circo"], "circo")}
    else:
        subsets = cirr_subsets(benchmark, lists, subset_rankings)
        files = {
            f"{stem}.{metric}.json": [CIRR_VERSION, metric, *cut(benchmark, some, metric)]
            for metric, some in {"recall": lists, "recall_subset": subsets}.items()
        }
    keys = ids if benchmark.name == "circo" else [*META, *ids]
    with written(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with writing(folder, "submit", files, overwrite):
        for name, values in files.items():
            content = json.dumps(dict(zip(keys, values, strict=True)), separators=(",", ":"))
            write_text_atomic(folder / name, content)
    return [folder / name for name in files]


def cirr_subsets(
    benchmark: Benchmark, lists: list[list[str]], rankings: Rankings | None
) -> list[list[str]]:
    """The members of each query's image set, best first: from their own rankings or from lists that hold them all."""
    others = [
        tuple(image for image in record.subset if image != record.reference)
        for record in benchmark.records
    ]
    if rankings is not None:
        return subset_lists(benchmark, rankings, others)
    for record, members, images in zip(benchmark.records, others, lists, strict=True):
        absent = set(members).difference(images)
        if absent:
            raise InputError(
                f"{label(benchmark)}: query {record.id!r} does not rank {min(absent)!r} of its image set; rank the "
                "whole gallery or give --subset-rankings"
            )
    return restrict(lists, others)


def cut(benchmark: Benchmark, lists: Sequence[list], kind: str) -> list[list]:
    """The first pictures of each list, as many as the server wants."""
    for record, images in zip(benchmark.records, lists, strict=True):
        if len(images) < LENGTHS[kind]:
            raise InputError(
                f"{label(benchmark)}: query {record.id!r} ranks {len(images)} images; the server wants {LENGTHS[kind]}"
            )
    return [images[: LENGTHS[kind]] for images in lists]


# ---- checking


def check_submission(path: str | Path, root: str | Path) -> tuple[dict, list[Problem]]:
    """What a file is ({"benchmark", "split", "kind", "queries", "notes"}) and everything that is wrong with it.

    `root` is the folder of the dataset's annotations, or one above it. InputError where file or annotations are absent.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    facts = {"benchmark": None, "split": None, "kind": None, "queries": 0, "notes": []}
    try:
        content = read_json(path)
    except InputError as error:
        return facts, [Problem("unreadable", str(error))]
    if not isinstance(content, dict):
        return facts, [
            Problem(
                "wrong_form", f"{{query id: [images]}} is expected, got {type(content).__name__}"
            )
        ]
    lists = {key: value for key, value in content.items() if key not in META}
    if is_cirr(content):
        (benchmark,) = load_benchmark("cirr", root, "test1")
        problems, kind = cirr_header(content)
        if Path(path).stat().st_size > MAX_BYTES:
            problems.append(
                Problem(
                    "too_big", f"{Path(path).stat().st_size} bytes; the server takes {MAX_BYTES}"
                )
            )
    else:
        benchmark, kind, problems = circo_of(lists, root), "circo", []
    facts |= {
        "benchmark": benchmark.name,
        "split": benchmark.split,
        "kind": kind,
        "queries": len(lists),
    }
    if not benchmark.gallery:
        facts["notes"].append(
            "the list of the gallery is not there: whether a picture belongs to it was not checked"
        )
    problems += queries_problems(benchmark, lists)
    for record in benchmark.records:
        if record.id in lists:
            problems += [
                Problem(n, f"query {record.id}: {w}")
                for n, w in LOOK[kind](benchmark, record, lists[record.id])
            ]
    return facts, problems


def is_cirr(content: dict) -> bool:
    """CIRR's files say so; one without its header is told by its pictures' names, which are no numbers."""
    first = next(
        (image for value in content.values() if isinstance(value, list) for image in value[:1]),
        None,
    )
    return any(key in content for key in META) or (isinstance(first, str) and not first.isdigit())


def circo_of(lists: dict, root: str | Path) -> Benchmark:
    """CIRCO's test split, or val where the file has exactly its queries and the annotations are there."""
    (test,) = load_benchmark("circo", root, "test")
    if len(lists) == len(test.records):
        return test
    (val,) = load_benchmark("circo", root, "val")
    return val if set(lists) == {record.id for record in val.records} else test


def cirr_header(content: dict) -> tuple[list[Problem], str]:
    """What is wrong with `version` and `metric`, and which of the two files it is (by length where it does not say)."""
    problems = []
    if content.get("version") != CIRR_VERSION:
        problems.append(
            Problem(
                "wrong_version",
                f"'version' is {shown(content.get('version'))}, not {CIRR_VERSION!r}",
            )
        )
    metric = content.get("metric")
    if metric in ("recall", "recall_subset"):
        return problems, metric
    problems.append(
        Problem(
            "wrong_metric", f"'metric' is {shown(metric)}, neither 'recall' nor 'recall_subset'"
        )
    )
    first = next((value for value in content.values() if isinstance(value, list)), [])
    return problems, "recall_subset" if len(first) <= LENGTHS["recall_subset"] else "recall"


def queries_problems(benchmark: Benchmark, lists: dict) -> list[Problem]:
    """Queries that are missing, and keys that are no query."""
    ids = [record.id for record in benchmark.records]
    known = set(ids)
    missing = [
        Problem("missing_query", f"query {query} has no list")
        for query in ids
        if query not in lists
    ]
    return missing + [
        Problem("unknown_query", f"{shown(key)} is no query id")
        for key in lists
        if key not in known
    ]


def images_problems(
    kind: str, images: object, names: Callable[[list], list[str]]
) -> tuple[list, list[str]]:
    """(problems of the list's form, its image ids); no ids where it is no list of them."""
    if not isinstance(images, list):
        return [("wrong_form", f"a list of images is expected, got {type(images).__name__}")], []
    try:
        ids = names(images)
    except InputError as error:
        return [("wrong_image", str(error))], []
    found = []
    if len(ids) != LENGTHS[kind]:
        found.append(("wrong_count", f"{len(ids)} images, not {LENGTHS[kind]}"))
    if len(set(ids)) != len(ids):
        found.append(("duplicate_image", f"{shown(first_repeated(ids))} occurs twice"))
    return found, ids


def look_at_cirr(kind: str) -> Callable[[Benchmark, Record, object], list]:
    """The check of one list of CIRR's file of that kind."""

    def look(benchmark: Benchmark, record: Record, images: object) -> list[tuple[str, str]]:
        found, ids = images_problems(kind, images, cirr_names)
        if record.reference in ids:
            found.append(("reference_inside", f"{record.reference!r} is the query's own reference"))
        foreign = [image for image in ids if image not in benchmark.members]
        if foreign:
            found.append(
                (
                    "not_in_gallery",
                    f"{shown(foreign[0])} is no picture of test1; names have no './' and no '.png'",
                )
            )
        elif kind == "recall_subset" and (
            others := [image for image in ids if image not in record.subset]
        ):
            found.append(("not_in_subset", f"{shown(others[0])} is not in the query's image set"))
        return found

    return look


def cirr_names(images: list) -> list[str]:
    """Image names, which are strings."""
    for image in images:
        if not isinstance(image, str):
            raise InputError(f"an image name is a string, got {shown(image)}")
    return images


def look_at_circo(benchmark: Benchmark, record: Record, images: object) -> list[tuple[str, str]]:
    """The check of one list of CIRCO's file; its evaluator allows the reference, and numbers written as strings."""
    found, ids = images_problems(
        "circo", images, lambda some: [coco_id(image, "image") for image in some]
    )
    foreign = (
        [image for image in ids if image not in benchmark.members] if benchmark.gallery else []
    )
    return found + (
        [("not_in_gallery", f"{foreign[0]} is no picture of COCO 2017 unlabeled")]
        if foreign
        else []
    )


LOOK = {
    "recall": look_at_cirr("recall"),
    "recall_subset": look_at_cirr("recall_subset"),
    "circo": look_at_circo,
}
