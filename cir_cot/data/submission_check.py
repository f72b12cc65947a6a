"""Validate submission files of CIRR and CIRCO offline, before a test server sees them.

Every mistake of a file is reported, not only the first one: each under a fixed name, with the place
and the value.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from cir_cot.errors import InputError, shown
from cir_cot.files import first_repeated, read_json
from cir_cot.records import Record

from . import load_benchmark
from .benchmark import Benchmark, coco_id
from .rankings import CIRR_VERSION
from .submission import LENGTHS

MAX_BYTES = 5_000_000  # CIRR's server refuses more; the official example has 4,192,413
META = ("version", "metric")  # CIRR's keys beside the queries
CIRR_KINDS = ("recall", "recall_subset")
EXAMPLES = 3  # of each problem in a report; the count is always that of all


class Problem(NamedTuple):
    """Name one mistake of a file, and describe it by place and value."""

    name: str
    what: str


# Yields the problems of one list: (kind of file, benchmark, query, the list).
CheckList = Callable[[str, Benchmark, Record, object], Iterator[Problem]]


@dataclass
class Submission:
    """Describe a file: what it was recognised as, and everything that is wrong with it."""

    benchmark: str | None = None
    split: str | None = None
    kind: str | None = None  # a key of LENGTHS
    queries: int = 0
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def check_submission(path: str | Path, root: str | Path) -> Submission:
    """Recognise a file of either benchmark and find everything that is wrong with it.

    Args:
        path: the file.
        root: the folder of the dataset's annotations, or one above it.

    Raises:
        InputError: the file or the annotations are not there.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    found = Submission()
    try:
        # an unreadable file is a problem to report, not an error
        content = read_json(path)
    except InputError as error:
        found.problems.append(Problem("unreadable", str(error)))
        return found
    if not isinstance(content, dict):
        kind = type(content).__name__
        found.problems.append(
            Problem("wrong_form", f"{{query id: [images]}} is expected, got {kind}")
        )
        return found

    # which of the files it is, then what is wrong with it
    lists = {key: value for key, value in content.items() if key not in META}
    if is_cirr(content):
        (benchmark,) = load_benchmark("cirr", root, "test1")
        found.kind = cirr_kind(content)
        found.problems += cirr_header_problems(content, path.stat().st_size)
        found.problems += queries_problems(benchmark, lists)
        found.problems += _in_queries(benchmark, lists, found.kind, cirr_list_problems)
    else:
        benchmark = circo_of(lists, root)
        found.kind = "circo"
        found.problems += queries_problems(benchmark, lists)
        found.problems += _in_queries(benchmark, lists, found.kind, circo_list_problems)

    found.benchmark = benchmark.name
    found.split = benchmark.split
    found.queries = len(lists)
    if not benchmark.gallery:
        found.notes.append(
            "the list of the gallery is not there: whether a picture belongs to it was not checked"
        )
    return found


def _in_queries(
    benchmark: Benchmark, lists: Mapping[str, object], kind: str, check: CheckList
) -> Iterator[Problem]:
    """Yield what is wrong with the list of each query, in the order of the benchmark."""
    for record in benchmark.records:
        if record.id in lists:
            for problem in check(kind, benchmark, record, lists[record.id]):
                yield Problem(problem.name, f"query {record.id}: {problem.what}")


def submission_report(file: str, root: str) -> dict:
    """Return what a file is and its problems, grouped by name.

    The keys are file, benchmark, split, kind, queries, notes and problems; each problem has the
    keys problem, count and examples.
    """
    found = check_submission(file, root)
    # count all, show a few
    counts = Counter(problem.name for problem in found.problems)
    rows = []
    for name, count in counts.items():
        examples = [problem.what for problem in found.problems if problem.name == name]
        rows.append({"problem": name, "count": count, "examples": examples[:EXAMPLES]})
    return {
        "file": file,
        "benchmark": found.benchmark,
        "split": found.split,
        "kind": found.kind,
        "queries": found.queries,
        "notes": found.notes,
        "problems": rows,
    }


# ---- what a file is


def is_cirr(content: Mapping[str, object]) -> bool:
    """Return whether a file is CIRR's.

    Its files have a header. One without it is recognised by its image names, which are not numbers.
    """
    if any(key in content for key in META):
        return True
    for value in content.values():
        if isinstance(value, list) and value:
            return isinstance(value[0], str) and not value[0].isdigit()
    return False


def cirr_kind(content: Mapping[str, object]) -> str:
    """Return which of CIRR's two files it is: by its header, or by the length of its first list."""
    metric = content.get("metric")
    # the header
    if isinstance(metric, str) and metric in CIRR_KINDS:
        return metric
    for value in content.values():
        if isinstance(value, list):
            # the length
            return "recall_subset" if len(value) <= LENGTHS["recall_subset"] else "recall"
    return "recall_subset"


def circo_of(lists: Mapping[str, object], root: str | Path) -> Benchmark:
    """Return CIRCO's test split, or val where the file has exactly its queries."""
    (test,) = load_benchmark("circo", root, "test")
    # test has 800 queries, val 220
    if len(lists) == len(test.records):
        return test
    # another number of queries may be val, or a damaged test
    (val,) = load_benchmark("circo", root, "val")
    return val if set(lists) == {record.id for record in val.records} else test


# ---- what is wrong with it


def cirr_header_problems(content: Mapping[str, object], size: int) -> Iterator[Problem]:
    """Yield what is wrong with `version`, `metric` and the size of the file in bytes."""
    version = content.get("version")
    metric = content.get("metric")
    # the two keys of the header
    if version != CIRR_VERSION:
        yield Problem("wrong_version", f"'version' is {shown(version)}, not {CIRR_VERSION!r}")
    if metric not in CIRR_KINDS:
        yield Problem(
            "wrong_metric", f"'metric' is {shown(metric)}, neither 'recall' nor 'recall_subset'"
        )
    # the size
    if size > MAX_BYTES:
        yield Problem("too_big", f"{size} bytes; the server takes {MAX_BYTES}")


def queries_problems(benchmark: Benchmark, lists: Mapping[str, object]) -> Iterator[Problem]:
    """Yield the queries that have no list, then the keys that are not query ids."""
    # both ways: queries without a list, lists without a query
    ids = [record.id for record in benchmark.records]
    known = set(ids)
    for query in ids:
        if query not in lists:
            yield Problem("missing_query", f"query {query} has no list")
    for key in lists:
        if key not in known:
            yield Problem("unknown_query", f"{shown(key)} is not a query id")


def cirr_list_problems(
    kind: str, benchmark: Benchmark, record: Record, images: object
) -> Iterator[Problem]:
    """Yield what is wrong with one list of a CIRR file."""
    if not isinstance(images, list):
        yield _not_a_list(images)
        return
    for image in images:
        if not isinstance(image, str):
            yield Problem("wrong_image", f"an image name is a string, got {shown(image)}")
            return
    yield from _form_problems(kind, images)
    if record.reference in images:
        yield Problem("reference_inside", f"{record.reference!r} is the query's own reference")

    # only images of the gallery can be members of the set
    foreign = [image for image in images if image not in benchmark.members]
    if foreign:
        what = f"{shown(foreign[0])} is not a picture of test1; names have no './' and no '.png'"
        yield Problem("not_in_gallery", what)
        return
    others = [image for image in images if image not in record.subset]
    if kind == "recall_subset" and others:
        yield Problem("not_in_subset", f"{shown(others[0])} is not in the query's image set")


def circo_list_problems(
    kind: str, benchmark: Benchmark, record: Record, images: object
) -> Iterator[Problem]:
    """Yield what is wrong with one list of a CIRCO file.

    CIRCO's evaluator allows the reference, and numbers that are written as strings.
    """
    if not isinstance(images, list):
        yield _not_a_list(images)
        return
    try:
        ids = [coco_id(image, "image") for image in images]
    except InputError as error:
        yield Problem("wrong_image", str(error))
        return
    yield from _form_problems(kind, ids)
    foreign = [image for image in ids if image not in benchmark.members]
    if benchmark.gallery and foreign:
        yield Problem("not_in_gallery", f"{foreign[0]} is not a picture of COCO 2017 unlabeled")


def _not_a_list(images: object) -> Problem:
    """Return the problem of a query whose value is not a list."""
    return Problem("wrong_form", f"a list of images is expected, got {type(images).__name__}")


def _form_problems(kind: str, ids: list[str]) -> Iterator[Problem]:
    """Yield a wrong number of images, and an image that occurs twice."""
    if len(ids) != LENGTHS[kind]:
        yield Problem("wrong_count", f"{len(ids)} images, not {LENGTHS[kind]}")
    if len(set(ids)) != len(ids):
        yield Problem("duplicate_image", f"{shown(first_repeated(ids))} occurs twice")
