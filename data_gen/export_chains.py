"""Export chains for other trainers: parquet, LLaVA or ShareGPT conversations, with a card."""

import argparse
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cir_cot.chains.export import FORMS, sift, write_export
from cir_cot.cli import run
from cir_cot.data import load_benchmark
from cir_cot.data.chain_files import attach_chains
from cir_cot.data.check import named
from cir_cot.errors import InputError
from cir_cot.images import ImageStore
from cir_cot.options import (
    add_chains,
    add_dataset,
    add_json,
    add_out,
    command_parser,
)

EXAMPLES = 3  # of each reason to leave a record out


def main(argv: Sequence[str]) -> int:
    """Write the folder; print how many chains are in it, and how many were left out, by reason."""
    args = parse_arguments(argv)

    # The records with their chains, and where each picture is.
    benchmarks = load_benchmark(args.benchmark, args.root, args.split)
    records = []
    stores: dict[str, ImageStore] = {}
    for benchmark in benchmarks:
        records += benchmark.records
        stores |= dict.fromkeys(named(benchmark.records), benchmark.images())
    for path in args.chains or ():
        records = attach_chains(records, path)

    # Leave out what the filters find, and write the others.
    paths = relative_paths(args.root, stores)
    kept, left = sift(records, paths)
    counts = {why: len(some) for why, some in left.items()}
    facts = {"benchmark": args.benchmark, "split": args.split, "left_out": counts}
    file = write_export(args.out, args.format, kept, paths, facts)

    # Name the reasons, with a few examples of each.
    result = {"file": str(file), "format": args.format, "chains": len(kept), "left_out": counts}
    if args.json:
        print(json.dumps(result))
        return 0
    print(f"{len(kept)} chains in {file}")
    for why, some in left.items():
        print("\n          ".join([f"left out  {why}: {len(some)}", *some[:EXAMPLES]]))
    return 0


def relative_paths(root: str, stores: Mapping[str, ImageStore]) -> Callable[[str], str]:
    """Return a function of an image id: the picture's path from the dataset's folder.

    Paths have forward slashes; the function raises InputError for a picture outside the folder.
    """
    base = Path(root).resolve()

    def path(image: str) -> str:
        relative = Path(os.path.relpath(stores[image].path(image), base)).as_posix()
        if relative.startswith("../"):
            raise InputError(
                f"image {image!r} lies outside {base}, behind a link; give the folder above both "
                "as --root"
            )
        return relative

    return path


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `cir-cot export-chains`."""
    parser = command_parser("export-chains", __doc__)
    add_dataset(parser)
    add_chains(parser)
    parser.add_argument(
        "--format",
        required=True,
        choices=FORMS,
        help="datasets: parquet for datasets.load_dataset; llava, sharegpt: conversations",
    )
    add_out(parser, "new folder for the export")
    add_json(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(main)
