"""Chains of prescribed tokens, to measure decoding with a model that is not trained."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch

from cir_cot import compat  # noqa: F401  # isort: skip
import transformers

from cir_cot.heads.cot import CotRetriever
from cir_cot.heads.grammar import ChainRow, Grammar
from cir_cot.prompts import cot_to_text
from cir_cot.records import Cot

WORDS = ("red", "blue", "shirt", "dress", "stripes", "sleeves", "longer", "plain", "collar", "soft")


@dataclass
class ToldRow(ChainRow):
    """A chain whose tokens are all prescribed; `free` are the places where a model would have a choice."""

    free: set[int] = field(default_factory=set)


class Told(Grammar):
    """Choose the prescribed tokens of each row, whatever the model's logits are, and then the retrieval token.

    `choose_on` takes as many at a time as the grammar itself would prescribe for such a chain.
    """

    def told(self, chain: Sequence[int]) -> ChainRow:
        """Return a row that will be this chain."""
        row = ToldRow(super().row([]).state, forced=list(chain))
        row.free = self._free_places(chain)
        return row

    def _free_places(self, chain: Sequence[int]) -> set[int]:
        """Return the places in a chain whose tokens a model chooses; it does not choose the retrieval token."""
        row = super().row([])
        free = set()
        for place, token in enumerate(chain):
            if not row.forced:
                free.add(place)
            row.forced = []
            self._take(row, token)
        return free

    def choose_on(self, row: ChainRow, candidates: Sequence[int]) -> list[int]:
        """Take and return the next token, and those after it that are not free."""
        tokens = [self.choose(row, candidates)]
        while tokens[-1] != self.encoder.ret_id and len(row.ids) not in cast(ToldRow, row).free:
            tokens.append(self.choose(row, candidates))
        return tokens

    def choose(self, row: ChainRow, candidates: Sequence[int]) -> int:
        """Take and return the next prescribed token."""
        if not row.forced:
            return self.encoder.ret_id
        row.ids.append(row.forced.pop(0))
        return row.ids[-1]


class Prescribed(transformers.LogitsProcessor):
    """Do the same in generate: each row's next token is the only possible one; the retrieval token ends a row."""

    def __init__(self, rows: list[list[int]], prompt: int):
        self.rows = rows
        self.prompt = prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (B, V) that leave one token."""
        step = input_ids.shape[1] - self.prompt
        wanted = torch.tensor([row[min(step, len(row) - 1)] for row in self.rows])
        return torch.full_like(scores, -torch.inf).scatter(1, wanted[:, None], 0.0)


def make_chains(
    head: CotRetriever, count: int, median: int, spread: float, seed: int
) -> list[list[int]]:
    """Return tokens of `count` chains with log-normal lengths: `median` tokens, `spread` the sigma of the logarithm."""
    draw = random.Random(seed)
    chains = []
    for _ in range(count):
        length = max(12, round(draw.lognormvariate(0, spread) * median))
        words = [
            " ".join(draw.choices(WORDS, k=max(1, length // 4 * share))) for share in (1, 2, 1)
        ]
        chains.append(head.encoder().plain_ids([cot_to_text(Cot(*words))])[0])
    return chains
