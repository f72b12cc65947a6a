"""Measure the chains of a checkpoint: valid, as annotated, useful for retrieval, followed by it."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from cir_cot.cli import run
from cir_cot.data import load_benchmark
from cir_cot.data.benchmark import Benchmark
from cir_cot.engines import with_engine
from cir_cot.evaluation.chain_study import (
    READINGS,
    Study,
    save_study,
    study_chains,
    study_json,
    study_tables,
)
from cir_cot.evaluation.encoded_rows import begin_encoding, remove_encoding, results_lock
from cir_cot.evaluation.evaluate import check_pictures
from cir_cot.evaluation.readings import record_encoder, with_chains
from cir_cot.evaluation.results import result_files
from cir_cot.evaluation.results_folder import REPORT, RESULTS, check_results_folder
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
from cir_cot.protocol_options import add_variants, variants_of
from cir_cot.ranks import Ranks


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `cir-cot reasoning`."""
    parser = command_parser("reasoning", __doc__)
    add_model(parser, "folder of a saved retriever that writes chains")
    add_dataset(parser)
    add_category(parser)
    add_annotated_chains(parser)
    add_gallery_index(parser)
    add_variants(parser)
    add_query_sample(parser, each=" of each category")
    add_batch_size(parser)
    add_seed(parser, of="the query sample, the queries shown and the swapped chains")
    add_device(parser)
    add_dtype(parser)
    add_pixels(parser)
    add_engine(parser)
    add_out(
        parser,
        "folder for results.json, report.md, report.html and a subfolder for each reading",
        required=False,
    )
    add_overwrite(parser)
    add_json(parser, "the content of results.json")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Evaluate every reading, print the tables and write the results."""
    args = parse(argv)
    # Check the data and the output folder before a model is loaded.
    benchmarks = load_benchmark(
        args.benchmark, args.root, args.split, args.category, **variants_of(args)
    )
    benchmarks = with_chains(benchmarks, args.chains)
    for benchmark in benchmarks:
        check_pictures(benchmark, benchmark.images())
    if args.out:
        check_results_folder(args.out, (RESULTS, *REPORT), args.overwrite)
        for reading in READINGS:
            check_results_folder(Path(args.out) / reading, result_files(benchmarks), args.overwrite)
    # Evaluate together with the other processes; the first one writes and prints.
    ranks = Ranks.launched(cpu=args.device == "cpu")
    with results_lock(args.out, ranks):
        studies = measure(benchmarks, args, ranks)
        if args.out and ranks.first:
            save_study(args.out, studies, args.seed, args.overwrite)
            remove_encoding(Path(args.out))
    ranks.close()
    if not ranks.first:
        return 0
    # Print.
    content = study_json(studies)
    results = [result for study in studies for result in study.results.values()]
    for table in (summary_table(results), *study_tables(content)):
        print(f"{table.title}\n{text_table(table)}\n", file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(content, ensure_ascii=False))
    return 0


def measure(benchmarks: Sequence[Benchmark], args: argparse.Namespace, ranks: Ranks) -> list[Study]:
    """Load the retriever and study its chains on each benchmark."""
    from cir_cot.heads import load_retriever  # peft takes ten seconds: after the arguments' checks
    from cir_cot.heads.loaded import loaded_line
    from cir_cot.search.gallery_vectors import gallery_vectors

    retriever = load_retriever(args.model, **loading_options(args, ranks))
    if ranks.first:
        print(loaded_line(retriever, args.model), file=sys.stderr)
    retriever = with_engine(retriever, args.engine, args.engine_url, args.engine_model)
    record_encoder(retriever, "full")  # refuses a retriever that writes no chains
    encoding = begin_encoding(args.out, retriever, benchmarks, args.seed, ranks)
    studies = []
    for benchmark in benchmarks:
        name = f"{benchmark.category or benchmark.name} {benchmark.split}"

        def announce(reading: str, name: str = name) -> None:
            if ranks.first:
                print(f"{name}: {reading}", file=sys.stderr)

        gallery = None
        if args.index:
            images = benchmark.images()
            gallery = gallery_vectors(args.index, retriever, benchmark.gallery, images)
        study = study_chains(
            retriever,
            benchmark,
            model=args.model,
            limit=args.limit,
            batch_size=args.batch_size,
            seed=args.seed,
            progress=ranks.first,
            announce=announce,
            encoding=encoding,
            gallery=gallery,
        )
        for result in study.results.values():
            result.protocol["index"] = args.index
        studies.append(study)
    return studies


if __name__ == "__main__":
    run(main)
