"""A dialogue of searches, as a web page leads it: choose a reference, ask, correct the chain, go on from a result.

A visitor's state is a plain dict: the reference picture, its id if it is one of the gallery, the hits of the last
search and the turns so far. Whatever a visitor sends is checked here: only pictures of the index can be had, uploads
are bounded before they are decoded, texts before they are read.
"""

import random
from collections.abc import Iterator, Sequence

from PIL import Image

from cir_cot.errors import InputError, shown
from cir_cot.evaluation.readings import OWN_READINGS, ChainReader
from cir_cot.images import ImageStore, decode
from cir_cot.prompts import PARTS, written_parts
from cir_cot.records import Cot, check_text

from .search import Answer, Search

MAX_BYTES, MAX_PIXELS, MAX_WORDS = (
    10 * 2**20,
    2**25,
    1000,
)  # of an uploaded picture, and letters of a text
STARTERS, FOUND, TURNS = 8, 12, 20  # pictures offered, pictures found, turns remembered
SIDE = 144  # of a remembered picture, pixels
OWN_WAY = "as trained"


class Dialogue:
    """Searches in one gallery, by name: {name: (search, reading)}."""

    def __init__(self, ways: dict[str, tuple[Search, str | None]], images: ImageStore):
        self.ways, self.images = ways, images
        self.ids = [
            name for name in next(iter(ways.values()))[0].index.list_ids() if name in images
        ]
        self.known = set(self.ids)
        if not self.ids:
            raise InputError(
                f"{images.root}: holds no picture of the index; name its folder with --images"
            )

    def chains(self, way: str) -> bool:
        """Tell whether a way of searching reads chains."""
        return isinstance(self.ways[way][0].retriever, ChainReader)

    def starters(self) -> tuple[list, list[str]]:
        """Return a few pictures of the gallery to start from, and their ids."""
        names = random.sample(self.ids, min(STARTERS, len(self.ids)))
        return [(self.images.load(name), name) for name in names], names

    def start_from(self, name: str, turns: Sequence[dict]) -> dict:
        """Return the state with a picture of the gallery as the reference; InputError for any other id."""
        if name not in self.known:
            raise InputError(f"{shown(name)} is not in the gallery")
        return {"picture": self.images.load(name), "id": name, "hits": [], "turns": list(turns)}

    def upload(self, data: bytes | None) -> dict:
        """Return the state with an uploaded picture as the reference; InputError if it is none or too large."""
        if not data:
            return empty_state()
        if len(data) > MAX_BYTES:
            raise InputError(
                f"the picture has more than {MAX_BYTES // 2**20} MB; use a smaller one"
            )
        return empty_state() | {"picture": decode(data, "the uploaded file", MAX_PIXELS)}

    def ask(self, state: dict, text: str, way: str) -> Iterator[str | Answer]:
        """Yield the chain while it is written, then the answer."""
        search, reading = self.ways[way]
        without = [state["id"]] if state["id"] else []
        yield from search.stream(
            checked_picture(state), checked_text(text), FOUND, reading, without
        )

    def ask_again(self, state: dict, text: str, way: str, parts: Sequence[str]) -> Answer:
        """Answer with a chain that a person has written."""
        words = [checked_text(part, name) for part, name in zip(parts, PARTS, strict=True)]
        without = [state["id"]] if state["id"] else []
        picture = checked_picture(state)
        return self.ways[way][0].one(
            picture, checked_text(text), FOUND, chain=Cot(*words), without=without
        )

    def pictures(self, answer: Answer) -> list[tuple[Image.Image, str]]:
        """Return the pictures found with their place, score and id."""
        return [
            (self.images.load(name), f"{place} · {score:.3f} · {name}")
            for place, (name, score) in enumerate(answer.hits, 1)
            if name in self.images  # another index may hold more than this folder
        ]


def empty_state() -> dict:
    """Return the state of a visitor who has not begun."""
    return {"picture": None, "id": "", "hits": [], "turns": []}


def checked_picture(state: dict) -> Image.Image:
    """Return the reference; InputError if there is none yet."""
    if state["picture"] is None:
        raise InputError("choose a reference picture first: upload one, or take one of the gallery")
    return state["picture"]


def checked_text(text: str, name: str = "change") -> str:
    """Return what somebody has typed; InputError if it is empty, too long or no text."""
    text = (text or "").strip()
    if not text:
        raise InputError(f"the {name} is empty; write what should be there")
    return check_text(text, f"the {name}", MAX_WORDS)


def told(answer: Answer, way: str, size: int) -> str:
    """Return what is said of an answer: time, flag, shares of a head that chooses."""
    words = f"{way}: read in {answer.encode_seconds:.2f} s, {size:,} pictures searched in "
    words += f"{1000 * answer.search_seconds:.1f} ms."
    if answer.flag:
        words += f" Note: {answer.flag}."
    if answer.choices:
        words += " Chosen: " + ", ".join(
            f"{name} {share:.0%}" for name, share in answer.choices.items() if share
        )
    elif answer.explanation and not written_parts(answer.explanation):
        words += f" {answer.explanation}"
    return words


def kept(state: dict, text: str, answer: Answer) -> dict:
    """Return the state after a search."""
    small = state["picture"].copy()
    small.thumbnail((SIDE, SIDE))
    first = answer.hits[0][0] if answer.hits else "nothing"
    turns = [*state["turns"], {"picture": small, "text": text, "first": first}][-TURNS:]
    return state | {"hits": [name for name, _ in answer.hits], "turns": turns}


def ways_of(search: Search, name: str = "") -> dict[str, tuple[Search, str | None]]:
    """Return {label: (search, reading)} of a checkpoint."""
    readings = OWN_READINGS if isinstance(search.retriever, ChainReader) else (None,)
    return {
        " ".join(filter(None, (name, reading or OWN_WAY))): (search, reading)
        for reading in readings
    }
