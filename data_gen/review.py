"""Review chains in a browser, on this machine: accept, edit, reject, ask again; compare two teachers."""

import argparse
import getpass
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cir_cot.cli import run
from cir_cot.data import load_benchmark
from cir_cot.data.chain_files import attach_chains
from cir_cot.errors import InputError
from cir_cot.options import add_category, add_dataset, command_parser
from cir_cot.records import check_text
from cir_cot.review.queue import ReviewQueue, Row, make_rows, read_quarantine


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `cir-cot review`."""
    parser = command_parser("review", __doc__)
    add = parser.add_argument
    add_dataset(parser)
    add_category(parser, default="all categories")
    add("--chains", required=True, metavar="FILE", help="JSONL file of chains")
    add("--second", metavar="FILE", help="chains of another teacher, shown beside them as B")
    add(
        "--quarantine",
        metavar="FILE",
        help="rows that annotation gave up, with the reason (default: CHAINS.quarantine.jsonl, "
        "where it is there)",
    )
    add(
        "--out",
        required=True,
        metavar="FILE",
        help="file of decisions, which grows; sft, check and export-chains take it as --chains",
    )
    add("--reviewer", metavar="NAME", help="who decides (default: the name of the account)")
    add(
        "--port",
        type=int,
        default=7861,
        metavar="N",
        help="port on this machine, 0 for a free one (default 7861)",
    )
    return parser.parse_args(argv)


def load_rows(args: argparse.Namespace) -> list[Row]:
    """Join the records of a split with the chains and the reasons of the quarantine."""
    quarantine = args.quarantine or f"{args.chains}.quarantine.jsonl"
    there = args.quarantine is not None or Path(quarantine).is_file()
    reasons = read_quarantine(quarantine) if there else {}
    files = {"A": args.chains} | ({"B": args.second} if args.second else {})
    # Chains may be about all categories: they are attached to the records of all at once.
    benchmarks = load_benchmark(args.benchmark, args.root, args.split, args.category)
    records = [record for benchmark in benchmarks for record in benchmark.records]
    chains = {name: attach_chains(records, path) for name, path in files.items()}
    rows: list[Row] = []
    start = 0
    for benchmark in benchmarks:
        stop = start + len(benchmark.records)
        part = {name: found[start:stop] for name, found in chains.items()}
        rows += make_rows(benchmark.records, benchmark.images(), part, reasons)
        start = stop
    if not rows:
        raise InputError(f"{args.chains}: no chain of {args.benchmark} {args.split} to review")
    return rows


def main(argv: Sequence[str]) -> int:
    """Serve the page until a signal ends it; every decision is on the disk at once."""
    args = parse(argv)
    try:
        from cir_cot.review.app import application
        from cir_cot.search.local_server import announcement, listen, make_server
    except ImportError:
        raise InputError("the review needs a web server: pip install 'cir-cot[demo]'") from None
    reviewer = check_text(args.reviewer or getpass.getuser(), "--reviewer")
    with listen(args.port) as listening:
        queue = ReviewQueue(load_rows(args), Path(args.out), reviewer)
        count = len(queue.rows)
        print(announcement(listening, f"{count} rows to review", os.environ), file=sys.stderr)
        make_server(application(queue)).run(sockets=[listening])
    print(f"{args.out}: {len(queue.decided)} of {count} rows decided", file=sys.stderr)
    return 0


if __name__ == "__main__":
    run(main)
