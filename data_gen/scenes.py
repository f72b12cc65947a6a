"""Write the procedural benchmark (train, iid and novel, with true chains) as a folder dataset."""

import argparse
from collections.abc import Sequence

from tqdm import tqdm

from cir_cot.cli import run
from cir_cot.scenes import SPLITS, write_scenes


def main(argv: Sequence[str]) -> None:
    """Write the dataset and print the size of each split."""
    parser = argparse.ArgumentParser(prog="cir-cot scenes", description=__doc__)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--seed", type=int, required=True, help="the same seed and sizes give the same bytes")
    parser.add_argument("--references", type=int, default=1000, help="reference pictures a split (default 1000)")
    parser.add_argument("--edits", type=int, default=16, help="queries on each reference (default 16)")
    parser.add_argument(
        "--size", type=int, default=84, help="width and height in pixels, a multiple of 12 (default 84)"
    )
    args = parser.parse_args(argv)
    with tqdm(total=len(SPLITS) * args.references * (args.edits + 1), unit=" pictures") as bar:
        galleries = write_scenes(
            args.out, args.seed, args.references, args.edits, args.size, lambda done, total: bar.update(done - bar.n)
        )
    for split, gallery in galleries.items():
        print(f"{split:6} {args.references * args.edits:7} queries  {gallery:7} pictures  {args.out}")


if __name__ == "__main__":
    run(main)
