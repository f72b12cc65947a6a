"""The form of a chain, followed token by token while it is written.

A token is accepted only if the row can still become a chain: the tags in order, no section empty, no other tag inside a
section, the retrieval token directly after the last section and nowhere else. If the most likely token violates this,
the next most likely one is tried; if none fits, the missing tag is written. Such a row is flagged. Each section has a
token budget. A section that reaches it is closed, and the row is flagged.

Tags are matched in the text, not in the tokens: a tokenizer may join the end of one tag with the start of the next
("><") or with the text before it ("." and "</" to ".</"), and such tokens are accepted as they occur in training.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

from cir_cot.models.chat import ChatEncoder
from cir_cot.prompts import TAG
from cir_cot.retriever import Flag

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
        chosen: places in `ids` of the tokens that the model chose itself.
    """

    state: ChainState
    ids: list[int] = field(default_factory=list)
    forced: list[int] = field(default_factory=list)
    used: int = 0
    flag: str = ""
    chosen: list[int] = field(default_factory=list)


class Grammar:
    """Choose the next token of a row so that its chain keeps the sections `parts`, each within its token budget."""

    def __init__(self, encoder: ChatEncoder, parts: Sequence[str], max_new_tokens: int):
        self.encoder = encoder
        self.tokenizer = encoder.tokenizer
        self.parts = tuple(parts)
        self.budgets = [max(1, round(SHARES[part] * max_new_tokens)) for part in parts]
        self.start = self.tokens_of(f"<{parts[0]}>")
        # For each section the tokens that end it, by what is left of the text: "caption><reasoning>" after "</".
        self.endings = [self._ending(number) for number in range(len(parts))]

    def tokens_of(self, begun: str) -> list[int]:
        """Return the tokens that a chain begins with, whatever the first letter of the text that follows."""
        return common_start([self._plain(begun + letter) for letter in "AaTt1 "])

    def _tags_after(self, number: int) -> str:
        """Return the tag that closes a section, and the one that opens the next."""
        close = f"</{self.parts[number]}>"
        return close if number + 1 == len(self.parts) else f"{close}<{self.parts[number + 1]}>"

    def _ending(self, number: int) -> dict[str, list[int]]:
        """Return the tokens that are left of the tags after a section, by the text that is left of them."""
        text = self._tags_after(number)
        last = number + 1 == len(self.parts)
        tokens = self._plain(text) if last else self.tokens_of(text)
        left = {}
        for at, token in enumerate(tokens):
            text = text[len(cast(str, self.tokenizer.convert_ids_to_tokens(token))) :]
            left[text] = tokens[at + 1 :]
        return left

    def row(self, ids: Sequence[int]) -> ChainRow:
        """Return a new row whose chain begins with `ids`: the grammar's start, or nothing."""
        row = ChainRow(ChainState(0, f"<{self.parts[0]}>"))
        for token in ids:
            row.forced = []  # the tokens that are given need not be those that the form prescribes
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
                row.chosen.append(len(row.ids))
                return self._take(row, token)
        row.flag = row.flag or forced_form(section)
        return self._force(row)

    def choose_one(self, row: ChainRow, candidates: Sequence[int]) -> list[int]:
        """Append a row's next token as `choose` does."""
        return [self.choose(row, candidates)]

    def choose_on(self, row: ChainRow, candidates: Sequence[int]) -> list[int]:
        """Append a row's next token as `choose` does, and those after it that the form prescribes."""
        tokens = [self.choose(row, candidates)]
        while tokens[-1] != self.encoder.ret_id and self._is_prescribed(row):
            tokens.append(self.choose(row, ()))
        return tokens

    def _is_prescribed(self, row: ChainRow) -> bool:
        return bool(row.forced) or row.state.section == len(self.parts)

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
        if not row.forced:
            row.forced = self._prescribed(row)
        return token

    def _prescribed(self, row: ChainRow) -> list[int]:
        """Return the tokens that the form leaves no choice about: the rest of tags once their name is written."""
        state = row.state
        if state.section == len(self.parts):
            return []
        if state.pending_tag:
            # A tag that opens a section; the first one's is given, not written.
            known = self.endings[state.section - 1] if state.section else {}
            return list(known.get(state.pending_tag, ()))
        # A section at its budget is cut by `choose`, which flags the row.
        if row.used >= self.budgets[state.section]:
            return []
        # Text that ends in the closing tag without its ">". Before that it may be other text, such as "</b>".
        tags = self._tags_after(state.section)
        begun, left = tags.split(">", 1)
        if not (state.text.endswith(begun) and state.text[: -len(begun)].strip(WHITESPACE)):
            return []
        return list(self.endings[state.section].get(">" + left, ()))

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
