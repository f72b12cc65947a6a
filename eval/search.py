"""Search an index with a picture and a sentence, or with a file of queries; print the chain, ids and scores."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cir_cot.cli import PROBLEMS, run
from cir_cot.engines import with_engine
from cir_cot.errors import InputError
from cir_cot.files import check_keys, parse_json, read_jsonl
from cir_cot.options import (
    add_batch_size,
    add_device,
    add_dtype,
    add_engine,
    add_index,
    add_json,
    add_model,
    add_pixels,
    command_parser,
    loading_options,
)
from cir_cot.protocol_options import add_rerank, add_samples, check_rerank
from cir_cot.records import check_text, cot_from_dict

if TYPE_CHECKING:
    from cir_cot.search.search import Answer, Search

KEYS = ("id", "image", "text", "cot", "where")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `cir-cot search`."""
    parser = command_parser("search", __doc__)
    add = parser.add_argument
    add_model(parser)
    add_index(parser)
    add("--image", metavar="FILE", help="reference picture")
    add("--text", metavar="TEXT", help="how the wanted picture differs from the reference")
    add(
        "--queries",
        metavar="FILE",
        help='in place of --image and --text: JSONL of {"id", "image": file, "text"}; the answers '
        "are JSONL",
    )
    add("--k", type=int, default=10, metavar="N", help="number of pictures to find (default 10)")
    add(
        "--keep-reference",
        action="store_true",
        help="let pictures of the same content as the reference be hits (default: they are left out)",
    )
    add(
        "--reading",
        metavar="NAME",
        help="how a head that writes chains encodes the query: full, short, adaptive or fast "
        "(default: as the checkpoint's settings say)",
    )
    add(
        "--where",
        metavar="JSON",
        help='filter by payload, for example {"category": "dress", "price": {"lt": 50}}',
    )
    add_samples(parser)
    add_rerank(parser)
    add_batch_size(parser, unit="queries of --queries")
    add_device(parser)
    add_dtype(parser)
    add_pixels(parser)
    add_engine(parser)
    add_json(parser, "the answer as one JSON object (with --queries always JSONL)")
    args = parser.parse_args(argv)
    if (args.queries is None) == (args.image is None) or (args.image is None) != (
        args.text is None
    ):
        raise InputError("give --image FILE and --text TEXT, or --queries FILE")
    check_rerank(args)
    return args


def read_queries(path: str) -> list[dict]:
    """Return the queries of a JSONL file: id, image file, text, and if given a chain `cot` and a filter `where`."""
    queries = []
    for number, row in read_jsonl(path):
        where = f"{path}:{number}"
        if not isinstance(row, dict):
            raise InputError(f"{where}: a query is a JSON object")
        check_keys(row, where, required=KEYS[:3], allowed=KEYS)
        for key in KEYS[:3]:
            check_text(row[key], f"{where}: {key!r}")
        cot = row.pop("cot", None)
        if cot is not None:
            row["cot"] = cot_from_dict(cot, where)
        queries.append(row)
    return queries


def answer_queries(
    search: "Search", queries: list[dict], args: argparse.Namespace, default: dict | None
) -> list[str]:
    """Print the answer to each query as a line of JSON, in the order of the queries; return the errors.

    Consecutive queries are answered in one batch where all or none have a chain and their filters are equal.
    `default` is the filter of queries that have none. A query whose picture or filter cannot be used has a line with
    the "error", and the others go on.
    """
    errors = []
    at = 0
    while at < len(queries):
        # Collect the next queries of one kind.
        first = queries[at]
        kind = ("cot" in first, first.get("where"))
        batch = [first]
        while at + len(batch) < len(queries) and len(batch) < args.batch_size:
            query = queries[at + len(batch)]
            if ("cot" in query, query.get("where")) != kind:
                break
            batch.append(query)
        for query, found in zip(batch, answer_batch(search, batch, args, default), strict=True):
            if "error" in found:
                errors.append(found["error"])
            print(json.dumps({"id": query["id"], **found}, ensure_ascii=False), flush=True)
        at += len(batch)
    return errors


def answer_batch(
    search: "Search", batch: list[dict], args: argparse.Namespace, default: dict | None
) -> list[dict]:
    """Answer queries of one kind together; one that cannot be asked has {"error": why}."""
    from cir_cot.inputs import open_picture
    from cir_cot.search.payload_filter import check_filter
    from cir_cot.search.reference import digest_of

    # What cannot be used takes no part.
    found: list[dict] = []
    asked = []
    pictures = []
    where = default
    for query in batch:
        try:
            picture = open_picture(query["image"])
            if query.get("where") is not None:
                where = check_filter(query["where"])
        except InputError as error:
            found.append({"error": str(error)})
            continue
        asked.append(query)
        pictures.append(picture)
        found.append({})
    if not asked:
        return found
    # Answer the rest together, and put each answer in its place.
    chains = [query["cot"] for query in asked] if "cot" in batch[0] else None
    texts = [query["text"] for query in asked]
    references = [] if args.keep_reference else [digest_of(query["image"]) for query in asked]
    found_of = (pictures, texts, args.k, args.reading, chains, where)
    answers = iter(search.many(*found_of, references=references))
    return [one or next(answers).as_dict() for one in found]


def look_again(search: "Search", args: argparse.Namespace) -> None:
    """Let a search look again at its first hits with a reranker."""
    from cir_cot.heads.rerank import load_reranker
    from cir_cot.images import list_pictures
    from cir_cot.search.second_look import SecondLook

    judge = load_reranker(args.reranker, **loading_options(args))
    pictures = list_pictures(search.index.metadata["images"])
    search.again = SecondLook(judge, args.rerank, pictures)


def show(answer: "Answer") -> None:
    """Print an answer in readable form."""
    from cir_cot.prompts import written_parts

    for section, text in written_parts(answer.explanation).items():
        print(f"{section:>10}  {text}")
    if answer.flag:
        print(f"{'note':>10}  {answer.flag}")
    if answer.agreement is not None:
        print(f"{'agreement':>10}  {answer.agreement:.2f}")
    if (cost := answer.rerank) is not None:
        spent = f"{cost['pictures']} pictures, {cost['tokens']} tokens, {cost['seconds']:.2f} s"
        print(f"{'reranked':>10}  {spent}")
    for place, (name, score) in enumerate(answer.hits, 1):
        print(f"{place:>10}  {score:.4f}  {name}")


def main(argv: Sequence[str]) -> int:
    """Answer one query, or a file of them."""
    args = parse(argv)
    queries = read_queries(args.queries) if args.queries else []
    from cir_cot.heads.loaded import loaded_line
    from cir_cot.heads.samples import with_samples
    from cir_cot.inputs import open_picture
    from cir_cot.search.payload_filter import check_filter, unknown_keys
    from cir_cot.search.search import open_search

    # Check what is asked for, before a model is loaded.
    text = None if args.text is None else check_text(args.text, "--text")
    where = None if args.where is None else check_filter(parse_json(args.where, "--where"))
    if args.image is not None:
        open_picture(args.image)
    # Answer.
    search = open_search(args.model, args.index, **loading_options(args))
    print(loaded_line(search.retriever, args.model), file=sys.stderr)
    search.retriever = with_engine(
        search.retriever, args.engine, args.engine_url, args.engine_model
    )
    search.retriever = with_samples(search.retriever, args.samples, args.temperature)
    if args.rerank:
        look_again(search, args)
    if args.queries:
        errors = answer_queries(search, queries, args, where)
        if errors and len(errors) == len(queries):
            raise InputError(errors[0])
        if errors:
            told = f"{len(errors)} of {len(queries)} queries have an error in place of an answer"
            print(f"{told}; the first: {errors[0]}", file=sys.stderr)
        return PROBLEMS if errors else 0
    answer = search.one(
        args.image, text, args.k, args.reading, where=where, keep_reference=args.keep_reference
    )
    if where and not answer.hits:
        # A key that is mistyped matches nothing, as if there were no such picture.
        told = unknown_keys(where, search.index.list_payloads().values())
        if told:
            print(f"note: {told}", file=sys.stderr)
    if args.json:
        print(json.dumps(answer.as_dict(), ensure_ascii=False))
    else:
        show(answer)
        print(
            f"encoded in {answer.encode_seconds:.2f} s, searched in {answer.search_seconds:.3f} s",
            file=sys.stderr,
        )
    return 0


if __name__ == "__main__":
    run(main)
