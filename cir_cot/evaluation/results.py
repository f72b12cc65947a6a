"""The files of a measurement: results.json, rankings, chains; and the content of results.json."""

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cir_cot.data.benchmark import Benchmark
from cir_cot.data.scoring import mean_of_categories
from cir_cot.files import write_bytes_atomic, write_text_atomic
from cir_cot.images import ImageStore
from cir_cot.storage import written

from .results_folder import RESULTS, writing_results


def set_name(benchmark: Benchmark) -> str:
    """Name a measured set, e.g. "fashioniq.dress.val"; rankings of several categories are filed under it."""
    return ".".join(filter(None, (benchmark.name, benchmark.category, benchmark.split)))


@dataclass(frozen=True)
class Result:
    """Numbers, and all that is needed to check them: protocol, rankings with scores, chains. Keys are query ids.

    `choices` are those of QueryOutput, empty for a head that routes nothing.
    """

    benchmark: Benchmark  # its records are the queries that were asked
    images: ImageStore
    metrics: dict
    by_source: dict[str, dict]
    protocol: dict
    rankings: dict[str, list[str]]
    scores: dict[str, list[float]]
    explanations: dict[str, str]
    flags: dict[str, str]
    subset_rankings: dict[str, list[str]] | None = None
    choices: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name the measured set, e.g. "fashioniq.dress.val"; rankings of several categories are filed under it."""
        return set_name(self.benchmark)


def result_files(benchmarks: Sequence[Benchmark]) -> tuple[str, ...]:
    """Return the names of all files that `save_results` may write for one reading of these, results.json first."""
    if len(benchmarks) == 1:
        return (RESULTS, "rankings.json.gz", "subset_rankings.json.gz", "chains.jsonl")
    stems = [set_name(benchmark) for benchmark in benchmarks]
    return (
        RESULTS,
        *(
            f"{stem}.{end}"
            for stem in stems
            for end in ("json.gz", "subset.json.gz", "chains.jsonl")
        ),
    )


def save_results(results: Sequence[Result], folder: str | Path, overwrite: bool = False) -> None:
    """Write results.json, rankings and chains of one reading: one result, or one for each category of a benchmark.

    Files are those of `cir-cot score`: rankings.json.gz (and subset_rankings.json.gz), or, of several categories,
    `<benchmark>.<category>.<split>.json.gz`. What an earlier run left of them goes; results.json comes last, so where
    it is, they are complete. Files of anybody else are replaced with `overwrite` only: see `results_folder`.
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
        write_text_atomic(
            folder / RESULTS, json.dumps(summary(results), indent=1, ensure_ascii=False) + "\n"
        )


def _row_files(result: Result, stem: str) -> dict[str, str]:
    """Return {content: file name} of the rankings, and of subset rankings and chains where there are some."""
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
    if "chains" in files:
        lines = []
        for query, explanation in result.explanations.items():
            row = {"id": query, "explanation": explanation, "flag": result.flags[query]}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        write_text_atomic(folder / files["chains"], "".join(lines))


def summary(results: Sequence[Result]) -> dict:
    """The content of results.json: metrics, by_source and protocol.

    Of several categories: metrics by category and their mean, and in the protocol, as `cir-cot score` has it, what
    differs between them by category.
    """
    if len(results) == 1:
        (only,) = results
        return {"metrics": only.metrics, "by_source": only.by_source, "protocol": only.protocol}
    names, protocol = [result.benchmark.category for result in results], {}
    for key in results[0].protocol:
        values = [result.protocol[key] for result in results]
        protocol[key] = (
            values[0]
            if values.count(values[0]) == len(values)
            else dict(zip(names, values, strict=True))
        )
    return {
        "metrics": mean_of_categories(
            {result.benchmark.category: result.metrics for result in results}
        ),
        "by_source": {result.benchmark.category: result.by_source for result in results},
        "protocol": protocol | {"category": names},
    }


def write_gzip(path: Path, content: dict) -> None:
    """Write JSON, compressed, the same bytes for the same content."""
    write_bytes_atomic(path, gzip.compress(json.dumps(content).encode(), mtime=0))
