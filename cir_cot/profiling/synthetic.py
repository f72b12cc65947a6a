"""Rows for measurements: noise pictures and chains of a given length; nothing can be learned from them."""

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
# Width and height of photographs as benchmarks hold them: upright ones of garments, wide ones from the web.
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
    """`count` rows, a different picture on every side of every one; `words` in a chain.

    Pictures are of `pixels` x `pixels`, or of a list's sizes (width, height) in turn. Every third chain is half as
    long, so that rows differ. Stands in for a CirDataset.
    """

    def __init__(self, count: int, pixels: int | Sequence[tuple[int, int]], words: int = 60):
        self.sizes, self.words = (
            [(pixels, pixels)] if isinstance(pixels, int) else list(pixels),
            words,
        )
        self.records = [self._record(index) for index in range(count)]

    def _record(self, index: int) -> Record:
        chosen = np.random.default_rng(index).choice(
            WORDS, self.words if index % 3 else self.words // 2
        )
        third = len(chosen) // 3
        parts = (" ".join(chosen[at : at + third]) for at in (0, third, 2 * third))
        return Record(str(index), f"r{index}", " ".join(chosen[:6]), (f"t{index}",), Cot(*parts))

    def corpus(self) -> list[str]:
        """What the rows say, for a tokenizer to learn."""
        return [" ".join(WORDS)]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, item: tuple[int, int]) -> TrainingRow:
        index, draw = item
        width, height = self.sizes[index % len(self.sizes)]
        noise = np.random.default_rng(index).integers(
            256, size=(2, height, width, 3), dtype=np.uint8
        )
        return TrainingRow(
            self.records[index], *(Image.fromarray(picture) for picture in noise), draw=draw
        )
