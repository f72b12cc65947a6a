"""Measure a checkpoint on a benchmark: metrics, protocol, rankings and a report with pictures."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from cir_cot.cli import run
from cir_cot.data import BENCHMARKS, load_benchmark
from cir_cot.data.benchmark import Benchmark
from cir_cot.evaluation.evaluate import check_pictures, evaluate
from cir_cot.evaluation.readings import READINGS, reader, with_chains
from cir_cot.evaluation.report import text_table, write_report
from cir_cot.evaluation.results import Result, result_files, save_results, summary
from cir_cot.evaluation.results_folder import REPORT, check_results_folder
from cir_cot.evaluation.tables import summary_table
from cir_cot.storage import locked


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(prog="cir-cot retrieval", description=__doc__)
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="a saved retriever")
    add("--benchmark", required=True, choices=list(BENCHMARKS))
    add("--root", required=True, metavar="DIR", help="folder of the dataset")
    add("--split", required=True, help="e.g. val; of a folder dataset whatever its files are named")
    add("--category", help="of FashionIQ or GeneCIS; default: all of them, and their mean")
    add(
        "--reading",
        choices=list(READINGS),
        help="how queries are read: with the chain the model writes, without one, with the annotated one (an upper "
        "bound), or a baseline of the picture or the words alone; default: as the checkpoint does",
    )
    add(
        "--chains",
        metavar="PATH",
        help="annotated chains: a JSONL file, or a folder of chains.<category>.<split>.jsonl",
    )
    add(
        "--gallery",
        choices=("original", "val-union", "all-categories"),
        help="of FashionIQ (default original)",
    )
    add(
        "--reference",
        choices=("keep", "remove"),
        help="in the gallery; default: as the benchmark's protocol has it",
    )
    add(
        "--limit",
        type=int,
        metavar="N",
        help="ask a sample of N queries of each category; the gallery stays whole",
    )
    add(
        "--batch-size",
        type=int,
        default=32,
        metavar="N",
        help="pictures encoded at a time (default 32)",
    )
    add("--seed", type=int, default=0, help="of the sample and of the queries shown (default 0)")
    add("--device", help="e.g. cuda:1 or cpu; default: a GPU where there is one")
    add(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        help="of the model (default float32)",
    )
    add(
        "--out",
        metavar="DIR",
        help="write results.json, rankings.json.gz, chains.jsonl, report.md and report.html",
    )
    add(
        "--overwrite",
        action="store_true",
        help="replace files of these names in --out that no such command wrote",
    )
    add(
        "--json",
        action="store_true",
        help="print the content of results.json, and everything else to stderr",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Evaluate, print a table and write the results."""
    args = parse(argv)
    options = {
        name: value
        for name in ("gallery", "reference")
        if (value := getattr(args, name)) is not None
    }
    benchmarks = load_benchmark(args.benchmark, args.root, args.split, args.category, **options)
    benchmarks = with_chains(benchmarks, args.chains)
    for benchmark in benchmarks:
        check_pictures(benchmark, benchmark.images())
    if args.out:
        check_results_folder(args.out, (*result_files(benchmarks), *REPORT), args.overwrite)
    results = measure(benchmarks, args)
    if args.out:
        with locked(Path(args.out)):
            save_results(results, args.out, args.overwrite)
            write_report(args.out, results, seed=args.seed, overwrite=args.overwrite)
    print(text_table(summary_table(results)), file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(summary(results), ensure_ascii=False))
    return 0


def measure(benchmarks: Sequence[Benchmark], args: argparse.Namespace) -> list[Result]:
    """Load the retriever and evaluate it on each benchmark."""
    from cir_cot.heads import (
        load_retriever,  # peft takes ten seconds: not before the arguments are known to be good
    )

    retriever = load_retriever(args.model, device=args.device, dtype=args.dtype)
    reader(
        retriever, args.reading
    )  # refuses a reading that this retriever lacks before the gallery is encoded
    return [
        evaluate(
            retriever,
            benchmark,
            benchmark.images(),
            reading=args.reading,
            model=args.model,
            limit=args.limit,
            batch_size=args.batch_size,
            seed=args.seed,
            progress=True,
        )
        for benchmark in benchmarks
    ]


if __name__ == "__main__":
    run(main)
