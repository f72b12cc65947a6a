"""Generate synthetic rows for measurements: noise pictures, and chains of a given length.

Nothing can be learned from them.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from cir_cot.heads.base import TrainingRow
from cir_cot.records import Cot, Record

WORDS = (
    "red",
    "blue",
    "long",
    "short",
    "shirt",
    "dress",
    "with",
    "without",
    "a",
    "the",
    "sleeves",
    "stripes",
)
# Width and height of typical photographs in benchmarks: upright ones of garments, wide ones from the web.
PHOTOGRAPHS = (
    (192, 256),
    (206, 305),
    (260, 330),
    (300, 400),
    (342, 445),
    (500, 375),
    (640, 480),
    (1024, 683),
)


class SyntheticPairs:
    """Generate `count` rows with different pictures, in place of a CirDataset.

    Args:
        count: Number of rows.
        pixels: Side of every picture, or sizes (width, height) that rows take in turns.
        words: Words of a chain; every third chain has half as many, so that rows differ in length.

    Example:
        rows = SyntheticPairs(8, PHOTOGRAPHS)
        rows[0, 0].reference.size  # (192, 256)
    """

    def __init__(self, count: int, pixels: int | Sequence[tuple[int, int]], words: int = 60):
        self.sizes = [(pixels, pixels)] if isinstance(pixels, int) else list(pixels)
        self.words = words
        self.records: Sequence[Record] = [self._record(index) for index in range(count)]

    def _record(self, index: int) -> Record:
        """Return the record of a row; its text is the first words of its chain."""
        length = self.words if index % 3 else self.words // 2
        chosen = np.random.default_rng(index).choice(WORDS, length)
        # A chain has three sections.
        third = len(chosen) // 3
        sections = (" ".join(chosen[at : at + third]) for at in (0, third, 2 * third))
        return Record(str(index), f"r{index}", " ".join(chosen[:6]), (f"t{index}",), Cot(*sections))

    def corpus(self) -> list[str]:
        """Return the text of the rows, for a tokenizer to learn."""
        return [" ".join(WORDS)]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, item: tuple[int, int]) -> TrainingRow:
        """Return row `index`, with `draw` as its random number."""
        index, draw = item
        width, height = self.sizes[index % len(self.sizes)]
        # The index is the seed, so that a row is the same in every epoch and process.
        noise = np.random.default_rng(index).integers(
            256, size=(2, height, width, 3), dtype=np.uint8
        )
        reference, target = map(Image.fromarray, noise)
        return TrainingRow(self.records[index], reference, target, draw=draw)
