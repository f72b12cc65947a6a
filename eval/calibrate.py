"""Find the adaptive reading's threshold on validation queries: recall against cost of chains.

With --learn SPLIT the decision itself is learned first, from what the model's chains were worth on
that split. Without it the model's untrained preference for ending at once decides.
"""

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
from cir_cot.evaluation.calibration import calibrate, curve_table, evaluate_both, utility
from cir_cot.evaluation.chain_quality import calibrated
from cir_cot.evaluation.evaluate import check_pictures
from cir_cot.evaluation.results import Result
from cir_cot.evaluation.tables import text_table
from cir_cot.files import write_bytes_atomic, write_text_atomic
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
    positive,
)
from cir_cot.provenance import git_state, package_versions
from cir_cot.retriever import HEAD_FILE, SETTINGS_FILE, read_settings

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
    parser.add_argument(
        "--learn",
        metavar="SPLIT",
        help="learn the decision on this split first: which queries a chain brings forward "
        "(default: the model's own preference)",
    )
    parser.add_argument(
        "--learn-limit",
        type=positive,
        metavar="N",
        help="queries of that split to learn from (default: all)",
    )
    add_batch_size(parser)
    add_seed(parser, of="the query sample")
    add_device(parser)
    add_dtype(parser)
    add_pixels(parser)
    parser.add_argument(
        "--write",
        action="store_true",
        help="store the threshold, and what was learned, in the checkpoint",
    )
    add_out(parser, "JSON file for the curve", required=False, metavar="FILE")
    add_overwrite(parser, "replace the file of --out if it exists")
    add_json(parser, "the curve as JSON")
    # What argparse does not check.
    args = parser.parse_args(argv)
    if args.learn == args.split:
        raise InputError(
            f"--learn {args.learn}: the threshold is chosen on this split; learn on another one"
        )
    if args.learn_limit and not args.learn:
        raise InputError("--learn-limit needs --learn")
    return args


def write_decision(folder: str, retriever: "CotRetriever", threshold: float) -> None:
    """Store the threshold in the checkpoint's retriever.json, and a gate in its head.safetensors."""
    import safetensors.torch

    from cir_cot.models.loading import load_tensors

    facts = read_settings(folder)
    facts["settings"]["threshold"] = threshold
    # The weights first: a gate that the settings don't name is left out when the head is loaded.
    if retriever.gate is not None:
        facts["settings"]["gate"] = True
        path = Path(folder) / HEAD_FILE
        gate = {f"gate.{name}": value.cpu() for name, value in retriever.gate.state_dict().items()}
        write_bytes_atomic(path, safetensors.torch.save(load_tensors(path) | gate))
    write_text_atomic(Path(folder) / SETTINGS_FILE, json.dumps(facts, indent=1) + "\n")


def read_both(
    args: argparse.Namespace, retriever: "CotRetriever", benchmark: Benchmark, limit: int | None
) -> list[Result]:
    """Evaluate with chains and without."""
    return evaluate_both(
        retriever,
        benchmark,
        model=args.model,
        limit=limit,
        batch_size=args.batch_size,
        seed=args.seed,
        progress=True,
    )


def learn(args: argparse.Namespace, retriever: "CotRetriever", benchmark: Benchmark) -> dict:
    """Give the retriever a gate that is fitted to what chains were worth on a split; return the protocol."""
    from cir_cot.heads.adaptive import fit_gate

    full, fast = read_both(args, retriever, benchmark, args.learn_limit)
    found = utility(retriever, full, fast, args.batch_size)
    retriever.gate = fit_gate(found.states, found.needless).to(retriever.backbone.device)
    needless = int(found.needless.sum())
    print(
        f"{args.learn}: {needless} of {len(found.needless)} chains were needless", file=sys.stderr
    )
    return found.protocol | {"reading": "utility", "needless": needless}


def main(argv: Sequence[str]) -> int:
    """Measure the curve, choose the threshold, print and write both."""
    args = parse(argv)
    benchmark = load_one_category(args, args.split)
    taught = load_one_category(args, args.learn) if args.learn else None
    retriever = load_adaptive(args)
    learned = None if taught is None else learn(args, retriever, taught)
    full, fast = read_both(args, retriever, benchmark, args.limit)
    curve, protocol = calibrate(retriever, full, fast, args.batch_size)
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
        write_decision(args.model, retriever, best["threshold"])
    answer = {
        "chosen": best,
        "metric": metric,
        "tolerance": args.tolerance,
        "curve": curve,
        "protocol": protocol,
        "learned": learned,
        "git": git_state(),
        "versions": package_versions(),
    }
    if args.out:
        write_text_atomic(args.out, json.dumps(answer, indent=1) + "\n")
    if args.json:
        print(json.dumps(answer))
    return 0


def load_one_category(args: argparse.Namespace, split: str) -> Benchmark:
    """Load a split and check its pictures, and --out, before a model is loaded."""
    if args.write and not Path(args.model).is_dir():
        raise InputError(f"{args.model}: no folder here; --write stores the threshold in a folder")
    if args.out and os.path.lexists(args.out) and not args.overwrite:
        raise InputError(
            f"{args.out} is there already; give another --out, or --overwrite to replace it"
        )
    (benchmark, *others) = load_benchmark(args.benchmark, args.root, split, args.category)
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
