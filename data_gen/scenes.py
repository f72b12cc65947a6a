"""Write the procedural benchmark (train, iid and novel, with true chains) as a folder dataset."""

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from cir_cot.cli import run
from cir_cot.data.scenes import KINDS, write_scenes
from cir_cot.options import (
    add_out,
    add_overwrite,
    command_parser,
)
from cir_cot.ownership import writing
from cir_cot.records import Record, read_records
from cir_cot.storage import written

SIDE, TEXT, MARGIN = 150, 350, 14  # pixels of the page: a picture, its words, the space between


def example(records: Sequence[Record], kind: str) -> Record:
    """Pick a telling query of a kind of edit: three or four objects, at least two of which the edit means (or adds)."""
    chosen = [record for record in records if record.source.endswith(f"/{kind}")]
    telling = (
        r
        for r in chosen
        if r.cot.caption.count(", ") in (2, 3)
        and (kind == "add" or r.cot.reasoning.count(": yes") > 1)
    )
    return next(telling, chosen[0])


def draw_page(folder: Path, splits: Sequence[str] = ("iid", "novel")) -> Image.Image:
    """One query of each kind of edit and split: reference, edit and chain, target."""
    width, height = 2 * SIDE + TEXT + 5 * MARGIN, SIDE + MARGIN
    page = Image.new("RGB", (len(splits) * width - MARGIN, len(KINDS) * height + MARGIN), "white")
    draw, bold, plain = ImageDraw.Draw(page), ImageFont.load_default(13), ImageFont.load_default(11)
    for column, split in enumerate(splits):
        records = read_records(folder / f"records.{split}.jsonl")
        for row, kind in enumerate(KINDS):
            record, x, y = example(records, kind), column * width + MARGIN, row * height + MARGIN
            for name, at in (
                (record.reference, x),
                (record.targets[0], x + SIDE + TEXT + 2 * MARGIN),
            ):
                with Image.open(folder / "images" / f"{name}.png") as picture:
                    page.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (at, y))
            parts = (f"caption: {record.cot.caption}", f"reasoning: {record.cot.reasoning}")
            words = [*parts, f"conclusion: {record.cot.conclusion}"]
            lines = [
                line for part in words for line in textwrap.wrap(part, 62, break_on_hyphens=False)
            ]
            draw.text((x + SIDE + MARGIN, y), f"{split}: {record.text}", "black", bold)
            draw.multiline_text(
                (x + SIDE + MARGIN, y + 20), "\n".join(lines), "#444444", plain, spacing=2
            )
    return page


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


def main(argv: Sequence[str]) -> None:
    """Write the dataset and print the size of each split."""
    args = parse(argv)
    with tqdm(unit=" pictures") as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        sizes = (args.references, args.edits, args.size)
        galleries = write_scenes(
            args.out, args.seed, *sizes, show, args.test_references, args.overwrite
        )
    for split, gallery in galleries.items():
        queries = gallery * args.edits // (args.edits + 1)
        print(f"{split:6} {queries:7} queries  {gallery:7} pictures  {args.out}")
    if args.page:
        page = Path(args.page)
        with written(page), writing(page.parent, "scenes", [page.name], args.overwrite):
            draw_page(Path(args.out)).save(page, optimize=True)


if __name__ == "__main__":
    run(main)
