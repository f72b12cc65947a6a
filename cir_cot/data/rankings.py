"""Read rankings and check them against a benchmark, before they are scored or submitted.

Nothing is dropped in silence: a missing or unknown query, an image twice in a list or outside the
gallery, and a list that is too short for the largest k are errors that name the query.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from cir_cot.errors import InputError, shown
from cir_cot.files import first_repeated, read_json
from cir_cot.records import Record

from .benchmark import Benchmark, coco_id, label

Rankings = Mapping[str, Sequence[str]]  # query id -> image ids, best first
CIRR_VERSION = "rc2"
LARGEST_SUBSET_K = 3  # of Rsub@k


# ---- reading


def read_rankings(
    path: str | Path, benchmark: Benchmark, metric: str = "recall"
) -> dict[str, list[str]]:
    """Read a rankings file, or an official submission, whose own keys are checked and removed.

    Args:
        path: JSON {query id: [image ids, best first]}, may be gzipped.
        benchmark: what was ranked.
        metric: "recall" or "recall_subset": which of CIRR's two files is expected, so that they
            cannot be mistaken for each other.
    """
    rankings = read_json(path)
    if not isinstance(rankings, dict):
        raise InputError(
            f"{path}: {{query id: [image ids]}} is expected, got {type(rankings).__name__}"
        )
    # CIRR's submissions name their kind
    if benchmark.name == "cirr":
        for key, value in (("version", CIRR_VERSION), ("metric", metric)):
            if rankings.pop(key, value) != value:
                raise InputError(f"{path}: {key!r} is not {value!r}; is it the right file?")
    # ids are checked for their type only; `ranked_lists` checks them against the gallery
    lists = {}
    for query, images in rankings.items():
        lists[query] = _image_ids(images, benchmark, f"{path}: query {shown(query)}")
    return lists


def _image_ids(images: object, benchmark: Benchmark, where: str) -> list[str]:
    """Return the ids of one ranking; CIRCO's may be numbers."""
    if not isinstance(images, list):
        raise InputError(f"{where}: a ranking is a list of image ids, got {type(images).__name__}")
    if benchmark.name == "circo":
        return [coco_id(image, where) for image in images]
    for image in images:
        if not isinstance(image, str):
            raise InputError(f"{where}: an image id is a string, got {shown(image)}")
    return images


# ---- lists in the order of the benchmark's records


def ranked_lists(benchmark: Benchmark, rankings: Rankings) -> list[list[str]]:
    """Return the checked ranking of each record, restricted to the gallery of its query.

    The reference is removed where the protocol says so, and images that the gallery leaves out are
    skipped.
    """
    check_queries(benchmark, rankings)
    lists = []
    for record in benchmark.records:
        allowed = allowed_images(benchmark, record)
        # what the list may contain
        nameable = allowed if benchmark.candidates else benchmark.nameable
        check_images(benchmark, record, rankings[record.id], nameable)
        removed = record.reference if benchmark.remove_reference else None
        ranking = [image for image in rankings[record.id] if image != removed]

        # CIRCO's official evaluator takes short lists
        if benchmark.name != "circo":
            check_length(benchmark, record, len(ranking), len(nameable) - (removed in nameable))
        # a ranking of a larger gallery
        if benchmark.outside:
            ranking = [image for image in ranking if image in allowed]
        lists.append(ranking)
    return lists


def subset_members(record: Record) -> tuple[str, ...]:
    """Return the images of a CIRR query's set that can be ranked: all but its reference."""
    return tuple(image for image in record.subset if image != record.reference)


def subset_lists(benchmark: Benchmark, rankings: Rankings) -> list[list[str]]:
    """Return the checked subset ranking of each CIRR record, without its reference.

    A list may hold members of the query's image set only, and at least 3 of them beside the
    reference.
    """
    check_queries(benchmark, rankings)
    lists = []
    for record in benchmark.records:
        ranking = rankings[record.id]
        # the file may contain the reference, which is skipped
        check_images(benchmark, record, ranking, frozenset(record.subset), "the query's image set")
        members = [image for image in ranking if image != record.reference]
        if len(members) < min(LARGEST_SUBSET_K, len(subset_members(record))):
            raise InputError(
                f"{label(benchmark)}: query {record.id!r} ranks {len(members)} members of its set; Rsub@3 needs 3"
            )
        lists.append(members)
    return lists


def short_lists(benchmark: Benchmark, rankings: Rankings) -> int:
    """Return how many lists end before the largest k and before the gallery ends.

    A target behind the end of such a list counts as a miss. CIRCO's official evaluator allows short
    lists, and a ranking of a larger gallery becomes short when it is restricted to a smaller one.
    """
    largest = max(benchmark.ks)
    count = 0
    for record, ranking in zip(benchmark.records, ranked_lists(benchmark, rankings), strict=True):
        gallery = allowed_images(benchmark, record)
        # the reference takes no place in a complete list
        available = len(gallery) - (benchmark.remove_reference and record.reference in gallery)
        count += len(ranking) < min(largest, available or largest)
    return count


def allowed_images(benchmark: Benchmark, record: Record) -> frozenset[str]:
    """Return the gallery of a query: its candidates (GeneCIS) or all images; empty if unknown."""
    if benchmark.candidates:
        return frozenset(benchmark.candidates[record.id])
    return benchmark.members


# ---- checks


def check_queries(benchmark: Benchmark, rankings: Collection[str]) -> None:
    """Refuse rankings of other queries than the benchmark's: their mean would be another number."""
    ids = [record.id for record in benchmark.records]
    # compare the ids both ways
    known = set(ids)
    missing = [query for query in ids if query not in rankings]
    unknown = [query for query in rankings if query not in known]
    if missing:
        count = f"{len(missing)} of {len(ids)} are missing"
        raise InputError(f"{label(benchmark)}: no ranking for query {shown(missing[0])} ({count})")
    if unknown:
        raise InputError(
            f"{label(benchmark)}: unknown query id {shown(unknown[0])} ({len(unknown)} unknown)"
        )


def check_images(
    benchmark: Benchmark,
    record: Record,
    ranking: Sequence[str],
    allowed: frozenset[str],
    where: str = "the gallery",
) -> None:
    """Refuse an image that is ranked twice or not in `allowed`; an empty set allows all images."""
    if len(set(ranking)) != len(ranking):
        twice = shown(first_repeated(ranking))
        raise InputError(f"{label(benchmark)}: query {record.id!r} ranks image {twice} twice")
    # CIRCO can be scored without the list of its gallery
    foreign = [image for image in ranking if image not in allowed] if allowed else []
    if foreign:
        raise InputError(
            f"{label(benchmark)}: query {record.id!r} ranks image {shown(foreign[0])}, which is not in {where}"
        )


def check_length(benchmark: Benchmark, record: Record, length: int, available: int) -> None:
    """Refuse a list that ends before the largest k: its recall would be too low without a word.

    Args:
        benchmark: what was ranked.
        record: the query.
        length: how many images its ranking has.
        available: how many images it could have.
    """
    # a small gallery cannot fill the largest k
    needed = min(max(benchmark.ks), available)
    if length < needed:
        state = " beside its reference" if benchmark.remove_reference else ""
        raise InputError(
            f"{label(benchmark)}: query {record.id!r} ranks {length} images{state}; "
            f"R@{max(benchmark.ks)} needs {needed}: write longer lists"
        )
