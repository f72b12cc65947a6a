"""Draw a page of example queries of the procedural benchmark, with their chains."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from cir_cot.records import Cot, Record, read_records

from .scenes import KINDS

SIDE = 150  # pixels of a picture
TEXT = 350  # pixels of the column of text
MARGIN = 14  # pixels between them
LINE_LENGTH = 62  # characters of a line of text
NO_CHAIN = Cot("", "", "")


def draw_page(folder: Path, splits: Sequence[str] = ("iid", "novel")) -> Image.Image:
    """Draw one query of each kind of edit and split: reference, edit and chain, target.

    Args:
        folder: a folder that `write_scenes` wrote.
        splits: the splits, a column of the page each.
    """
    width = 2 * SIDE + TEXT + 5 * MARGIN
    height = SIDE + MARGIN
    size = (len(splits) * width - MARGIN, len(KINDS) * height + MARGIN)
    # a column for each split, a row for each kind of edit
    page = Image.new("RGB", size, "white")
    for column, split in enumerate(splits):
        records = read_records(folder / f"records.{split}.jsonl")
        for row, kind in enumerate(KINDS):
            x = column * width + MARGIN
            y = row * height + MARGIN
            _draw_query(page, folder / "images", split, example(records, kind), x, y)
    return page


def example(records: Sequence[Record], kind: str) -> Record:
    """Return a query of a kind of edit that shows something, or else the first one.

    Its reference has three or four objects, and the edit selects at least two of them (or adds
    one).
    """
    chosen = [record for record in records if record.source.endswith(f"/{kind}")]
    for record in chosen:
        cot = record.cot or NO_CHAIN
        # a selector that means one object shows little
        several = kind == "add" or cot.reasoning.count(": yes") > 1
        if several and cot.caption.count(", ") in (2, 3):
            return record
    return chosen[0]


def _draw_query(
    page: Image.Image, images: Path, split: str, record: Record, x: int, y: int
) -> None:
    """Draw one query at (x, y) of the page: its reference, its text and chain, its target."""
    # the two pictures
    middle = x + SIDE + MARGIN
    _paste(page, images / f"{record.reference}.png", x, y)
    _paste(page, images / f"{record.targets[0]}.png", middle + TEXT + MARGIN, y)

    # the chain, a paragraph for each section
    cot = record.cot or NO_CHAIN
    sections = {"caption": cot.caption, "reasoning": cot.reasoning, "conclusion": cot.conclusion}
    lines: list[str] = []
    for name, section in sections.items():
        lines += textwrap.wrap(f"{name}: {section}", LINE_LENGTH, break_on_hyphens=False)

    # the text of the query above the chain
    draw = ImageDraw.Draw(page)
    bold = ImageFont.load_default(13)
    plain = ImageFont.load_default(11)
    draw.text((middle, y), f"{split}: {record.text}", "black", bold)
    draw.multiline_text((middle, y + 20), "\n".join(lines), "#444444", plain, spacing=2)


def _paste(page: Image.Image, file: Path, x: int, y: int) -> None:
    """Paste a picture at (x, y), scaled to SIDE."""
    with Image.open(file) as picture:
        page.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (x, y))
