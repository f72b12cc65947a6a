"""Measure a checkpoint on a benchmark: metrics, protocol, rankings and a report with pictures."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from cir_cot.cli import run
from cir_cot.data import load_benchmark
from cir_cot.data.benchmark import Benchmark
from cir_cot.engines import with_engine
from cir_cot.evaluation.encoded_rows import begin_encoding, remove_encoding, results_lock
from cir_cot.evaluation.evaluate import check_pictures, evaluate
from cir_cot.evaluation.readings import record_encoder, with_chains
from cir_cot.evaluation.report import write_report
from cir_cot.evaluation.results import Result, result_files, results_json, save_results
from cir_cot.evaluation.results_folder import REPORT, check_results_folder
from cir_cot.evaluation.tables import summary_table, text_table
from cir_cot.options import (
    add_annotated_chains,
    add_batch_size,
    add_category,
    add_dataset,
    add_device,
    add_dtype,
    add_engine,
    add_gallery_index,
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
from cir_cot.protocol_options import (
    add_rerank,
    add_samples,
    add_variants,
    check_rerank,
    variants_of,
)
from cir_cot.ranks import Ranks
from cir_cot.retriever import READINGS


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `cir-cot retrieval`."""
    parser = command_parser("retrieval", __doc__)
    add_model(parser)
    add_dataset(parser)
    add_category(parser)
    parser.add_argument(
        "--reading",
        choices=list(READINGS),
        help="how queries are encoded: full (with the chain that the model writes), short (with "
        "its conclusion only), adaptive (a chain where the model is unsure), fast (no chain), oracle "
        "(with the annotated chain, an upper bound), or a baseline: image_only, text_only "
        "(default: as the checkpoint's settings say)",
    )
    add_samples(parser)
    add_rerank(parser)
    add_annotated_chains(parser)
    add_gallery_index(parser)
    add_variants(parser)
    add_query_sample(parser, each=" of each category")
    add_batch_size(parser)
    add_seed(parser, of="the query sample, the queries shown in the report and drawn chains")
    add_device(parser)
    add_dtype(parser)
    add_pixels(parser)
    add_engine(parser)
    add_out(
        parser,
        "folder for results.json, rankings.json.gz, chains.jsonl, report.md and report.html",
        required=False,
    )
    add_overwrite(parser)
    add_json(parser, "the content of results.json")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Evaluate, print a table and write the results."""
    args = parse(argv)
    check_rerank(args)
    # Check the data and the output folder before a model is loaded.
    options = variants_of(args)
    benchmarks = load_benchmark(args.benchmark, args.root, args.split, args.category, **options)
    benchmarks = with_chains(benchmarks, args.chains)
    for benchmark in benchmarks:
        check_pictures(benchmark, benchmark.images())
    if args.out:
        check_results_folder(args.out, (*result_files(benchmarks), *REPORT), args.overwrite)
    # Evaluate together with the other processes; the first one writes and prints.
    ranks = Ranks.launched(cpu=args.device == "cpu")
    with results_lock(args.out, ranks):
        results = measure(benchmarks, args, ranks)
        if args.rerank and ranks.first:
            results = rerank(results, args, ranks)
        if args.out and ranks.first:
            save_results(results, args.out, args.overwrite)
            write_report(args.out, results, seed=args.seed, overwrite=args.overwrite)
            remove_encoding(Path(args.out))
    ranks.close()
    if not ranks.first:
        return 0
    print(text_table(summary_table(results)), file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(results_json(results), ensure_ascii=False))
    return 0


def measure(
    benchmarks: Sequence[Benchmark], args: argparse.Namespace, ranks: Ranks
) -> list[Result]:
    """Load the retriever and evaluate it on each benchmark."""
    from cir_cot.heads import load_retriever  # peft takes ten seconds: after the arguments' checks
    from cir_cot.heads.loaded import loaded_line
    from cir_cot.heads.samples import with_samples
    from cir_cot.search.gallery_vectors import gallery_vectors

    retriever = load_retriever(args.model, **loading_options(args, ranks))
    if ranks.first:
        print(loaded_line(retriever, args.model), file=sys.stderr)
    retriever = with_engine(retriever, args.engine, args.engine_url, args.engine_model)
    retriever = with_samples(retriever, args.samples, args.temperature, args.seed)
    # Refuse a reading that this retriever lacks before the gallery is encoded.
    record_encoder(retriever, args.reading)
    encoding = begin_encoding(args.out, retriever, benchmarks, args.seed, ranks)
    results = []
    for benchmark in benchmarks:
        images = benchmark.images()
        gallery = None
        if args.index:
            gallery = gallery_vectors(args.index, retriever, benchmark.gallery, images)
        result = evaluate(
            retriever,
            benchmark,
            images,
            reading=args.reading,
            gallery=gallery,
            model=args.model,
            limit=args.limit,
            batch_size=args.batch_size,
            seed=args.seed,
            progress=ranks.first,
            encoding=encoding,
        )
        result.protocol.update(index=args.index, rerank=None)
        results.append(result)
    return results


def rerank(results: Sequence[Result], args: argparse.Namespace, ranks: Ranks) -> list[Result]:
    """Load the reranker and look again at the first pictures of each ranking."""
    from cir_cot.evaluation.look_again import look_again
    from cir_cot.heads.rerank import load_reranker

    judge = load_reranker(args.reranker, **loading_options(args, ranks))
    judge.batch_size = args.batch_size
    return [
        look_again(result, judge, args.rerank, args.reranker, progress=True) for result in results
    ]


if __name__ == "__main__":
    run(main)
