"""Write the files of a measurement (results.json, rankings, chains) and compose results.json."""

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from cir_cot.data.benchmark import Benchmark, merge_protocols
from cir_cot.data.scoring import mean_of_categories
from cir_cot.files import write_bytes_atomic, write_text_atomic
from cir_cot.images import ImageStore
from cir_cot.storage import written

from .results_folder import RESULTS, writing_results


def set_name(benchmark: Benchmark) -> str:
    """Name a measured set, e.g. "fashioniq.dress.val"; names of files begin with it."""
    return ".".join(filter(None, (benchmark.name, benchmark.category, benchmark.split)))


@dataclass(frozen=True)
class Result:
    """Metrics of one measured set, and what is needed to check them. Keys are query ids.

    Attributes:
        benchmark: Its records are the queries that were evaluated.
        images: The benchmark's pictures, for a report.
        metrics: Metrics in percent; {} where no answers are published.
        by_source: Metrics by source of the records; {} where all share one.
        protocol: What the metrics depend on.
        rankings: Image ids, best first.
        scores: Score of each ranked image.
        explanations: Chain that the model wrote, "" without one.
        flags: What is wrong with the chain, "" for nothing.
        subset_rankings: Rankings of each query's image set (CIRR).
        routing: Share of each expert or prompt; {} for a head that does not route.
        intervals: 95 % bootstrap intervals over queries of the recalls that are means of hits.
    """

    benchmark: Benchmark
    images: ImageStore
    metrics: dict
    by_source: dict[str, dict]
    protocol: dict
    rankings: dict[str, list[str]]
    scores: dict[str, list[float]]
    explanations: dict[str, str]
    flags: dict[str, str]
    subset_rankings: dict[str, list[str]] | None = None
    routing: dict[str, dict[str, float]] = field(default_factory=dict)
    intervals: dict[str, list[float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the measured set, e.g. "fashioniq.dress.val"."""
        return set_name(self.benchmark)

    def to_pandas(self) -> Any:
        """Return a data frame of the queries: text, targets, rank of the best target, first answer, chain.

        A query none of whose targets is ranked, or known, has no rank. Needs pandas.
        """
        import pandas  # a second when it is first used

        rows = []
        for record in self.benchmark.records:
            if record.id not in self.rankings:
                continue
            ranking = self.rankings[record.id]
            ranks = [ranking.index(name) + 1 for name in record.targets if name in ranking]
            rows.append(
                {
                    "id": record.id,
                    "reference": record.reference,
                    "text": record.text,
                    "targets": list(record.targets),
                    "rank": min(ranks, default=None),
                    "first": ranking[0] if ranking else None,
                    "chain": self.explanations.get(record.id, ""),
                }
            )
        return pandas.DataFrame(rows).set_index("id")

    def _repr_html_(self) -> str:
        """Return the metrics and their protocol as a table, as a notebook shows them."""
        rows = ""
        for name, value in (*self.metrics.items(), *self.protocol.items()):
            shown = f"{value:.2f}" if isinstance(value, float) else str(value)
            rows += f"<tr><th>{escape(str(name))}</th><td>{escape(shown)}</td></tr>"
        return f"<table><caption>{escape(self.name)}</caption>{rows}</table>"


def result_files(benchmarks: Sequence[Benchmark]) -> tuple[str, ...]:
    """Return the names of all files that `save_results` may write, results.json first."""
    if len(benchmarks) == 1:
        return (RESULTS, "rankings.json.gz", "subset_rankings.json.gz", "chains.jsonl")
    # The files of each category are named after it.
    names = [RESULTS]
    for benchmark in benchmarks:
        stem = set_name(benchmark)
        names += [f"{stem}.json.gz", f"{stem}.subset.json.gz", f"{stem}.chains.jsonl"]
    return tuple(names)


def save_results(results: Sequence[Result], folder: str | Path, overwrite: bool = False) -> None:
    """Write results.json, rankings and chains of one reading.

    `cir-cot score` reads the rankings: rankings.json.gz (and subset_rankings.json.gz), or, for
    several categories, `<benchmark>.<category>.<split>.json.gz`. Files of an earlier measurement
    are removed first, and results.json is written last: where it exists, the others are complete.

    Args:
        results: One result, or one for each category of a benchmark.
        folder: Folder to write, created if needed.
        overwrite: Also replace files that no measurement wrote; see `results_folder`.
    """
    folder = Path(folder)
    names = result_files([result.benchmark for result in results])
    several = len(results) > 1
    files = [_row_files(result, f"{result.name}." if several else "") for result in results]
    written_names = [RESULTS]
    for names_of_one in files:
        written_names += names_of_one.values()

    # results.json is removed first and written last
    with written(folder), writing_results(folder, written_names, names, overwrite):
        for result, names_of_one in zip(results, files, strict=True):
            _save_rows(result, folder, names_of_one)
        content = json.dumps(results_json(results), indent=1, ensure_ascii=False)
        write_text_atomic(folder / RESULTS, content + "\n")


def _row_files(result: Result, stem: str) -> dict[str, str]:
    """Return {content: file name} of rankings, and of subset rankings and chains if any."""
    files = {"rankings": f"{stem}json.gz" if stem else "rankings.json.gz"}
    if result.subset_rankings is not None:
        files["subset"] = f"{stem}subset.json.gz" if stem else "subset_rankings.json.gz"
    if any(result.explanations.values()):
        files["chains"] = f"{stem}chains.jsonl"
    return files


def _save_rows(result: Result, folder: Path, files: dict[str, str]) -> None:
    """Write the files that `_row_files` names."""
    write_gzip(folder / files["rankings"], result.rankings)
    if result.subset_rankings is not None:
        write_gzip(folder / files["subset"], result.subset_rankings)
    # A line for each query, also where the model wrote no chain.
    if "chains" in files:
        lines = []
        for query, explanation in result.explanations.items():
            row = {"id": query, "explanation": explanation, "flag": result.flags[query]}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        write_text_atomic(folder / files["chains"], "".join(lines))


def results_json(results: Sequence[Result]) -> dict:
    """Return the content of results.json: metrics, by_source and protocol.

    For several categories: metrics by category with their mean; a value of the protocol that
    differs between categories is given by category, as `cir-cot score` does.
    """
    # A single result needs no categories.
    if len(results) == 1:
        (only,) = results
        return {
            "metrics": only.metrics,
            "intervals": only.intervals,
            "by_source": only.by_source,
            "protocol": only.protocol,
        }
    names = [result.benchmark.category or result.name for result in results]
    metrics = {name: result.metrics for name, result in zip(names, results, strict=True)}
    by_source = {name: result.by_source for name, result in zip(names, results, strict=True)}
    return {
        "metrics": mean_of_categories(metrics),
        "intervals": {name: result.intervals for name, result in zip(names, results, strict=True)},
        "by_source": by_source,
        "protocol": merge_protocols(names, [result.protocol for result in results]),
    }


def write_gzip(path: Path, content: dict) -> None:
    """Write compressed JSON; the same content gives the same bytes."""
    # gzip would store the time of writing.
    write_bytes_atomic(path, gzip.compress(json.dumps(content).encode(), mtime=0))
