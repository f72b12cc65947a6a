"""Score rankings by the official protocol of a benchmark.

Every command that reports a number does it here.

Each benchmark's rules are data of `Benchmark`: which images are the gallery, whether the reference
is removed, at which k recall is computed. `rankings` checks the lists, `metrics` holds the
formulas.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cir_cot.errors import InputError

from .benchmark import Benchmark, label, merge_protocols
from .metrics import map_at_k, recall_at_k, restrict, soft_recall_at_k, subset_recall_at_k
from .rankings import (
    Rankings,
    ranked_lists,
    read_rankings,
    short_lists,
    subset_lists,
    subset_members,
)

# {"R@10": 36.04, ...} in percent; CIRCO's has {"semantic_mAP@10": {aspect: value}}, too.
Metrics = dict[str, Any]


def score_rankings(
    benchmark: Benchmark, rankings: Rankings, subset_rankings: Rankings | None = None
) -> Metrics:
    """Return the official metrics of a benchmark in percent.

    Args:
        benchmark: what was ranked.
        rankings: for each of the Q queries image ids, best first.
        subset_rankings: CIRR: the same for the image sets; without them the sets are ranked by the
            full lists.

    Raises:
        InputError: a missing or unknown query, an image twice in a list or not in the gallery, a
            list too short for the largest k (other than for CIRCO), or queries without published
            targets.

    Example:
        >>> score_rankings(benchmark, read_rankings("rankings.json.gz", benchmark))
        {'R@10': 36.04, 'R@50': 58.65}
    """
    for record in benchmark.records:
        # test splits have no published targets
        if not record.targets:
            raise InputError(
                f"{label(benchmark)}: query {record.id!r} has no published target; use the test server"
            )
    # the lists in the order of the records, checked
    lists = ranked_lists(benchmark, rankings)
    # the two datasets with metrics of their own
    if benchmark.name == "circo":
        return circo_metrics(benchmark, lists)
    if benchmark.name == "cirr":
        return cirr_metrics(benchmark, lists, subset_rankings)
    if subset_rankings is not None:
        raise InputError(f"{benchmark.name} has no subsets; subset rankings belong to cirr")
    targets = [record.targets for record in benchmark.records]
    # all others: recall of any target
    return {f"R@{k}": recall_at_k(lists, targets, k) for k in benchmark.ks}


def cirr_metrics(
    benchmark: Benchmark, lists: Sequence[Sequence[str]], subset_rankings: Rankings | None
) -> Metrics:
    """Return CIRR's R@k and, if the image sets are ranked, Rsub@k and Avg = (R@5 + Rsub@1) / 2.

    Args:
        benchmark: CIRR, with graded labels where they are to be used.
        lists: Q checked rankings of the gallery.
        subset_rankings: rankings of the image sets; without them, `lists` are used if each holds
            its complete set.
    """
    # over the gallery
    metrics = {f"R@{k}": _cirr_recall(benchmark, lists, k) for k in benchmark.ks}
    subsets = _ranked_subsets(benchmark, lists, subset_rankings)
    if subsets is None:
        return metrics
    # over the image sets
    for k in (1, 2, 3):
        metrics[f"Rsub@{k}"] = _cirr_subset_recall(benchmark, subsets, k)
    metrics["Avg"] = (metrics["R@5"] + metrics["Rsub@1"]) / 2
    return metrics


def _cirr_recall(benchmark: Benchmark, lists: Sequence[Sequence[str]], k: int) -> float:
    """Return R@k of the published target, or of the graded labels if the benchmark has them."""
    if benchmark.weights is None:
        return recall_at_k(lists, [record.targets for record in benchmark.records], k)
    weights = [benchmark.weights[record.id] for record in benchmark.records]
    return soft_recall_at_k(lists, weights, k)


def _cirr_subset_recall(benchmark: Benchmark, subsets: Sequence[Sequence[str]], k: int) -> float:
    """Return Rsub@k of rankings of the image sets, by the same labels as `_cirr_recall`."""
    if benchmark.weights is not None:
        return _cirr_recall(benchmark, subsets, k)
    targets = [record.targets for record in benchmark.records]
    members = [subset_members(record) for record in benchmark.records]
    return subset_recall_at_k(subsets, targets, members, k)


def _ranked_subsets(
    benchmark: Benchmark, lists: Sequence[Sequence[str]], subset_rankings: Rankings | None
) -> list[list[str]] | None:
    """Return the ranking of each query's image set; None if neither file nor full lists have it."""
    if subset_rankings is not None:
        return subset_lists(benchmark, subset_rankings)
    members = [subset_members(record) for record in benchmark.records]
    # lists that were cut lack some members
    for some, ranking in zip(members, lists, strict=True):
        if not set(some) <= set(ranking):
            return None
    return restrict(lists, members)


def circo_metrics(benchmark: Benchmark, lists: Sequence[Sequence[str]]) -> Metrics:
    """Return CIRCO's mAP@k of all targets, R@k of the first one, and mAP@10 by semantic aspect."""
    records = benchmark.records
    targets = [record.targets for record in records]
    first_targets = [wanted[:1] for wanted in targets]
    # over all targets, then of the first one
    metrics: Metrics = {}
    for k in benchmark.ks:
        metrics[f"mAP@{k}"] = map_at_k(lists, targets, k)
    for k in benchmark.ks:
        metrics[f"R@{k}"] = recall_at_k(lists, first_targets, k)

    # a query may have several aspects, and counts for each of them
    by_aspect: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        for aspect in (benchmark.aspects or {}).get(record.id, ()):
            by_aspect.setdefault(aspect, []).append(index)
    semantic = {}
    for aspect, members in sorted(by_aspect.items()):
        some_lists = [lists[index] for index in members]
        some_targets = [targets[index] for index in members]
        semantic[aspect] = map_at_k(some_lists, some_targets, 10)
    metrics["semantic_mAP@10"] = semantic
    return metrics


def mean_of_categories(
    metrics: Mapping[str, Mapping[str, float]],
) -> dict[str, Mapping[str, float]]:
    """Return {category: metrics} with "average", the unweighted mean over the categories.

    This is the mean that papers report. Where R@10 and R@50 are the only metrics (FashionIQ), the
    average has their mean, "Avg", too.
    """
    first = next(iter(metrics.values()))
    # every category counts the same, whatever its number of queries
    average: dict[str, float] = {}
    for name in first:
        average[name] = sum(values[name] for values in metrics.values()) / len(metrics)
    if set(average) == {"R@10", "R@50"}:
        average["Avg"] = (average["R@10"] + average["R@50"]) / 2
    return {**metrics, "average": average}


# ---- files of rankings


def rankings_file(path: str | Path, benchmark: Benchmark, alone: bool) -> Path:
    """Return the rankings file of one benchmark.

    Args:
        path: the file, or a folder of files `<benchmark>.<category>.<split>.json[.gz]`.
        benchmark: what was ranked.
        alone: whether it is the only benchmark that is scored; several need a folder.
    """
    folder = Path(path)
    # one file for one benchmark
    if not folder.is_dir():
        if not alone:
            raise InputError(
                f"{path} is not a folder; without --category give a folder with the rankings of all categories"
            )
        return folder
    # a file for each in a folder
    stem = ".".join(filter(None, (benchmark.name, benchmark.category, benchmark.split)))
    for file in (folder / f"{stem}.json", folder / f"{stem}.json.gz"):
        if file.is_file():
            return file
    raise InputError(f"no rankings in {path}; looked for {stem}.json, {stem}.json.gz")


def score_file(
    benchmark: Benchmark, file: str | Path, subset_file: str | Path | None = None
) -> dict[str, dict]:
    """Return {"metrics", "protocol"} of a rankings file; the protocol counts its short lists."""
    rankings = read_rankings(file, benchmark)
    subsets = None
    if subset_file:
        subsets = read_rankings(subset_file, benchmark, "recall_subset")
    metrics = score_rankings(benchmark, rankings, subsets)
    protocol = benchmark.protocol | {"short_lists": short_lists(benchmark, rankings)}
    return {"metrics": metrics, "protocol": protocol}


def combine_scores(
    benchmarks: Sequence[Benchmark], scores: Sequence[dict[str, dict]]
) -> dict[str, dict]:
    """Return one {"metrics", "protocol"} of several categories, with their mean."""
    if len(scores) == 1:
        return scores[0]
    names = [benchmark.category for benchmark in benchmarks]
    metrics = {str(name): score["metrics"] for name, score in zip(names, scores, strict=True)}
    return {
        "metrics": mean_of_categories(metrics),
        "protocol": merge_protocols(names, [score["protocol"] for score in scores]),
    }
