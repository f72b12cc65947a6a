"""Find the adaptive reading's threshold on validation queries: recall against what the chains cost."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cir_cot.cli import run
from cir_cot.data import load_benchmark
from cir_cot.errors import InputError
from cir_cot.evaluation.chain_quality import adaptive_curve, calibrated
from cir_cot.evaluation.encode import encode_gallery, load_batches
from cir_cot.evaluation.evaluate import check_pictures, evaluate
from cir_cot.evaluation.tables import Table, text_table
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
    add_query_sample,
    add_seed,
    command_parser,
)
from cir_cot.provenance import git_state, package_versions
from cir_cot.retriever import SETTINGS_FILE, inference, read_settings


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
    parser.add_argument(
        "--write", action="store_true", help="store the threshold in the checkpoint's settings"
    )
    add_out(parser, "JSON file for the curve", required=False, metavar="FILE")
    add_overwrite(parser, "replace the file of --out if it exists")
    add_json(parser, "the curve as JSON")
    return parser.parse_args(argv)


def measure(retriever, benchmark, args: argparse.Namespace) -> tuple[list[dict], dict]:
    """Return the curve, and the protocol of the two readings that it mixes."""
    images = benchmark.images()
    gallery = encode_gallery(retriever, benchmark.gallery, images, args.batch_size, True)
    settings = {
        "gallery": gallery,
        "limit": args.limit,
        "batch_size": args.batch_size,
        "seed": args.seed,
    }
    settings |= {"model": args.model, "progress": True}
    full, fast = (
        evaluate(retriever, benchmark, images, reading=name, **settings)
        for name in ("full", "fast")
    )
    records, encoder = full.benchmark.records, retriever.encoder()
    stop_confidence = []
    with inference(retriever):
        for pictures in load_batches(
            [record.reference for record in records], images, args.batch_size
        ):
            texts = [
                record.text
                for record in records[len(stop_confidence) : len(stop_confidence) + len(pictures)]
            ]
            stop_confidence += retriever.stop_confidence(pictures, texts).tolist()
    ids = [record.id for record in records]
    written = encoder.plain_ids([full.explanations[name] for name in ids])
    curve = adaptive_curve(
        full.benchmark,
        dict(zip(ids, stop_confidence, strict=True)),
        (full.rankings, full.subset_rankings),
        (fast.rankings, fast.subset_rankings),
        {name: len(tokens) for name, tokens in zip(ids, written, strict=True)},
    )
    return curve, full.protocol | {"reading": "adaptive"}


def write_threshold(folder: str, threshold: float) -> None:
    """Put the threshold into retriever.json."""
    facts = read_settings(folder)
    facts["settings"]["threshold"] = threshold
    write_text_atomic(Path(folder) / SETTINGS_FILE, json.dumps(facts, indent=1) + "\n")


def main(argv: Sequence[str]) -> int:
    """Measure the curve, choose the threshold, print and write both."""
    args = parse(argv)
    if args.out and os.path.lexists(args.out) and not args.overwrite:
        raise InputError(
            f"{args.out} is there already; give another --out, or --overwrite to replace it"
        )
    (benchmark, *others) = load_benchmark(args.benchmark, args.root, args.split, args.category)
    if others:
        raise InputError(f"{args.benchmark} has several categories; name one with --category")
    check_pictures(benchmark, benchmark.images())
    from cir_cot.heads import load_retriever
    from cir_cot.heads.cot import CotRetriever

    retriever = load_retriever(args.model, device=args.device, dtype=args.dtype)
    if not isinstance(retriever, CotRetriever):
        raise InputError(
            f"{args.model}: a {retriever.kind!r} retriever writes no chains; there is nothing to decide"
        )
    curve, protocol = measure(retriever, benchmark, args)
    names = list(curve[0]["metrics"])
    metric = args.metric or names[0]
    if metric not in names:
        raise InputError(f"metric {metric!r} is not one of {', '.join(names)}")
    best = calibrated(curve, metric, args.tolerance)
    answer = {
        "chosen": best,
        "metric": metric,
        "tolerance": args.tolerance,
        "curve": curve,
        "protocol": protocol,
    }
    answer |= {"git": git_state(), "versions": package_versions()}
    rows = [
        [
            f"{p['threshold']:.4g}",
            round(p["chains"], 1),
            round(p["tokens"], 1),
            *(round(p["metrics"][n], 2) for n in names),
        ]
        for p in curve
    ]
    table = Table("Recall against cost", ["threshold", "chains %", "tokens a query", *names], rows)
    words = f"threshold {best['threshold']:.6g}: chains for {best['chains']:.1f} % of the queries"
    print(f"{text_table(table)}\n{words}", file=sys.stderr if args.json else sys.stdout)
    if args.write:
        write_threshold(args.model, best["threshold"])
    if args.out:
        write_text_atomic(args.out, json.dumps(answer, indent=1) + "\n")
    if args.json:
        print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    run(main)
