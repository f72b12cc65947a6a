"""Write the test-server files of CIRR or CIRCO from rankings, and validate them."""

import argparse
import json
from collections.abc import Sequence

from cir_cot.cli import run
from cir_cot.data import load_benchmark
from cir_cot.data.benchmark import choose
from cir_cot.data.rankings import read_rankings
from cir_cot.data.submission import SPLITS, write_submission
from cir_cot.data.submission_check import Problem, check_submission
from cir_cot.errors import InputError
from cir_cot.options import (
    add_dataset,
    add_json,
    add_out,
    add_overwrite,
    add_rankings,
    command_parser,
)
from cir_cot.protocol_options import add_reference


def main(argv: Sequence[str]) -> int:
    """Write the files and print them with the protocol; return 1 if a file is not valid."""
    args = parse_arguments(argv)
    options = {"reference": args.reference} if args.reference else {}
    (benchmark,) = load_benchmark(args.benchmark, args.root, args.split, **options)

    # from rankings to files
    rankings = read_rankings(args.rankings, benchmark)
    subsets = None
    if args.subset_rankings:
        subsets = read_rankings(args.subset_rankings, benchmark, "recall_subset")
    files = write_submission(args.out, benchmark, rankings, subsets, args.overwrite)

    # read them again, as the server would
    problems: list[Problem] = []
    for file in files:
        problems += check_submission(file, args.root).problems
    names = [str(file) for file in files]
    if args.json:
        report = {"files": names, "protocol": benchmark.protocol, "problems": len(problems)}
        print(json.dumps(report))
    else:
        protocol = [f"{key}: {value}" for key, value in benchmark.protocol.items()]
        print("\n".join([*names, *protocol]))
        print(problems[0].what if problems else "valid")
    return 1 if problems else 0


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `cir-cot submit`."""
    parser = command_parser("submit", __doc__)
    add_dataset(parser, benchmarks=SPLITS, split="test1 for CIRR, test for CIRCO")
    add_rankings(parser, "rankings.json[.gz] of all queries")
    add_reference(parser)
    add_out(parser, "folder for the submission files")
    add_overwrite(parser)
    add_json(parser)
    args = parser.parse_args(argv)

    # what the servers do not take
    choose("split", args.split, SPLITS[args.benchmark])
    if args.benchmark == "circo" and args.subset_rankings:
        raise InputError("circo has no subsets; --subset-rankings belongs to cirr")
    if args.benchmark == "cirr" and args.reference == "keep":
        raise InputError("CIRR's server refuses lists with the reference; leave --reference out")
    return args


if __name__ == "__main__":
    run(main)
