"""Find the adaptive reading's threshold on validation queries: recall against cost of chains."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cir_cot.cli import run
from cir_cot.data import load_benchmark
from cir_cot.data.benchmark import Benchmark
from cir_cot.errors import InputError
from cir_cot.evaluation.calibration import calibrate, curve_table
from cir_cot.evaluation.chain_quality import calibrated
from cir_cot.evaluation.evaluate import check_pictures
from cir_cot.evaluation.tables import text_table
from cir_cot.files import write_text_atomic
from cir_cot.options import (
    add_batch_size,
    add_category,
    add_dataset,
    add_device,
    add_dtype,
    add_json,
    add_model,
    add_out,
    add_overwrite,
    add_pixels,
    add_query_sample,
    add_seed,
    command_parser,
    loading_options,
)
from cir_cot.provenance import git_state, package_versions
from cir_cot.retriever import SETTINGS_FILE, read_settings

if TYPE_CHECKING:  # it imports torch and peft, which are loaded after the arguments are checked
    from cir_cot.heads.cot import CotRetriever


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `cir-cot calibrate`."""
    parser = command_parser("calibrate", __doc__)
    add_model(parser, "folder of a saved retriever that writes chains")
    add_dataset(parser, split="a validation split; never the split that you report")
    add_category(parser, default="none; several categories are refused")
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="metric to preserve, for example R@5 (default: the benchmark's first)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        metavar="P",
        help="percentage points of that metric to give up for cheaper queries (default 0)",
    )
    add_query_sample(parser)
    add_batch_size(parser)
    add_seed(parser, of="the query sample")
    add_device(parser)
    add_dtype(parser)
    add_pixels(parser)
    parser.add_argument(
        "--write", action="store_true", help="store the threshold in the checkpoint's settings"
    )
    add_out(parser, "JSON file for the curve", required=False, metavar="FILE")
    add_overwrite(parser, "replace the file of --out if it exists")
    add_json(parser, "the curve as JSON")
    return parser.parse_args(argv)


def write_threshold(folder: str, threshold: float) -> None:
    """Store the threshold in the checkpoint's retriever.json."""
    facts = read_settings(folder)
    facts["settings"]["threshold"] = threshold
    write_text_atomic(Path(folder) / SETTINGS_FILE, json.dumps(facts, indent=1) + "\n")


def main(argv: Sequence[str]) -> int:
    """Measure the curve, choose the threshold, print and write both."""
    args = parse(argv)
    benchmark = load_one_category(args)
    retriever = load_adaptive(args)
    curve, protocol = calibrate(
        retriever,
        benchmark,
        model=args.model,
        limit=args.limit,
        batch_size=args.batch_size,
        seed=args.seed,
        progress=True,
    )
    # Choose the cheapest threshold whose metric is within the tolerance of the best.
    names = list(curve[0]["metrics"])
    metric = args.metric or names[0]
    if metric not in names:
        raise InputError(f"metric {metric!r} is not one of {', '.join(names)}")
    best = calibrated(curve, metric, args.tolerance)
    # Print and write it.
    share = f"chains for {best['chains']:.1f} % of the queries"
    lines = f"{text_table(curve_table(curve))}\nthreshold {best['threshold']:.6g}: {share}"
    print(lines, file=sys.stderr if args.json else sys.stdout)
    if args.write:
        write_threshold(args.model, best["threshold"])
    answer = {
        "chosen": best,
        "metric": metric,
        "tolerance": args.tolerance,
        "curve": curve,
        "protocol": protocol,
        "git": git_state(),
        "versions": package_versions(),
    }
    if args.out:
        write_text_atomic(args.out, json.dumps(answer, indent=1) + "\n")
    if args.json:
        print(json.dumps(answer))
    return 0


def load_one_category(args: argparse.Namespace) -> Benchmark:
    """Load the benchmark and check its pictures and --out before a model is loaded."""
    if args.write and not Path(args.model).is_dir():
        raise InputError(f"{args.model}: no folder here; --write stores the threshold in a folder")
    if args.out and os.path.lexists(args.out) and not args.overwrite:
        raise InputError(
            f"{args.out} is there already; give another --out, or --overwrite to replace it"
        )
    (benchmark, *others) = load_benchmark(args.benchmark, args.root, args.split, args.category)
    if others:
        raise InputError(f"{args.benchmark} has several categories; name one with --category")
    check_pictures(benchmark, benchmark.images())
    return benchmark


def load_adaptive(args: argparse.Namespace) -> "CotRetriever":
    """Load a retriever that writes chains; InputError for any other."""
    from cir_cot.heads import load_retriever
    from cir_cot.heads.cot import CotRetriever
    from cir_cot.heads.loaded import loaded_line

    retriever = load_retriever(args.model, **loading_options(args))
    print(loaded_line(retriever, args.model), file=sys.stderr)
    if not isinstance(retriever, CotRetriever):
        kind = retriever.kind
        raise InputError(
            f"{args.model}: a {kind!r} retriever writes no chains; there is nothing to decide"
        )
    return retriever


if __name__ == "__main__":
    run(main)
