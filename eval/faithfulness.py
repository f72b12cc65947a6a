"""Does the answer follow the chain? Edit one part of it, or the picture, and measure where retrieval goes."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cir_cot.cli import run
from cir_cot.data import load_benchmark
from cir_cot.data.benchmark import Benchmark
from cir_cot.errors import InputError
from cir_cot.evaluation.arrivals import arrivals
from cir_cot.evaluation.corrections import follow_planted_words
from cir_cot.evaluation.counterfactuals import (
    Asked,
    composition,
    encode_with,
    examples,
    mean_shares,
    measure,
    read_chains,
)
from cir_cot.evaluation.encode import encode_gallery
from cir_cot.evaluation.evaluate import check_pictures, evaluate
from cir_cot.evaluation.faithfulness_page import faithfulness_page, faithfulness_tables
from cir_cot.evaluation.readings import record_encoder, with_chains
from cir_cot.evaluation.results_folder import RESULTS, check_results_folder, writing_results
from cir_cot.evaluation.samples import outcome
from cir_cot.evaluation.tables import text_table
from cir_cot.files import write_json, write_text_atomic
from cir_cot.options import (
    add_annotated_chains,
    add_batch_size,
    add_category,
    add_dataset,
    add_device,
    add_dtype,
    add_gallery_index,
    add_json,
    add_model,
    add_out,
    add_overwrite,
    add_pixels,
    add_seed,
    command_parser,
    loading_options,
    natural,
    positive,
)
from cir_cot.retriever import inference

PAGE = "report.html"
SHOWN = 8  # queries of the page


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `cir-cot faithfulness`."""
    parser = command_parser("faithfulness", __doc__)
    add_model(parser)
    add_dataset(parser)
    add_category(parser)
    add_annotated_chains(parser)
    add_gallery_index(parser)
    parser.add_argument(
        "--limit",
        type=positive,
        default=500,
        metavar="N",
        help="a sample of N queries, drawn by the seed; the gallery stays complete (default 500)",
    )
    parser.add_argument(
        "--attributed",
        type=natural,
        default=64,
        metavar="N",
        help="queries whose vectors are attributed to picture, text and parts (default 64, 0 none)",
    )
    add_batch_size(parser)
    add_seed(parser, of="the sample and of the edits")
    add_device(parser)
    add_dtype(parser)
    add_pixels(parser)
    add_out(parser, "folder for results.json and report.html")
    add_overwrite(parser)
    add_json(parser, "the content of results.json")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Measure, print the tables, and write the results and the page."""
    args = parse(argv)
    benchmarks = load_benchmark(args.benchmark, args.root, args.split, args.category)
    benchmarks = with_chains(benchmarks, args.chains)
    for benchmark in benchmarks:
        check_pictures(benchmark, benchmark.images())
        if not all(record.targets for record in benchmark.records):
            raise InputError(
                f"{args.benchmark} {args.split}: queries without a target have no rank to compare; "
                "name an annotated split with --split"
            )
        shown = set(benchmark.gallery)
        for record in benchmark.records:
            if shown.isdisjoint(record.targets):
                raise InputError(
                    f"{args.benchmark} {args.split}: no target of query {record.id!r} is in the gallery"
                )
    check_results_folder(args.out, (RESULTS, PAGE), args.overwrite)
    # Measure each part of the dataset.
    studies = study_all(benchmarks, args)
    content = {name: study["content"] for name, study in studies.items()}
    with writing_results(args.out, (RESULTS, PAGE), (), args.overwrite):
        write_text_atomic(Path(args.out) / PAGE, faithfulness_page(studies))
        write_json(Path(args.out) / RESULTS, content)
    # Print.
    for table in faithfulness_tables(content):
        print(f"{table.title}\n{text_table(table)}\n", file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(content, ensure_ascii=False))
    return 0


def study_all(benchmarks: Sequence[Benchmark], args: argparse.Namespace) -> dict[str, dict]:
    """Load the retriever and study it on each benchmark -> content, examples and pictures by name."""
    from cir_cot.heads import load_retriever  # peft takes ten seconds: after the arguments' checks
    from cir_cot.heads.loaded import loaded_line
    from cir_cot.search.gallery_vectors import gallery_vectors

    retriever = load_retriever(args.model, **loading_options(args))
    print(loaded_line(retriever, args.model), file=sys.stderr)
    # Refuse a retriever that writes no chains before the gallery is encoded.
    record_encoder(retriever, "full")
    studies = {}
    for benchmark in benchmarks:
        images = benchmark.images()
        if args.index:
            gallery = gallery_vectors(args.index, retriever, benchmark.gallery, images)
        else:
            with inference(retriever):
                names = benchmark.gallery
                gallery = encode_gallery(retriever, names, images, args.batch_size, True)
        name = f"{benchmark.category or benchmark.name} {benchmark.split}"
        studies[name] = study(retriever, benchmark, gallery, args)
    return studies


def study(retriever: Any, benchmark: Benchmark, gallery: Any, args: argparse.Namespace) -> dict:
    """Study one benchmark: edits, composition, attribution, and planted words on scenes."""
    from cir_cot.heads.attribution import shares
    from cir_cot.heads.cot import CotRetriever

    # The model's own chains, and what picture and text find alone.
    images = benchmark.images()
    options = {"gallery": gallery, "model": args.model, "limit": args.limit}
    options |= {"batch_size": args.batch_size, "seed": args.seed, "progress": True}
    results = {
        reading: evaluate(retriever, benchmark, images, reading=reading, **options)
        for reading in ("full", "image_only", "text_only")
    }
    full = results["full"]
    # Queries whose chain is valid, read with it once more: all edits start from these vectors.
    records, kept = read_chains(full.benchmark.records, full.explanations)
    asked = Asked(replace(full.benchmark, records=records), kept, gallery[:0], gallery)
    asked = replace(asked, vectors=own_vectors(retriever, asked, args.batch_size))
    found = {
        name: [outcome(result, record) == "found" for record in result.benchmark.records]
        for name, result in results.items()
    }
    content: dict[str, Any] = {
        "edits": measure(retriever, asked, args.batch_size, args.seed),
        "composition": composition(found),
        "protocol": full.protocol | {"index": args.index, "valid_chains": len(records)},
    }
    # What the vectors of the first queries are made of.
    if isinstance(retriever, CotRetriever) and args.attributed:
        some = list(zip(records, kept, strict=True))[: args.attributed]
        attributed = []
        for record, chain in some:
            name = next(name for name in record.targets if name in asked.columns)
            reference = images.load(record.reference)
            target = gallery[asked.columns[name]]
            attributed.append(shares(retriever, reference, record.text, chain, target))
        content["attribution"] = mean_shares(attributed) | {"queries": len(some)}
    # Scenes can be drawn, so that an edited chain has a picture.
    if isinstance(retriever, CotRetriever) and all(r.source.startswith("scenes/") for r in records):
        content["arrivals"] = arrivals(retriever, asked, args.batch_size, args.seed)
        with inference(retriever):
            content["planted"] = follow_planted_words(retriever.write_on, full, gallery, args.limit)
    shown = examples(retriever, asked, SHOWN, args.batch_size, args.seed)
    return {"content": content, "examples": shown, "images": images}


def own_vectors(retriever: Any, asked: Asked, batch_size: int) -> Any:
    """Encode the queries with the chains that the model wrote itself -> (Q, D)."""
    records = asked.benchmark.records
    return encode_with(retriever, asked.benchmark, records, asked.chains, records, "", batch_size)


if __name__ == "__main__":
    run(main)
