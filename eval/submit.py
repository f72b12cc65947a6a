"""Write the test-server files of CIRR or CIRCO from rankings, and validate them."""

import argparse
import json
from collections.abc import Sequence

from cir_cot.cli import run
from cir_cot.data import load_benchmark
from cir_cot.data.layouts import choose
from cir_cot.data.scoring import read_rankings
from cir_cot.data.submission import SPLITS, check_submission, write_submission
from cir_cot.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Print the files and the protocol; 1 if what was written is not valid."""
    args = parse_arguments(argv)
    choose("split", args.split, SPLITS[args.benchmark])
    if args.benchmark == "circo" and args.subset_rankings:
        raise InputError("circo has no subsets; --subset-rankings belongs to cirr")
    if args.benchmark == "cirr" and args.reference == "keep":
        raise InputError("CIRR's server refuses lists with the reference; leave --reference out")
    options = {"reference": args.reference} if args.reference else {}
    (benchmark,) = load_benchmark(args.benchmark, args.root, args.split, **options)
    rankings = read_rankings(args.rankings, benchmark)
    subsets = (
        read_rankings(args.subset_rankings, benchmark, "recall_subset")
        if args.subset_rankings
        else None
    )
    files = write_submission(args.out, benchmark, rankings, subsets, args.overwrite)
    problems = [problem for file in files for problem in check_submission(file, args.root)[1]]
    if args.json:
        told = {
            "files": [str(file) for file in files],
            "protocol": benchmark.protocol,
            "problems": len(problems),
        }
        print(json.dumps(told))
    else:
        print(
            "\n".join(
                [
                    *map(str, files),
                    *(f"{key}: {value}" for key, value in benchmark.protocol.items()),
                ]
            )
        )
        print(problems[0].what if problems else "valid")
    return 1 if problems else 0


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The options of `cir-cot submit`."""
    parser = argparse.ArgumentParser(prog="cir-cot submit", description=__doc__, allow_abbrev=False)
    parser.add_argument("--benchmark", required=True, choices=SPLITS)
    parser.add_argument("--root", required=True, metavar="DIR", help="folder of the dataset")
    parser.add_argument("--split", required=True, metavar="S", help="test1 (CIRR), test (CIRCO)")
    parser.add_argument(
        "--rankings", required=True, metavar="FILE", help="rankings.json[.gz] of all queries"
    )
    parser.add_argument(
        "--subset-rankings",
        metavar="FILE",
        help="CIRR: rankings of the image sets, if --rankings is not of all pictures",
    )
    parser.add_argument(
        "--reference",
        choices=("keep", "remove"),
        help="the reference in the lists (default: CIRCO keep, CIRR remove)",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write the files to")
    parser.add_argument(
        "--overwrite", action="store_true", help="also replace files that it did not write itself"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(main)
