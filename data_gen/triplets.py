"""Make a folder dataset of triplets (picture, edit, pictures) from your own pictures and their labels or captions."""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

from cir_cot.cli import run
from cir_cot.data.triplets import picture_ids, read_descriptions, split, triplets
from cir_cot.errors import InputError
from cir_cot.files import write_text_atomic
from cir_cot.options import (
    add_overwrite,
    add_root,
    add_seed,
    command_parser,
)
from cir_cot.ownership import writing
from cir_cot.records import write_records


def main(argv: Sequence[str]) -> int:
    """Write records and galleries of train and val beside the pictures, and print what is in them."""
    args = parse_arguments(argv)
    root = Path(args.root)
    names = picture_ids(root / "images")
    described = read_descriptions(Path(args.labels), names)
    splits = split(list(described), args.val)
    written = {}
    for name, images in splits.items():
        some = {image: described[image] for image in images}
        written[name] = list(
            triplets(some, args.edits, random.Random(args.seed), args.chains, f"{root.name}/{name}")
        )
        if images and not written[name]:
            raise InputError(
                f"{args.labels}: no two of the {len(images)} pictures of {name} are alike enough for an edit; give "
                f"more pictures, or labels that several pictures share{'' if name == 'train' else ', or --val 0'}"
            )
    some = {name: records for name, records in written.items() if records}
    files = [file for name in some for file in (f"records.{name}.jsonl", f"gallery.{name}.txt")]
    with writing(root, "triplets", files, args.overwrite):
        for name, records in some.items():
            write_records(root / f"records.{name}.jsonl", records)
            write_text_atomic(
                root / f"gallery.{name}.txt", "".join(f"{image}\n" for image in splits[name])
            )
            print(f"{name:5} {len(records):7} queries  {len(splits[name]):7} pictures")
    if len(described) < len(names):
        print(
            f"{len(names) - len(described)} pictures have no line in {args.labels} and are not used"
        )
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
    add_seed(parser, of="the split and of the queries drawn")
    parser.add_argument(
        "--chains",
        action="store_true",
        help="also write a chain for each query, composed of its labels or captions",
    )
    add_overwrite(parser, "also replace records and gallery files that this command did not write")
    args = parser.parse_args(argv)
    if not 0 <= args.val < 1 or args.edits < 1:
        raise InputError(
            f"--val {args.val} must be from 0 to below 1 and --edits {args.edits} at least 1"
        )
    return args


if __name__ == "__main__":
    run(main)
