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
from cir_cot.outputs import RESULTS, claim, finish
from cir_cot.storage import written


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
    it is, they are complete. Files of anybody else are replaced with `overwrite` only: see `cir_cot.outputs`.
    """
    folder = Path(folder)
    names = result_files([result.benchmark for result in results])
    done = [RESULTS]
    with written(folder):
        # results.json goes first and comes last.
        claim(folder, names, overwrite)
        for result in results:
            done += _save_rows(result, folder, f"{result.name}." if len(results) > 1 else "")
        write_text_atomic(
            folder / RESULTS, json.dumps(summary(results), indent=1, ensure_ascii=False) + "\n"
        )
        finish(folder, names, done)


def _save_rows(result: Result, folder: Path, stem: str) -> list[str]:
    """Write rankings, and subset rankings and chains where there are some -> the names of the files."""
    names = [f"{stem}json.gz" if stem else "rankings.json.gz"]
    write_gzip(folder / names[0], result.rankings)
    if result.subset_rankings is not None:
        names.append(f"{stem}subset.json.gz" if stem else "subset_rankings.json.gz")
        write_gzip(folder / names[-1], result.subset_rankings)
    if any(result.explanations.values()):
        names.append(f"{stem}chains.jsonl")
        rows = [
            {"id": k, "explanation": v, "flag": result.flags[k]}
            for k, v in result.explanations.items()
        ]
        write_text_atomic(
            folder / names[-1], "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        )
    return names


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
