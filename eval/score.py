"""Score a rankings file by a benchmark's official protocol, from the annotation files alone."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from cir_cot.cli import run
from cir_cot.data import load_benchmark
from cir_cot.data.benchmark import Benchmark
from cir_cot.data.scoring import mean_of_categories, read_rankings, score_rankings, short_lists
from cir_cot.errors import InputError
from cir_cot.options import (
    add_category,
    add_dataset,
    add_json,
    add_rankings,
    add_reference,
    command_parser,
)


def main(argv: Sequence[str]) -> int:
    """Print the metrics and the protocol as a table, or as one JSON object."""
    args = parse_arguments(argv)
    options = {
        name: getattr(args, name) for name in ("gallery", "reference") if getattr(args, name)
    }
    benchmarks = load_benchmark(args.benchmark, args.root, args.split, args.category, **options)
    files = [
        rankings_file(args.rankings, benchmark, alone=len(benchmarks) == 1)
        for benchmark in benchmarks
    ]
    scored = [
        score(b, file, args.subset_rankings) for b, file in zip(benchmarks, files, strict=True)
    ]
    result = combine(benchmarks, scored)
    print(json.dumps(result) if args.json else table(result))
    return 0


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `cir-cot score`."""
    parser = command_parser("score", __doc__)
    add_dataset(parser)
    add_category(parser)
    add_rankings(
        parser,
        "rankings.json[.gz]; for all categories a folder of <benchmark>.<category>.<split>.json[.gz]",
    )
    parser.add_argument(
        "--gallery",
        choices=("original", "val-union"),
        help="FashionIQ only: original split or the images in use, VAL (default: original)",
    )
    add_reference(parser)
    add_json(parser)
    return parser.parse_args(argv)


def rankings_file(path: str, benchmark: Benchmark, alone: bool) -> Path:
    """The benchmark's rankings file: `path` itself, or the file named after the benchmark in the folder `path`."""
    folder = Path(path)
    if not folder.is_dir():
        if not alone:
            raise InputError(
                f"{path} is no folder; without --category the rankings of all categories are a folder"
            )
        return folder
    stem = ".".join(filter(None, (benchmark.name, benchmark.category, benchmark.split)))
    for file in (folder / f"{stem}.json", folder / f"{stem}.json.gz"):
        if file.is_file():
            return file
    raise InputError(f"no rankings in {path}; looked for {stem}.json, {stem}.json.gz")


def score(benchmark: Benchmark, file: Path, subset_file: str | None) -> dict:
    """{"metrics", "protocol"} of one benchmark."""
    rankings = read_rankings(file, benchmark)
    subsets = read_rankings(subset_file, benchmark, "recall_subset") if subset_file else None
    metrics = score_rankings(benchmark, rankings, subsets)
    return {
        "metrics": metrics,
        "protocol": benchmark.protocol | {"short_lists": short_lists(benchmark, rankings)},
    }


def combine(benchmarks: list[Benchmark], results: list[dict]) -> dict:
    """One result of all categories: metrics by category and their mean; what differs in the protocol by category."""
    if len(results) == 1:
        return results[0]
    names = [benchmark.category for benchmark in benchmarks]
    metrics = mean_of_categories(
        {name: result["metrics"] for name, result in zip(names, results, strict=True)}
    )
    protocol = {}
    for key in results[0]["protocol"]:
        values = [result["protocol"][key] for result in results]
        protocol[key] = (
            values[0]
            if values.count(values[0]) == len(values)
            else dict(zip(names, values, strict=True))
        )
    return {"metrics": metrics, "protocol": protocol | {"category": names}}


def table(result: dict) -> str:
    """Metrics a line, or a row a category; below them the protocol, without which no number means anything."""
    rows = result["metrics"]
    lines = []
    for name, value in rows.items():
        if isinstance(value, dict):
            width = max(map(len, rows))
            keys = max(map(len, value))
            cells = [f"{key:{keys}} {number:6.2f}" for key, number in value.items()]
            separator = f"\n{'':{width}}  " if len(cells) > 4 else "   "
            lines.append(f"{name:{width}}  {separator.join(cells)}")
        else:
            lines.append(f"{name:8} {value:6.2f}")
    return "\n".join(
        [*lines, "", *(f"{key}: {show(value)}" for key, value in result["protocol"].items())]
    )


def show(value: object) -> str:
    """A value of the protocol in words."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(value) if isinstance(value, list) else str(value)


if __name__ == "__main__":
    run(main)
