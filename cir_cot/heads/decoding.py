"""Decode chains in one pass with a continuous batch; only the hidden state at the retrieval token is kept.

1. `grammar` chooses each token, so that every row keeps the form of a chain and its budgets.
2. The embedding comes from the decoding pass itself, at the retrieval token or the token before it, so there is no
   second pass.
3. Rows that have ended leave the batch and its cache. Once a quarter of the places is free, the next queries' prompts
   are encoded and join, so that the batch stays full until the queries are used up.
4. Tokens that the form prescribes (the rest of a tag) are fed together with the token before them where that saves
   time: on GPUs, where a step costs the same for one token or for eight, and for a single row everywhere.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from cir_cot import compat  # noqa: F401  # isort: skip
import transformers
from transformers.cache_utils import DynamicLayer

from cir_cot.models.backbone import Backbone

from .grammar import ChainRow, Grammar
from .sampling import Sampling, greedy

# Most likely tokens that are tried before a tag is forced.
CANDIDATES = 8
# Share of the places that are free before new rows join: prompts are encoded several at a time.
FREE = 0.25


@dataclass
class DecodingState:
    """Batch of B chains during decoding: the rows in the order given, and embeddings (B, D), 0 until a row ends.

    `steps` counts forward passes over new tokens, `row_steps` the tokens fed in them, padding included.
    """

    rows: list[ChainRow]
    vectors: Tensor
    steps: int = 0
    row_steps: int = 0

    def count(self, tokens: list[list[int]]) -> None:
        """Count one step of each row's new tokens."""
        self.steps += 1
        self.row_steps += len(tokens) * max(map(len, tokens))


@dataclass
class Queue:
    """Queries that wait to be decoded.

    Attributes:
        prompts: maps numbers of rows to their left-padded model inputs, each with its row's first tokens.
        groups: numbers of rows whose prompts are encoded together, the next ones first.
    """

    prompts: Callable[[Sequence[int]], dict[str, Tensor]]
    groups: list[list[int]]

    def take(self, count: int) -> list[int]:
        """Remove and return at most `count` numbers of one group, [] where none is left."""
        if not self.groups or not count:
            return []
        first = self.groups.pop(0)
        if len(first) > count:
            self.groups.insert(0, first[count:])
        return first[:count]


@dataclass
class _Active:
    """The A rows that are being decoded, with the model's state for them."""

    rows: list[int]  # their numbers
    hidden: Tensor  # (A, H) at each row's last token
    mask: Tensor  # (A, T)
    positions: Tensor  # (3, A, 1) of the next token
    cache: transformers.Cache

    def keep(self, places: list[int]) -> None:
        """Keep the rows at these places."""
        self.rows = [self.rows[place] for place in places]
        self.hidden = self.hidden[places]
        self.mask = self.mask[places]
        self.positions = self.positions[:, places]
        if places:
            Backbone.keep_rows(self.cache, torch.tensor(places, device=self.mask.device))

    def join(self, other: "_Active") -> Self:
        """Append other rows, and return all; the shorter cache is padded on the left."""
        width = max(self.mask.shape[1], other.mask.shape[1])
        left = (width - self.mask.shape[1], width - other.mask.shape[1])
        mine = functional.pad(self.mask, (left[0], 0))
        theirs = functional.pad(other.mask, (left[1], 0))
        self.mask = torch.cat([mine, theirs])
        # Only caches for which `can_join` holds are joined.
        layers: list[Any] = self.cache.layers
        others: list[Any] = other.cache.layers
        for layer, more in zip(layers, others, strict=True):
            layer.keys = _joined(layer.keys, more.keys, left)
            layer.values = _joined(layer.values, more.values, left)
        self.rows = self.rows + other.rows
        self.hidden = torch.cat([self.hidden, other.hidden])
        self.positions = torch.cat([self.positions, other.positions], dim=1)
        return self


def _joined(first: Tensor, second: Tensor, left: Sequence[int]) -> Tensor:
    """Join keys or values (A, heads, T, D) of two caches, padded on the left."""
    padded = [
        functional.pad(part, (0, 0, pad, 0))
        for part, pad in zip((first, second), left, strict=True)
    ]
    return torch.cat(padded)


def can_join(cache: transformers.Cache) -> bool:
    """Tell whether rows can join a cache: all its layers hold keys and values, none a recurrent state (Qwen3.5)."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


@torch.no_grad()
def decode(
    backbone: Backbone,
    grammar: Grammar,
    queue: Queue,
    rows: list[ChainRow],
    embed: Callable[[Tensor], Tensor],
    places: int,
    before_ret: bool = False,
    skip: Callable[[Tensor], Tensor] | None = None,
    sampling: Sampling | None = None,
    together: bool | None = None,
) -> Iterator[DecodingState]:
    """Decode the chains of all queries in a queue, yielding the state after every step.

    Args:
        backbone: the model.
        grammar: keeps the chains valid.
        queue: the queries.
        rows: their B chains, which are extended in place.
        embed: maps hidden states (K, H) to embeddings (K, D).
        places: most rows that are decoded at a time.
        before_ret: embed the state before the retrieval token instead of the state at it.
        skip: maps hidden states (A, H) at prompts' ends to bool (A,): rows without a chain.
        sampling: draws tokens, in place of the most likely ones.
        together: feed prescribed tokens together, by default on GPUs and for a single row.
    """
    banned = unusable(backbone)  # (V,)
    skipped: set[int] = set()
    state = DecodingState(rows, torch.zeros(0))
    active: _Active | None = None
    while queue.groups or (active and active.rows):
        # Let new rows join.
        numbers = queue.take(_places_to_fill(active, places))
        if numbers:
            new = _start(backbone, queue.prompts(numbers), numbers)
            if skip is not None:
                skipped |= {numbers[place] for place in skip(new.hidden).nonzero()[:, 0].tolist()}
            if not len(state.vectors):
                state.vectors = torch.zeros(len(rows), embed(new.hidden[:1]).shape[1])
            active = active.join(new) if active and active.rows else new
            continue
        assert active is not None
        # Choose each row's next tokens.
        likely = _likely_tokens(backbone, active, banned, rows, sampling)
        at_once = len(likely) == 1 or banned.is_cuda if together is None else together
        choose = grammar.choose_on if at_once else grammar.choose_one
        tokens = []
        for row, candidates in zip(active.rows, likely, strict=True):
            tokens.append([backbone.ret_id] if row in skipped else choose(rows[row], candidates))
        # Feed them; the retrieval token, too, for its hidden state is the embedding.
        states = _feed(backbone, active, tokens)  # (A, 2, H)
        state.count(tokens)
        # Embed the rows that have ended, and drop them.
        ended = [place for place, ids in enumerate(tokens) if ids[-1] == backbone.ret_id]
        if ended:
            read = embed(states[ended, 0 if before_ret else 1])
            state.vectors[[active.rows[place] for place in ended]] = read.float().cpu()
            active.keep([place for place, ids in enumerate(tokens) if ids[-1] != backbone.ret_id])
        yield state


def _likely_tokens(
    backbone: Backbone,
    active: _Active,
    banned: Tensor,
    rows: list[ChainRow],
    sampling: Sampling | None,
) -> list[list[int]]:
    """Return the tokens to try for each of the A rows, the first choice first."""
    logits = backbone.logits(active.hidden).float().masked_fill(banned, -torch.inf)  # (A, V)
    if sampling is None:
        return greedy(logits, CANDIDATES).tolist()
    places = [(row, len(rows[row].ids)) for row in active.rows]
    return sampling(logits, CANDIDATES, places).tolist()


def _places_to_fill(active: _Active | None, places: int) -> int:
    """Return how many rows may join: none while most places are taken, for prompts are encoded several at a time."""
    if active is None or not active.rows:
        return places
    free = places - len(active.rows)
    return free if free >= FREE * places and can_join(active.cache) else 0


def _start(backbone: Backbone, inputs: dict[str, Tensor], numbers: list[int]) -> _Active:
    """Encode the prompts of rows."""
    positions = backbone.positions(inputs)
    cache = backbone.new_cache()
    hidden = backbone(inputs, positions, cache)[:, -1]  # (A, H)
    following = backbone.next_positions(positions)
    return _Active(list(numbers), hidden, inputs["attention_mask"], following, cache)


def _feed(backbone: Backbone, active: _Active, tokens: list[list[int]]) -> Tensor:
    """Feed each row's new tokens, padded on the left to S.

    Returns:
        Hidden states (A, 2, H) at the token before each row's last one, and at the last.
    """
    longest = max(map(len, tokens))
    device = active.mask.device
    lengths = torch.tensor([len(ids) for ids in tokens], device=device)  # (A,)
    padded = [[backbone.ret_id] * (longest - len(ids)) + ids for ids in tokens]
    ids = torch.tensor(padded, device=device)  # (A, S)
    # Places of tokens within the step, below 0 at padding.
    places = torch.arange(longest, device=device) - (longest - lengths)[:, None]  # (A, S)
    active.mask = torch.cat([active.mask, (places >= 0).to(active.mask.dtype)], dim=1)
    positions = active.positions + places.clamp(min=0)  # (3, A, S)
    step = {"input_ids": ids, "attention_mask": active.mask}
    hidden = backbone(step, positions, active.cache)  # (A, S, H)
    active.positions = active.positions + lengths[:, None]
    # A row's only token follows the last state of the step before.
    previous = active.hidden
    if longest > 1:
        previous = torch.where((lengths > 1)[:, None], hidden[:, -2], previous)
    active.hidden = hidden[:, -1]
    return torch.stack([previous, active.hidden], dim=1)


def unusable(backbone: Backbone) -> Tensor:
    """Return (V,) bool: special tokens and spare rows of the vocabulary, which no chain may hold, but not <ret>."""
    tokenizer = backbone.processor.tokenizer
    banned = torch.zeros(backbone.config.get_text_config().vocab_size, dtype=torch.bool)  # (V,)
    banned[len(tokenizer) :] = True
    banned[list(tokenizer.all_special_ids)] = True
    banned[backbone.ret_id] = False
    return banned.to(backbone.device)
