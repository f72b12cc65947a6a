"""Write the procedural benchmark (train, iid and novel, with true chains) as a folder dataset."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from cir_cot.cli import run
from cir_cot.data.scene_files import write_scenes
from cir_cot.data.scene_page import draw_page
from cir_cot.options import add_out, add_overwrite, command_parser
from cir_cot.ownership import writing
from cir_cot.storage import written


def main(argv: Sequence[str]) -> None:
    """Write the dataset and print the size of each split."""
    args = parse(argv)
    # the dataset
    with tqdm(unit=" pictures") as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        galleries = write_scenes(
            args.out,
            args.seed,
            references=args.references,
            edits=args.edits,
            size=args.size,
            progress=show,
            test_references=args.test_references,
            train_edits=args.train_edits,
            overwrite=args.overwrite,
        )
    # each reference has its edits, and their results are pictures, too
    for split, pictures in galleries.items():
        edits = args.train_edits if split == "train" and args.train_edits else args.edits
        queries = pictures * edits // (edits + 1)
        print(f"{split:6} {queries:7} queries  {pictures:7} pictures  {args.out}")
    # a page of examples
    if args.page:
        page = Path(args.page)
        with written(page), writing(page.parent, "scenes", [page.name], args.overwrite):
            draw_page(Path(args.out)).save(page, optimize=True)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `cir-cot scenes`."""
    parser = command_parser("scenes", __doc__)
    add_out(parser, "folder for the dataset")
    parser.add_argument(
        "--seed",
        type=int,
        required=True,
        metavar="N",
        help="random seed; the same seed and sizes give the same bytes",
    )
    parser.add_argument(
        "--references",
        type=int,
        default=1000,
        metavar="N",
        help="reference pictures in each split (default 1000)",
    )
    parser.add_argument(
        "--test-references",
        type=int,
        metavar="N",
        help="reference pictures in iid and in novel (default: as in train)",
    )
    parser.add_argument(
        "--edits",
        type=int,
        default=16,
        metavar="N",
        help="queries for each reference picture (default 16)",
    )
    parser.add_argument(
        "--train-edits",
        type=int,
        metavar="N",
        help="queries for each reference picture in train (default: as in the others)",
    )
    parser.add_argument(
        "--size",
        type=int,
        default=84,
        metavar="PX",
        help="width and height in pixels, a multiple of 12 (default 84)",
    )
    parser.add_argument(
        "--page",
        metavar="FILE",
        help="also draw a sample of queries with their chains, as a PNG",
    )
    add_overwrite(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(main)
