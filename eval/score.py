"""Score a rankings file by a benchmark's official protocol, from the annotation files alone."""

import argparse
import json
from collections.abc import Mapping, Sequence

from cir_cot.cli import run
from cir_cot.data import load_benchmark
from cir_cot.data.scoring import combine_scores, rankings_file, score_file
from cir_cot.options import (
    add_category,
    add_dataset,
    add_json,
    add_rankings,
    command_parser,
)
from cir_cot.protocol_options import add_variants, variants_of

ONE_LINE = 4  # metrics of a category that fit beside its name


def main(argv: Sequence[str]) -> int:
    """Print the metrics and the protocol as a table, or as one JSON object."""
    args = parse_arguments(argv)
    options = variants_of(args)
    benchmarks = load_benchmark(args.benchmark, args.root, args.split, args.category, **options)

    # look for all files before the first one is read
    alone = len(benchmarks) == 1
    files = [rankings_file(args.rankings, benchmark, alone) for benchmark in benchmarks]
    scores = []
    for benchmark, file in zip(benchmarks, files, strict=True):
        scores.append(score_file(benchmark, file, args.subset_rankings))
    result = combine_scores(benchmarks, scores)
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
    add_variants(parser, asks=False)
    add_json(parser)
    return parser.parse_args(argv)


def table(result: Mapping[str, dict]) -> str:
    """Return metrics, a line each or a row a category, and below them the protocol."""
    rows = result["metrics"]
    # the metrics
    lines = []
    for name, value in rows.items():
        if isinstance(value, dict):
            lines.append(category_row(name, value, max(map(len, rows))))
        else:
            lines.append(f"{name:8} {value:6.2f}")
    lines.append("")
    # a number means nothing without its protocol
    for key, value in result["protocol"].items():
        lines.append(f"{key}: {show(value)}")
    return "\n".join(lines)


def category_row(name: str, metrics: Mapping[str, float], width: int) -> str:
    """Return the metrics of one category beside its name, below each other where they are many."""
    keys = max(map(len, metrics))
    cells = [f"{key:{keys}} {number:6.2f}" for key, number in metrics.items()]
    separator = f"\n{'':{width}}  " if len(cells) > ONE_LINE else "   "
    return f"{name:{width}}  {separator.join(cells)}"


def show(value: object) -> str:
    """Return a value of the protocol as text."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(value)
    return str(value)


if __name__ == "__main__":
    run(main)
