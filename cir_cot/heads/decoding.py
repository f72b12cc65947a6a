"""Batched greedy decoding constrained to the chain format; only the hidden state at the retrieval token is kept.

1. A token is accepted only if the row can still become a chain: the tags in order, no section empty, no other tag
   inside a section, the retrieval token directly after the last section and nowhere else. If the most likely token
   violates this, the next most likely one is tried; if none fits, the missing tag is written. Such a row is flagged.
2. Each section has a token budget. A section that reaches it is closed, and the row is flagged.
3. The embedding comes from the decoding pass itself, at the retrieval token or the token before it, so there is no
   second pass. Finished rows leave the batch and its cache.

Tags are matched in the text, not in the tokens: a tokenizer may join the end of one tag with the start of the next
("><") or with the text before it ("." and "</" to ".</"), and such tokens are accepted as they occur in training.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional

from cir_cot.models.backbone import Backbone
from cir_cot.models.chat import ChatEncoder
from cir_cot.prompts import TAG
from cir_cot.retriever import Flag

# Most likely tokens that are tried before a tag is forced.
CANDIDATES = 8
# Shares of max_new_tokens; the reasoning is the longest section.
SHARES = {"caption": 0.25, "reasoning": 0.5, "conclusion": 0.25}
# White space as tokenizers spell it.
WHITESPACE = "ĠĊĉč▁ \n\t\r"


def missing_token(section: str, budget: int) -> Flag:
    """Return the flag of a chain whose section was cut at its budget of tokens."""
    return Flag("missing_token", f"no retrieval token: the {section} was cut at {budget} tokens")


def forced_form(section: str) -> Flag:
    """Return the flag of a chain that was kept valid by force in a section."""
    return Flag("forced_form", f"chain is not valid: its form was forced in the {section}")


class ChainState(NamedTuple):
    """Parser state of a partial chain.

    Attributes:
        section: index of the current section; the number of sections once the chain is complete.
        pending_tag: rest of a tag that must come next, "" for none.
        text: text of the current section so far.
    """

    section: int = 0
    pending_tag: str = ""
    text: str = ""


def advance(state: ChainState, piece: str, parts: Sequence[str]) -> ChainState | None:
    """Return the state of a chain with sections `parts` after `piece` of text, or None if no chain continues so.

    Example:
        state = advance(ChainState(0, "<caption>"), "<caption>a re", PARTS)  # ChainState(0, "", "a re")
    """
    if state.section == len(parts) or not piece:
        return None
    # First comes what is missing of a tag.
    if state.pending_tag.startswith(piece):
        return ChainState(state.section, state.pending_tag[len(piece) :])
    if not piece.startswith(state.pending_tag):
        return None
    # Then text, up to the first tag, which must be the one that closes the section.
    text = state.text + piece[len(state.pending_tag) :]
    tag = TAG.search(text)
    if tag is None:
        return ChainState(state.section, "", text)
    closes = tag.group() == f"</{parts[state.section]}>"
    if not closes or not text[: tag.start()].strip(WHITESPACE):
        return None
    # A closed section is followed by the next one, or by nothing.
    rest = text[tag.end() :]
    section = state.section + 1
    if section == len(parts):
        return None if rest else ChainState(section)
    opened = ChainState(section, f"<{parts[section]}>")
    return advance(opened, rest, parts) if rest else opened


@dataclass
class ChainRow:
    """One chain during decoding.

    Attributes:
        state: where the chain is.
        ids: its tokens so far, without the retrieval token.
        forced: tokens that come next, whatever the model predicts.
        used: tokens of the current section.
        flag: why it had to be forced or cut, "" if it had not.
    """

    state: ChainState
    ids: list[int] = field(default_factory=list)
    forced: list[int] = field(default_factory=list)
    used: int = 0
    flag: str = ""


class Grammar:
    """Choose the next token of a row so that its chain keeps the sections `parts`, each within its token budget."""

    def __init__(self, encoder: ChatEncoder, parts: Sequence[str], max_new_tokens: int):
        self.encoder = encoder
        self.tokenizer = encoder.tokenizer
        self.parts = tuple(parts)
        self.budgets = [max(1, round(SHARES[part] * max_new_tokens)) for part in parts]
        self.start = self.tokens_of(f"<{parts[0]}>")

    def tokens_of(self, begun: str) -> list[int]:
        """Return the tokens that a chain begins with, whatever the first letter of the text that follows."""
        return common_start([self._plain(begun + letter) for letter in "AaTt1 "])

    def row(self, ids: Sequence[int]) -> ChainRow:
        """Return a new row whose chain begins with `ids`: the grammar's start, or nothing."""
        row = ChainRow(ChainState(0, f"<{self.parts[0]}>"))
        for token in ids:
            self._take(row, token)
        return row

    def choose(self, row: ChainRow, candidates: Sequence[int]) -> int:
        """Append a row's next token and return it; the retrieval token ends the row.

        Args:
            row: the chain so far; it is changed in place.
            candidates: the most likely token ids, best first.
        """
        if row.forced:
            return self._take(row, row.forced.pop(0))
        if row.state.section == len(self.parts):
            return self.encoder.ret_id
        section = self.parts[row.state.section]
        budget = self.budgets[row.state.section]
        # A section at its budget is closed.
        if not row.state.pending_tag and row.used >= budget:
            row.flag = row.flag or missing_token(section, budget)
            return self._force(row)
        # The best candidate that keeps the chain valid; any but the first is a correction.
        for rank, token in enumerate(candidates):
            if self._advance(row, token) is not None:
                row.flag = row.flag or (forced_form(section) if rank else "")
                return self._take(row, token)
        row.flag = row.flag or forced_form(section)
        return self._force(row)

    def _advance(self, row: ChainRow, token: int) -> ChainState | None:
        if token == self.encoder.ret_id:
            return None
        piece = cast(str | None, self.tokenizer.convert_ids_to_tokens(token))
        return advance(row.state, piece or "", self.parts)

    def _take(self, row: ChainRow, token: int) -> int:
        state = self._advance(row, token)
        assert state is not None, "a chain's tags are tokenised as their own text"
        # Tokens of tags count towards no budget.
        inside = state.section == row.state.section and not row.state.pending_tag
        row.used = row.used + 1 if inside else 0
        row.state = state
        row.ids.append(token)
        return token

    def _force(self, row: ChainRow) -> int:
        """Write the missing tag, or the one that closes the section; an empty section gets a dash."""
        text = row.state.text.strip(WHITESPACE)
        close = f"</{self.parts[row.state.section]}>"
        row.forced = self._plain(row.state.pending_tag or (close if text else "-" + close))
        return self._take(row, row.forced.pop(0))

    def _plain(self, text: str) -> list[int]:
        return self.encoder.plain_ids([text])[0]


def common_start(rows: Sequence[Sequence[int]]) -> list[int]:
    """Return the tokens that all rows begin with.

    A chain is started with tokens that do not depend on its first word: where a tokenizer joins the tag's ">" with a
    word, the model writes that ">" itself, as in training.

    Example:
        common_start([[1, 2, 3], [1, 2], [1, 2, 4]])  # [1, 2]
    """
    count = 0
    while all(len(row) > count and row[count] == rows[0][count] for row in rows):
        count += 1
    return list(rows[0][:count])


@dataclass
class DecodingState:
    """Batch of B chains during decoding: the rows in the order given, and embeddings (B, D), 0 until a row ends."""

    rows: list[ChainRow]
    vectors: Tensor


@dataclass
class _Active:
    """The A rows of a batch that are still being decoded, with the model's state for them."""

    rows: list[int]  # their numbers in the batch
    hidden: Tensor  # (A, H) at each row's last token
    mask: Tensor  # (A, T)
    positions: Tensor  # (3, A, 1) of the next token

    def keep(self, places: list[int]) -> None:
        """Keep the rows at these places."""
        self.rows = [self.rows[place] for place in places]
        self.hidden = self.hidden[places]
        self.mask = self.mask[places]
        self.positions = self.positions[:, places]


@torch.no_grad()
def decode(
    backbone: Backbone,
    grammar: Grammar,
    inputs: dict[str, Tensor],
    rows: list[ChainRow],
    embed: Callable[[Tensor], Tensor],
    before_ret: bool = False,
    skip: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[DecodingState]:
    """Decode the chains of a batch greedily, yielding the state after every token.

    Args:
        backbone: the model.
        grammar: keeps the chains valid.
        inputs: model inputs of B left-padded prompts, each with its row's first tokens.
        rows: the B chains, which are extended in place.
        embed: maps hidden states (K, H) to embeddings (K, D).
        before_ret: embed the state before the retrieval token instead of the state at it.
        skip: maps the hidden states (B, H) at the prompts' ends to bool (B,): rows that need no chain and get the
            retrieval token at once.
    """
    ret = grammar.encoder.ret_id
    banned = unusable(backbone)  # (V,)
    # Encode the prompts.
    positions = backbone.positions(inputs)
    cache = backbone.new_cache()
    hidden = backbone(inputs, positions, cache)[:, -1]  # (B, H)
    skipped = [False] * len(rows) if skip is None else skip(hidden).tolist()
    vectors = embed(hidden).float().cpu().zero_()  # (B, D)
    active = _Active(
        list(range(len(rows))), hidden, inputs["attention_mask"], backbone.next_positions(positions)
    )
    while active.rows:
        # Choose a token for each row.
        logits = backbone.logits(active.hidden).float().masked_fill(banned, -torch.inf)  # (A, V)
        likely = logits.topk(CANDIDATES).indices.tolist()  # A lists
        tokens = []
        for row, candidates in zip(active.rows, likely, strict=True):
            tokens.append(ret if skipped[row] else grammar.choose(rows[row], candidates))
        # Feed the tokens to the model; the retrieval token, too, for its hidden state is the embedding.
        before = active.hidden
        active.mask = functional.pad(active.mask, (0, 1), value=1)  # (A, T + 1)
        ids = torch.tensor(tokens, device=active.mask.device)[:, None]  # (A, 1)
        step = {"input_ids": ids, "attention_mask": active.mask}
        active.hidden = backbone(step, active.positions, cache)[:, -1]  # (A, H)
        active.positions = active.positions + 1
        # Embed the rows that have ended, and drop them.
        ended = [place for place, token in enumerate(tokens) if token == ret]
        if ended:
            states = before if before_ret else active.hidden
            vectors[[active.rows[place] for place in ended]] = embed(states[ended]).cpu()
            going = [place for place, token in enumerate(tokens) if token != ret]
            active.keep(going)
            if going:
                backbone.keep_rows(cache, torch.tensor(going, device=active.mask.device))
        yield DecodingState(rows, vectors)


def unusable(backbone: Backbone) -> Tensor:
    """Return (V,) bool: special tokens and spare rows of the vocabulary, which no chain may hold, but not <ret>."""
    tokenizer = backbone.processor.tokenizer
    banned = torch.zeros(backbone.config.get_text_config().vocab_size, dtype=torch.bool)  # (V,)
    banned[len(tokenizer) :] = True
    banned[list(tokenizer.all_special_ids)] = True
    banned[backbone.ret_id] = False
    return banned.to(backbone.device)
