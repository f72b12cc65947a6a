"""The one way to a number: a benchmark says what is ranked and what counts, `score_rankings` does the rest.

Every benchmark's official rules are data of Benchmark: who is in the gallery, whether the reference is taken out,
at which k recall is read. Rankings are checked before they are scored; nothing is dropped in silence.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from cir_cot.errors import InputError, shown
from cir_cot.files import first_repeated, read_json
from cir_cot.records import Record

from .benchmark import Benchmark, coco_id, label
from .metrics import map_at_k, recall_at_k, restrict, soft_recall_at_k, subset_recall_at_k

Rankings = Mapping[str, Sequence[str]]  # query id -> image ids, best first
CIRR_VERSION = "rc2"


def score_rankings(
    benchmark: Benchmark, rankings: Rankings, subset_rankings: Rankings | None = None
) -> dict:
    """Official metrics in percent, e.g. {"R@10": 36.04}; CIRCO adds "semantic_mAP@10": {aspect: value}.

    InputError: a missing or unknown query, an image twice in a list or not in the gallery, a list too short for the
    largest k (not for CIRCO, whose official evaluator cuts), queries without published targets.
    """
    for record in benchmark.records:
        if not record.targets:
            raise InputError(
                f"{label(benchmark)}: query {record.id!r} has no published target; use the test server"
            )
    lists = ranked_lists(benchmark, rankings)
    targets = [record.targets for record in benchmark.records]
    if benchmark.name == "circo":
        return circo_metrics(benchmark, lists)
    if benchmark.name == "cirr":
        return cirr_metrics(benchmark, lists, subset_rankings)
    if subset_rankings is not None:
        raise InputError(f"{benchmark.name} has no subsets; subset rankings belong to cirr")
    return {f"R@{k}": recall_at_k(lists, targets, k) for k in benchmark.ks}


def cirr_metrics(
    benchmark: Benchmark, lists: list[list[str]], subset_rankings: Rankings | None
) -> dict:
    """R@k; Rsub@1,2,3 and Avg = (R@5 + Rsub@1) / 2 where the subset is ranked, by its own file or by full lists."""
    records = benchmark.records
    targets = [record.targets for record in records]
    weights = (
        None if benchmark.weights is None else [benchmark.weights[record.id] for record in records]
    )
    others = [
        tuple(image for image in record.subset if image != record.reference) for record in records
    ]

    def recall(rankings: list[list[str]], k: int) -> float:
        return (
            recall_at_k(rankings, targets, k)
            if weights is None
            else soft_recall_at_k(rankings, weights, k)
        )

    metrics = {f"R@{k}": recall(lists, k) for k in benchmark.ks}
    if subset_rankings is not None:
        subsets = subset_lists(benchmark, subset_rankings, others)
    elif all(set(members) <= set(ranking) for members, ranking in zip(others, lists, strict=True)):
        subsets = restrict(lists, others)
    else:
        return metrics
    if weights is None:
        metrics |= {f"Rsub@{k}": subset_recall_at_k(subsets, targets, others, k) for k in (1, 2, 3)}
    else:
        metrics |= {f"Rsub@{k}": recall(subsets, k) for k in (1, 2, 3)}
    return metrics | {"Avg": (metrics["R@5"] + metrics["Rsub@1"]) / 2}


def circo_metrics(benchmark: Benchmark, lists: list[list[str]]) -> dict:
    """mAP@k over all targets, R@k of the first target alone, and mAP@10 by semantic aspect."""
    records = benchmark.records
    targets = [record.targets for record in records]
    metrics = {f"mAP@{k}": map_at_k(lists, targets, k) for k in benchmark.ks}
    metrics |= {
        f"R@{k}": recall_at_k(lists, [wanted[:1] for wanted in targets], k) for k in benchmark.ks
    }
    by_aspect: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        for aspect in (benchmark.aspects or {}).get(record.id, ()):
            by_aspect.setdefault(aspect, []).append(index)
    metrics["semantic_mAP@10"] = {
        aspect: map_at_k([lists[i] for i in members], [targets[i] for i in members], 10)
        for aspect, members in sorted(by_aspect.items())
    }
    return metrics


def mean_of_categories(metrics: Mapping[str, Mapping[str, float]]) -> dict:
    """{category: metrics} plus "average": the unweighted mean over the categories, as every paper reports it."""
    names = next(iter(metrics.values())).keys()
    average = {
        name: sum(values[name] for values in metrics.values()) / len(metrics) for name in names
    }
    if set(average) == {"R@10", "R@50"}:
        average["Avg"] = (average["R@10"] + average["R@50"]) / 2
    return {**metrics, "average": average}


def ranked_lists(benchmark: Benchmark, rankings: Rankings) -> list[list[str]]:
    """The lists in the order of the records, checked, without the reference where it is out, cut to the gallery."""
    check_queries(benchmark, rankings)
    lists = []
    for record in benchmark.records:
        allowed = allowed_images(benchmark, record)
        nameable = allowed if benchmark.candidates else benchmark.nameable
        check_images(benchmark, record, rankings[record.id], nameable)
        removed = record.reference if benchmark.remove_reference else None
        ranking = [image for image in rankings[record.id] if image != removed]
        if benchmark.name != "circo":
            check_length(benchmark, record, len(ranking), len(nameable) - (removed in nameable))
        lists.append(
            [image for image in ranking if image in allowed] if benchmark.outside else ranking
        )
    return lists


def short_lists(benchmark: Benchmark, rankings: Rankings) -> int:
    """How many lists end before the largest k and before the gallery does: a target behind their end counts as a miss.

    CIRCO's official evaluator allows it, and a ranking of a larger gallery has it after the cut to a smaller one.
    """
    count = 0
    for record, ranking in zip(benchmark.records, ranked_lists(benchmark, rankings), strict=True):
        gallery = allowed_images(benchmark, record)
        available = len(gallery) - (benchmark.remove_reference and record.reference in gallery)
        count += len(ranking) < min(max(benchmark.ks), available or max(benchmark.ks))
    return count


def allowed_images(benchmark: Benchmark, record: Record) -> frozenset[str]:
    """The gallery as this query has it: its candidates (GeneCIS) or all images; empty where it is unknown."""
    return frozenset(benchmark.candidates[record.id]) if benchmark.candidates else benchmark.members


def subset_lists(
    benchmark: Benchmark, rankings: Rankings, others: list[tuple[str, ...]]
) -> list[list[str]]:
    """CIRR's subset lists in the order of the records: set members only, at least 3 beside the reference."""
    check_queries(benchmark, rankings)
    lists = []
    for record, members in zip(benchmark.records, others, strict=True):
        ranking = rankings[record.id]
        check_images(benchmark, record, ranking, frozenset(record.subset), "the query's image set")
        lists.append([image for image in ranking if image != record.reference])
        if len(lists[-1]) < min(3, len(members)):
            raise InputError(
                f"{label(benchmark)}: query {record.id!r} ranks {len(lists[-1])} members of its set; Rsub@3 needs 3"
            )
    return lists


def check_queries(benchmark: Benchmark, rankings: Rankings) -> None:
    """Every query is ranked, and nothing else is; otherwise the mean would be over other queries than the paper's."""
    ids = [record.id for record in benchmark.records]
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
    """No image twice in a list, none from elsewhere (unless the gallery is unknown)."""
    if len(set(ranking)) != len(ranking):
        twice = shown(first_repeated(ranking))
        raise InputError(f"{label(benchmark)}: query {record.id!r} ranks image {twice} twice")
    foreign = [image for image in ranking if image not in allowed] if allowed else []
    if foreign:
        raise InputError(
            f"{label(benchmark)}: query {record.id!r} ranks image {shown(foreign[0])}, which is not in {where}"
        )


def check_length(benchmark: Benchmark, record: Record, length: int, available: int) -> None:
    """A list that ends before the largest k would lower the recall in silence."""
    needed = min(max(benchmark.ks), available)
    if length < needed:
        state = " beside its reference" if benchmark.remove_reference else ""
        raise InputError(
            f"{label(benchmark)}: query {record.id!r} ranks {length} images{state}; "
            f"R@{max(benchmark.ks)} needs {needed}: write longer lists"
        )


def read_rankings(
    path: str | Path, benchmark: Benchmark, metric: str = "recall"
) -> dict[str, list[str]]:
    """A rankings file, or an official submission: CIRR's `version` and `metric` keys are checked and taken off.

    `metric`: "recall" or "recall_subset", so that CIRR's two files cannot be mistaken for each other.
    """
    rankings = read_json(path)
    if not isinstance(rankings, dict):
        raise InputError(
            f"{path}: {{query id: [image ids]}} is expected, got {type(rankings).__name__}"
        )
    if benchmark.name == "cirr":
        for key, value in (("version", CIRR_VERSION), ("metric", metric)):
            if rankings.pop(key, value) != value:
                raise InputError(f"{path}: {key!r} is not {value!r}; is it the right file?")
    return {
        query: _image_ids(images, benchmark, f"{path}: query {shown(query)}")
        for query, images in rankings.items()
    }


def _image_ids(images: object, benchmark: Benchmark, where: str) -> list[str]:
    if not isinstance(images, list):
        raise InputError(f"{where}: a ranking is a list of image ids, got {type(images).__name__}")
    if benchmark.name == "circo":
        return [coco_id(image, where) for image in images]
    for image in images:
        if not isinstance(image, str):
            raise InputError(f"{where}: an image id is a string, got {shown(image)}")
    return images
