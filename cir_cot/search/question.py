"""Hold what a visitor asks of the demo, and write it as the query of an address that can be shared."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qs, urlencode

from cir_cot.errors import InputError
from cir_cot.files import parse_json

from .payload_filter import check_filter

MAX_ADDRESS = 20_000  # characters that servers and proxies still take


@dataclass(frozen=True)
class Question:
    """One search of a dialogue.

    Attributes:
        reference: id of a picture of the gallery; "" for an upload.
        text: what should be different.
        mode: label of the mode to search in.
        other: label of the mode to compare with; "" for none.
        where: a filter of payloads.
        chain: the three sections that a person corrected; () for the model's own chain.
        liked: ids of pictures that the wanted one should resemble.
        disliked: ids of pictures that it should not resemble.
    """

    reference: str
    text: str
    mode: str
    other: str = ""
    where: Mapping[str, Any] = field(default_factory=dict)
    chain: tuple[str, ...] = ()
    liked: tuple[str, ...] = ()
    disliked: tuple[str, ...] = ()

    def judged(self, name: str, liked: bool) -> "Question":
        """Return the question with one more picture to resemble, or not to; the last word about a picture counts."""
        likes = tuple(other for other in self.liked if other != name)
        dislikes = tuple(other for other in self.disliked if other != name)
        if liked:
            return replace(self, liked=(*likes, name), disliked=dislikes)
        return replace(self, liked=likes, disliked=(*dislikes, name))


def caption_of(question: Question) -> str:
    """Return a question in a line: its text, and what was corrected or judged."""
    words = [question.text]
    if question.chain:
        words.append("(chain corrected)")
    if question.liked:
        words.append(f"+ like {', '.join(question.liked)}")
    if question.disliked:
        words.append(f"− not {', '.join(question.disliked)}")
    return " ".join(words)


def to_address(question: Question) -> str:
    """Return a question as the query of an address, "?…"; an upload is not part of it.

    A question that is too long for an address has "?", that of no question.
    """
    pairs = [("ref", question.reference), ("text", question.text), ("mode", question.mode)]
    pairs.append(("other", question.other))
    if question.where:
        pairs.append(("where", json.dumps(question.where, ensure_ascii=False)))
    pairs += [("chain", section) for section in question.chain]
    pairs += [("like", name) for name in question.liked]
    pairs += [("unlike", name) for name in question.disliked]
    address = "?" + urlencode([(key, value) for key, value in pairs if value])
    return address if len(address) <= MAX_ADDRESS else "?"


def from_address(query: str) -> Question:
    """Return the question of an address; its reference is "" when the address holds none.

    Raises:
        InputError: the query is too long, or its filter or chain is damaged. Ids, modes and texts are not checked here.
    """
    if len(query) > MAX_ADDRESS:
        raise InputError(f"the address has more than {MAX_ADDRESS} characters")
    fields = parse_qs(query.removeprefix("?"))
    where = {}
    if "where" in fields:
        where = check_filter(parse_json(fields["where"][0].encode(), "the address's filter"))
    chain = tuple(fields.get("chain", ()))
    if len(chain) not in (0, 3):
        raise InputError(f"the address holds {len(chain)} sections of a chain; a chain has 3")
    # The first value counts where a key is there more than once.
    first = {key: values[0] for key, values in fields.items()}
    return Question(
        reference=first.get("ref", ""),
        text=first.get("text", ""),
        mode=first.get("mode", ""),
        other=first.get("other", ""),
        where=where,
        chain=chain,
        liked=tuple(fields.get("like", ())),
        disliked=tuple(fields.get("unlike", ())),
    )
