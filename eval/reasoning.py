"""Measure the chains of a checkpoint: are they valid and right, what are they worth, does retrieval follow them?"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cir_cot.cli import run
from cir_cot.data import load_benchmark
from cir_cot.data.benchmark import Benchmark
from cir_cot.data.scoring import score_rankings
from cir_cot.evaluation.chain_quality import chain_metrics, percent, swap_chains
from cir_cot.evaluation.encode import encode_gallery
from cir_cot.evaluation.evaluate import check_pictures, evaluate
from cir_cot.evaluation.readings import modification_texts, record_encoder, with_chains
from cir_cot.evaluation.report import write_report
from cir_cot.evaluation.results import Result, result_files, results_json, save_results
from cir_cot.evaluation.results_folder import (
    REPORT,
    RESULTS,
    check_results_folder,
    writing_results,
)
from cir_cot.evaluation.tables import Table, flat, summary_table, text_table
from cir_cot.files import write_text_atomic
from cir_cot.options import (
    add_annotated_chains,
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
from cir_cot.records import Record
from cir_cot.storage import locked, written

ASKED = ("full", "fast", "oracle", "shuffled")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `cir-cot reasoning`."""
    parser = command_parser("reasoning", __doc__)
    add_model(parser, "folder of a saved retriever that writes chains")
    add_dataset(parser)
    add_category(parser)
    add_annotated_chains(parser)
    add_query_sample(parser, each=" of each category")
    add_batch_size(parser)
    add_seed(parser, of="the query sample, the queries shown and the swapped chains")
    add_device(parser)
    add_dtype(parser)
    add_out(
        parser,
        "folder for results.json, report.md, report.html and a subfolder for each reading",
        required=False,
    )
    add_overwrite(parser)
    add_json(parser, "the content of results.json")
    return parser.parse_args(argv)


def study(
    retriever, benchmark: Benchmark, args: argparse.Namespace
) -> tuple[dict[str, Result], dict[str, Record] | None]:
    """Results by reading, full first, and which other query lent each query its chain.

    `oracle` where every query that is asked has an annotated chain, `shuffled` where chains can be lent.
    """
    images = benchmark.images()
    settings = {
        "limit": args.limit,
        "batch_size": args.batch_size,
        "seed": args.seed,
        "progress": True,
    }
    settings |= {
        "model": args.model,
        "gallery": encode_gallery(retriever, benchmark.gallery, images, args.batch_size, True),
    }

    def ask(reading: str, encode=None) -> Result:
        print(
            f"{benchmark.category or benchmark.name} {benchmark.split}: {reading}", file=sys.stderr
        )
        return evaluate(retriever, benchmark, images, encode, reading=reading, **settings)

    results = {reading: ask(reading) for reading in ("full", "fast")}
    asked = results["full"].benchmark.records
    if all(record.cot for record in asked):
        results["oracle"] = ask("oracle")
    donors = swap_chains(asked, results["full"].explanations, args.seed)
    if donors is not None:

        def encode(records, pictures):
            return retriever.embed_with(
                pictures, modification_texts(records), [donors[record.id].cot for record in records]
            )

        results["shuffled"] = ask("shuffled", encode)
    return results, donors


def faithfulness(results: dict[str, Result], donors: dict[str, Record] | None) -> dict:
    """Does retrieval go where the chain says, when it is another query's? Empty without swapped chains.

    `moved`: first answers that changed, in percent. `followed`: metrics of the swapped reading when the targets of the
    query that lent the chain count as right (not for GeneCIS, where they are no candidates).
    """
    if donors is None:
        return {}
    full, shuffled = results["full"], results["shuffled"]
    moved = percent(full.rankings[query][0] != shuffled.rankings[query][0] for query in donors)
    if not shuffled.metrics or shuffled.benchmark.candidates is not None:
        return {"moved": moved}
    records = [
        replace(record, targets=donors[record.id].targets) for record in shuffled.benchmark.records
    ]
    benchmark = replace(shuffled.benchmark, records=records, weights=None)
    return {
        "moved": moved,
        "followed": score_rankings(benchmark, shuffled.rankings, shuffled.subset_rankings),
    }


def content_of(studies: Sequence[tuple]) -> dict:
    """The content of results.json: by reading metrics, by_source and protocol, and what is measured of the chains."""
    content = {"metrics": {}, "chains": {}, "faithfulness": {}, "by_source": {}, "protocol": {}}
    for reading, results in by_reading(studies).items():
        for key, value in results_json(results).items():
            content[key][reading] = value
    for results, donors in studies:
        full = results["full"]
        content["chains"][full.name] = chain_metrics(
            full.benchmark.records, full.explanations, full.flags
        )
        content["faithfulness"][full.name] = faithfulness(results, donors)
    return content


def by_reading(studies: Sequence[tuple]) -> dict[str, list[Result]]:
    """Results of all categories for each reading that every category has."""
    shared = [name for name in studies[0][0] if all(name in results for results, _ in studies)]
    return {name: [results[name] for results, _ in studies] for name in shared}


def tables_of(content: dict) -> list[Table]:
    """The chains' numbers and the faithfulness as tables."""
    chains, follows = (
        content["chains"],
        {name: numbers for name, numbers in content["faithfulness"].items() if numbers},
    )
    columns = list(dict.fromkeys(key for numbers in chains.values() for key in numbers))
    rows = [
        [name, *(numbers.get(column, "") for column in columns)] for name, numbers in chains.items()
    ]
    note = "valid: all parts, in order; missing_token: cut off at the length limit; exact: as annotated. In percent."
    tables = [Table("Chains", ["set", *columns], rows, note)]
    if follows:
        names = list(flat(next(iter(follows.values())).get("followed", {})))
        rows = [
            [
                name,
                numbers["moved"],
                *(numbers.get("followed", {}).get(metric, "") for metric in names),
            ]
            for name, numbers in follows.items()
        ]
        note = "With another query's chain: first answers that change, and metrics with that query's targets as right."
        tables.append(
            Table("Does retrieval follow the chain?", ["set", "moved", *names], rows, note)
        )
    return tables


def main(argv: Sequence[str]) -> int:
    """Ask every reading, print the tables and write the results."""
    args = parse(argv)
    benchmarks = with_chains(
        load_benchmark(args.benchmark, args.root, args.split, args.category), args.chains
    )
    for benchmark in benchmarks:
        check_pictures(benchmark, benchmark.images())
    if args.out:
        check_results_folder(args.out, (RESULTS, *REPORT), args.overwrite)
        for reading in ASKED:
            check_results_folder(Path(args.out) / reading, result_files(benchmarks), args.overwrite)

    from cir_cot.heads import (
        load_retriever,  # peft takes ten seconds: not before the arguments are known to be good
    )

    retriever = load_retriever(args.model, device=args.device, dtype=args.dtype)
    record_encoder(retriever, "full")  # refuses a retriever that writes no chains
    studies = [study(retriever, benchmark, args) for benchmark in benchmarks]
    content = content_of(studies)
    results = [result for found, _ in studies for result in found.values()]
    if args.out:
        with locked(Path(args.out)):
            write(studies, content, results, args)
    for table in (summary_table(results), *tables_of(content)):
        print(f"{table.title}\n{text_table(table)}\n", file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(content, ensure_ascii=False))
    return 0


def write(
    studies: Sequence[tuple], content: dict, results: Sequence[Result], args: argparse.Namespace
) -> None:
    """Write a folder for each reading, results.json and the report; results.json goes first and comes last."""
    out = Path(args.out)
    with written(out), writing_results(out, [RESULTS], [RESULTS], args.overwrite):
        for reading, found in by_reading(studies).items():
            save_results(found, out / reading, args.overwrite)
        title = "Chains and retrieval"
        write_report(
            out,
            results,
            title=title,
            tables=tables_of(content),
            seed=args.seed,
            overwrite=args.overwrite,
        )
        write_text_atomic(out / RESULTS, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    run(main)
