"""Mine hard negatives: pictures that a retriever ranks near or above the target of each training query.

Runs on several processes under `accelerate launch`, and continues after an interruption: rows that are encoded are kept
in OUT.parts until the file is written.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cir_cot.cli import run
from cir_cot.data import load_benchmark
from cir_cot.data.benchmark import Benchmark
from cir_cot.data.negative_files import Negatives, protocol_file, write_negatives
from cir_cot.errors import InputError
from cir_cot.evaluation.encode import encode_gallery, encode_queries, queue_size
from cir_cot.evaluation.encoded_rows import begin_encoding, results_lock, rows_of
from cir_cot.evaluation.evaluate import check_pictures, reading_conditions
from cir_cot.evaluation.mining import mine
from cir_cot.evaluation.readings import record_encoder, with_chains
from cir_cot.options import (
    add_annotated_chains,
    add_batch_size,
    add_category,
    add_dataset,
    add_device,
    add_dtype,
    add_gallery_index,
    add_model,
    add_overwrite,
    add_pixels,
    command_parser,
    loading_options,
)
from cir_cot.ranks import Ranks
from cir_cot.retriever import READINGS, inference
from cir_cot.training.dataset import with_common_targets


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `cir-cot mine`."""
    parser = command_parser("mine", __doc__)
    add_model(parser)
    add_dataset(parser)
    add_category(parser)
    parser.add_argument(
        "--reading",
        choices=list(READINGS),
        help="how queries are encoded; oracle: with the annotated chains that training reads "
        "(default: as the checkpoint's settings say)",
    )
    add_annotated_chains(parser)
    parser.add_argument(
        "--per-query", type=int, default=16, metavar="N", help="negatives of a query (default 16)"
    )
    parser.add_argument(
        "--margin",
        type=float,
        default=0.1,
        metavar="X",
        help="leave out pictures that score above the target by more than this cosine: they are "
        "probably right answers (default 0.1)",
    )
    add_gallery_index(parser)
    add_batch_size(parser)
    add_device(parser)
    add_dtype(parser)
    add_pixels(parser)
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="file of negatives, ending in .jsonl"
    )
    add_overwrite(parser)
    args = parser.parse_args(argv)
    if args.per_query < 1:
        raise InputError(f"--per-query {args.per_query} is not at least 1")
    if not args.out.endswith(".jsonl"):
        raise InputError(f"--out {args.out}: give a file name that ends in .jsonl")
    return args


def load_queries(args: argparse.Namespace) -> list[Benchmark]:
    """Load the training queries, with all targets that are known to be right."""
    benchmarks = load_benchmark(args.benchmark, args.root, args.split, args.category)
    benchmarks = with_chains(benchmarks, args.chains)
    joined = []
    for benchmark in benchmarks:
        check_pictures(benchmark, benchmark.images())
        if any(not record.targets for record in benchmark.records):
            raise InputError(
                f"{args.root}: {args.split} publishes no targets; mine a training split"
            )
        joined.append(replace(benchmark, records=with_common_targets(benchmark.records)))
    return joined


def main(argv: Sequence[str]) -> int:
    """Encode, mine and write the file."""
    args = parse(argv)
    out = Path(args.out)
    for path in (out, protocol_file(out)):
        if path.exists() and not args.overwrite:
            raise InputError(f"{path} is there already; give another --out, or --overwrite")
    benchmarks = load_queries(args)
    # Encode together with the other processes; the first one mines and writes.
    ranks = Ranks.launched(cpu=args.device == "cpu")
    folder = Path(f"{args.out}.parts")
    with results_lock(str(folder), ranks):
        mined, protocol = mine_all(benchmarks, args, folder, ranks)
        if ranks.first:
            write_negatives(out, mined, protocol)
    ranks.close()
    if ranks.first:
        shutil.rmtree(folder)
        count = sum(len(found.images) for found in mined.values())
        print(f"{len(mined)} queries, {count} negatives: {out}")
    return 0


def mine_all(
    benchmarks: Sequence[Benchmark], args: argparse.Namespace, folder: Path, ranks: Ranks
) -> tuple[dict[str, Negatives], dict]:
    """Encode and mine each benchmark -> negatives by query, and what they depend on."""
    from cir_cot.heads import load_retriever  # peft takes ten seconds: after the arguments' checks
    from cir_cot.heads.loaded import loaded_line
    from cir_cot.search.gallery_vectors import gallery_vectors

    retriever = load_retriever(args.model, **loading_options(args, ranks))
    if ranks.first:
        print(loaded_line(retriever, args.model), file=sys.stderr)
    encode = record_encoder(retriever, args.reading)
    encoding = begin_encoding(str(folder), retriever, benchmarks, 0, ranks)
    size = queue_size(retriever, args.batch_size)
    mined: dict[str, Negatives] = {}
    for benchmark in benchmarks:
        images = benchmark.images()
        rows = rows_of(encoding, "queries", args.reading or "own", benchmark.category)
        with inference(retriever):
            if args.index:
                gallery = gallery_vectors(args.index, retriever, benchmark.gallery, images)
            else:
                kept = rows_of(encoding, "gallery")
                names = benchmark.gallery
                gallery = encode_gallery(
                    retriever, names, images, args.batch_size, ranks.first, kept
                )
            output = encode_queries(benchmark.records, images, encode, size, ranks.first, rows)
        if ranks.first:
            found = mine(
                benchmark,
                output.embeddings,
                gallery,
                images.fingerprint,
                args.per_query,
                args.margin,
                progress=True,
            )
            mined |= found
    protocol = {
        "model": args.model,
        **{name: getattr(args, name) for name in ("benchmark", "split", "category", "index")},
        **reading_conditions(retriever, args.reading),
        "per_query": args.per_query,
        "margin": args.margin,
        "queries": len(mined),
    }
    return mined, protocol


if __name__ == "__main__":
    run(main)
