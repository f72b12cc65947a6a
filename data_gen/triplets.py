"""Make a folder dataset of triplets from your own pictures and their labels or captions."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from cir_cot.cli import run
from cir_cot.data.triplet_files import write_triplets
from cir_cot.errors import InputError
from cir_cot.options import Parser, add_overwrite, add_root, add_seed, command_parser, positive


def main(argv: Sequence[str]) -> int:
    """Write records and galleries of train and val beside the pictures, and print their sizes."""
    args = parse_arguments(argv)
    written = write_triplets(
        Path(args.root),
        Path(args.labels),
        args.val,
        args.edits,
        args.seed,
        args.chains,
        args.overwrite,
        natural=args.wording == "natural",
        texts=args.texts,
        templates=None if args.templates is None else Path(args.templates),
    )
    # what there is now
    for name, queries in written.queries.items():
        print(f"{name:5} {queries:7} queries  {written.pictures[name]:7} pictures")
    if written.unused:
        print(f"{written.unused} pictures have no line in {args.labels} and are not used")
    if written.skipped:
        print(written.skipped)
    return 0


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `cir-cot triplets`."""
    parser = command_parser("triplets", __doc__)
    add_root(parser, "folder with images/ in it; the dataset is written there too")
    parser.add_argument(
        "--labels",
        required=True,
        metavar="FILE",
        help="CSV with a header: image (path in images/ without the extension), then label columns, "
        "or one column named caption",
    )
    parser.add_argument(
        "--val",
        type=float,
        default=0.2,
        metavar="P",
        help="share of the pictures in the validation split, 0 to below 1 (default 0.2)",
    )
    parser.add_argument(
        "--edits",
        type=int,
        default=4,
        metavar="N",
        help="most queries for one reference picture (default 4)",
    )
    add_wording(parser)
    add_seed(parser, of="the split and of the queries drawn")
    parser.add_argument(
        "--chains",
        action="store_true",
        help="also write a chain for each query, composed of its labels or captions",
    )
    add_overwrite(parser, "also replace records and gallery files that this command did not write")
    # ranges that argparse does not check
    args = parser.parse_args(argv)
    if not 0 <= args.val < 1 or args.edits < 1:
        raise InputError(
            f"--val {args.val} must be from 0 to below 1 and --edits {args.edits} at least 1"
        )
    if args.wording == "plain" and (args.templates or args.texts > 1):
        raise InputError(
            "--wording plain has one sentence for an edit; leave --texts and --templates out"
        )
    return args


def add_wording(parser: Parser) -> None:
    """Add the options that word an edit of labels."""
    parser.add_argument(
        "--wording",
        choices=("natural", "plain"),
        default="natural",
        help="natural: 'in red', 'with longer sleeves'; plain: 'colour red instead of blue' "
        "(default natural)",
    )
    parser.add_argument(
        "--texts",
        type=positive,
        default=1,
        metavar="N",
        help="differently worded queries for the same edit, at most (default 1)",
    )
    parser.add_argument(
        "--templates",
        metavar="FILE",
        help='JSON file of your own sentences by column, for example {"colour": ["in {new}"]}; see '
        "docs/own_pictures.md (default: by the column's values)",
    )


if __name__ == "__main__":
    run(main)
