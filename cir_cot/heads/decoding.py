"""Writing chains: greedy decoding of a batch that keeps every chain in form, and of every row only what is read.

1. A token is taken only if the row can still become a chain: the tags in order, no part empty, no other tag inside a
   part, the retrieval token right behind the last part and nowhere else. If the likeliest token breaks that, the next
   likely one is taken; if none does, the tag that is due is written. Such a row is flagged.
2. Each part has a budget of tokens. One that reaches it is closed, and the row is flagged.
3. The vector is read from the decoding itself, at the retrieval token or before it, so there is no second pass. Rows
   that have ended leave the batch and its cache; of the hidden states nothing else is kept.

Tags are looked for in the text, not in the tokens: a tokenizer may join the end of one tag with the start of the next
("><") or with the word before ("."  and "</" to ".</"), and such tokens are taken as training had them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from cir_cot.models.backbone import Backbone
from cir_cot.models.chat import ChatEncoder
from cir_cot.prompts import TAG

NO_TOKEN = "no retrieval token: the {part} was cut at {budget} tokens"
NO_CHAIN = "chain is not valid: its form was forced in the {part}"
CANDIDATES = 8  # likeliest tokens looked at before a tag is written by force
SHARES = {
    "caption": 0.25,
    "reasoning": 0.5,
    "conclusion": 0.25,
}  # of max_new_tokens; reasoning is the longest part
WHITESPACE = "ĠĊĉč▁ \n\t\r"  # white space as tokenizers spell it


class ChainState(NamedTuple):
    """Where a chain is: in which part, what of a tag is still due, and what the part says so far."""

    part: int = 0
    due: str = ""
    said: str = ""


def advance(place: ChainState, piece: str, parts: Sequence[str]) -> ChainState | None:
    """Return where a chain of `parts` is after `piece`, or None if no chain goes on like that."""
    if place.part == len(parts) or not piece:
        return None
    if place.due.startswith(piece):
        return ChainState(place.part, place.due[len(piece) :])
    if not piece.startswith(place.due):
        return None
    said = place.said + piece[len(place.due) :]
    tag = TAG.search(said)
    if tag is None:
        return ChainState(place.part, "", said)
    if tag.group() != f"</{parts[place.part]}>" or not said[: tag.start()].strip(WHITESPACE):
        return None
    after, part = said[tag.end() :], place.part + 1
    if part == len(parts):
        return None if after else ChainState(part)
    opened = ChainState(part, f"<{parts[part]}>")
    return advance(opened, after, parts) if after else opened


@dataclass
class ChainRow:
    """One chain while it is written: its tokens without the retrieval token, and its flag."""

    place: ChainState
    ids: list[int] = field(default_factory=list)
    forced: list[int] = field(
        default_factory=list
    )  # tokens that come next, whatever the model says
    used: int = 0  # tokens of the current part
    flag: str = ""


class Grammar:
    """Chooses the next token of a row so that the chain stays one of `parts`, each within its budget of tokens."""

    def __init__(self, encoder: ChatEncoder, parts: Sequence[str], max_new_tokens: int):
        self.encoder, self.tokenizer, self.parts = encoder, encoder.tokenizer, tuple(parts)
        self.budgets = [max(1, round(SHARES[part] * max_new_tokens)) for part in parts]
        self.start = common_start([self._plain(f"<{parts[0]}>{letter}") for letter in "AaTt1 "])

    def row(self, ids: Sequence[int]) -> ChainRow:
        """Return a new row whose chain begins with `ids`: the grammar's start, or nothing."""
        row = ChainRow(ChainState(0, f"<{self.parts[0]}>"))
        for token in ids:
            self._take(row, token)
        return row

    def choose(self, row: ChainRow, candidates: Sequence[int]) -> int:
        """Take and return a row's next token, from the likeliest `candidates`, best first; the retrieval token ends."""
        if row.forced:
            return self._take(row, row.forced.pop(0))
        if row.place.part == len(self.parts):
            return self.encoder.ret_id
        part = self.parts[row.place.part]
        budget = self.budgets[row.place.part]
        if not row.place.due and row.used >= budget:
            row.flag = row.flag or NO_TOKEN.format(part=part, budget=budget)
            return self._force(row)
        for rank, token in enumerate(candidates):
            if self._advance(row, token) is not None:
                row.flag = row.flag or (NO_CHAIN.format(part=part) if rank else "")
                return self._take(row, token)
        row.flag = row.flag or NO_CHAIN.format(part=part)
        return self._force(row)

    def _advance(self, row: ChainRow, token: int) -> ChainState | None:
        piece = "" if token == self.encoder.ret_id else self.tokenizer.convert_ids_to_tokens(token)
        return advance(row.place, piece or "", self.parts)

    def _take(self, row: ChainRow, token: int) -> int:
        place = self._advance(row, token)
        assert place is not None, "a chain's tags are tokenised as their own text"
        row.used = row.used + 1 if place.part == row.place.part and not row.place.due else 0
        row.place = place
        row.ids.append(token)
        return token

    def _force(self, row: ChainRow) -> int:
        """Write the tag that is due, or the one that closes the part; an empty part gets a dash."""
        said = row.place.said.strip(WHITESPACE)
        close = f"</{self.parts[row.place.part]}>"
        row.forced = self._plain(row.place.due or (close if said else "-" + close))
        return self._take(row, row.forced.pop(0))

    def _plain(self, text: str) -> list[int]:
        return self.encoder.plain_ids([text])[0]


def common_start(rows: Sequence[Sequence[int]]) -> list[int]:
    """Return the tokens that all rows begin with.

    So a chain starts with tokens that no first word changes: where a tokenizer joins the tag's ">" with a word, the
    model writes that ">" itself, as it was trained to.
    """
    count = 0
    while all(len(row) > count and row[count] == rows[0][count] for row in rows):
        count += 1
    return list(rows[0][:count])


@dataclass
class DecodingState:
    """A batch of chains while they are written: rows in the order given, vectors (B, D) of those that have ended."""

    rows: list[ChainRow]
    vectors: Tensor


@torch.no_grad()
def decode(
    backbone: Backbone,
    grammar: Grammar,
    inputs: dict[str, Tensor],
    rows: list[ChainRow],
    read: Callable[[Tensor], Tensor],
    before_ret: bool = False,
    skip: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[DecodingState]:
    """Write the chains of a left-padded batch of B prompts, each with its row's first tokens; yield after every step.

    `read` makes vectors (K, D) of hidden states (K, H). `skip` looks at the hidden states (B, H) at the prompts' ends
    and says (B,) which rows need no chain: they get the retrieval token at once.
    """
    ret, banned = grammar.encoder.ret_id, unusable(backbone)
    positions, mask, cache = (
        backbone.positions(inputs),
        inputs["attention_mask"],
        backbone.new_cache(),
    )
    hidden = backbone(inputs, positions, cache)[:, -1]  # (B, H)
    positions = backbone.next_positions(positions)
    skipped = [False] * len(rows) if skip is None else skip(hidden).tolist()
    vectors = read(hidden).float().cpu().zero_()  # (B, D)
    alive = list(range(len(rows)))  # rows that the batch still holds; A of them
    while alive:
        likely = (
            backbone.logits(hidden)
            .float()
            .masked_fill(banned, -torch.inf)
            .topk(CANDIDATES)
            .indices.tolist()
        )
        tokens = [
            ret if skipped[row] else grammar.choose(rows[row], best)
            for row, best in zip(alive, likely, strict=True)
        ]
        mask = functional.pad(mask, (0, 1), value=1)  # (A, T + 1)
        step = {
            "input_ids": torch.tensor(tokens, device=mask.device)[:, None],
            "attention_mask": mask,
        }
        before, hidden = hidden, backbone(step, positions, cache)[:, -1]  # (A, H)
        positions = positions + 1
        ended = [place for place, token in enumerate(tokens) if token == ret]
        if ended:
            vectors[[alive[place] for place in ended]] = read(
                (before if before_ret else hidden)[ended]
            ).cpu()
            going = [place for place, token in enumerate(tokens) if token != ret]
            alive, hidden, mask, positions = (
                [alive[p] for p in going],
                hidden[going],
                mask[going],
                positions[:, going],
            )
            if alive:
                backbone.keep_rows(cache, torch.tensor(going, device=mask.device))
        yield DecodingState(rows, vectors)


def unusable(backbone: Backbone) -> Tensor:
    """Return (V,) bool: tokens no chain may hold, i.e. special tokens and spare rows, but the retrieval token."""
    tokenizer = backbone.processor.tokenizer
    banned = torch.zeros(backbone.config.get_text_config().vocab_size, dtype=torch.bool)
    banned[len(tokenizer) :] = True
    banned[list(tokenizer.all_special_ids)] = True
    banned[backbone.ret_id] = False
    return banned.to(backbone.device)
