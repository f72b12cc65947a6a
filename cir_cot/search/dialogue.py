"""Lead a dialogue of searches behind a web page: choose a reference, ask, correct the chain, continue from a result.

A visitor's state is a plain dict: the reference picture, its id if it is one of the gallery, the hits of the last
search and the turns so far. All visitor input is checked here: only pictures of the index can be fetched, uploads are
bounded before they are decoded, and texts before they are encoded.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from cir_cot.errors import InputError, shown
from cir_cot.images import ImageStore, decode
from cir_cot.prompts import PARTS, written_parts
from cir_cot.records import Cot, check_text
from cir_cot.retriever import ChainReader

from .search import Answer, Search

MAX_BYTES = 10 * 2**20  # of an uploaded picture
MAX_PIXELS = 2**25  # of an uploaded picture
MAX_CHARACTERS = 1000  # characters of a text
STARTERS = 8  # pictures offered to start from
FOUND = 12  # pictures found by a search
TURNS = 20  # turns remembered
SIDE = 144  # pixels, of a remembered picture
OWN_MODE = "as trained"  # label of a retriever without readings

State = dict[str, Any]  # picture, id, hits, turns
Modes = Mapping[str, tuple[Search, str | None]]  # label -> (search, reading)


class Dialogue:
    """Search one gallery in several modes, and keep each visitor's state.

    Args:
        modes: {label: (search, reading)}, as `modes_of` makes it; their indexes hold the same gallery.
        images: the pictures of the gallery.

    Example:
        dialogue = Dialogue(modes_of(search), list_pictures("photos"))
        state = dialogue.start_from("shirt-017", [])
        *chains, answer = dialogue.ask(state, "with long sleeves", "full")
        state = after_search(state, "with long sleeves", answer)
    """

    def __init__(self, modes: Modes, images: ImageStore):
        self.modes = modes
        self.images = images
        # Offer the pictures that the first index holds and the folder still has.
        search, _ = next(iter(modes.values()))
        self.ids = [name for name in search.index.list_ids() if name in images]
        self.known = set(self.ids)
        if not self.ids:
            raise InputError(
                f"{images.root}: holds no picture of the index; name its folder with --images"
            )

    def chains(self, mode: str) -> bool:
        """Tell whether the retriever of a mode can encode a chain."""
        search, _ = self.modes[mode]
        return isinstance(search.retriever, ChainReader)

    def starters(self) -> tuple[list[tuple[Image.Image, str]], list[str]]:
        """Draw a few pictures of the gallery to start from; return them with their captions, and their ids."""
        names = random.sample(self.ids, min(STARTERS, len(self.ids)))
        return [(self.images.load(name), name) for name in names], names

    def start_from(self, name: str, turns: Sequence[dict]) -> State:
        """Return the state with a picture of the gallery as the reference; InputError for any other id."""
        if name not in self.known:
            raise InputError(f"{shown(name)} is not in the gallery")
        return {"picture": self.images.load(name), "id": name, "hits": [], "turns": list(turns)}

    def upload(self, data: bytes | None) -> State:
        """Return the state with an uploaded picture as the reference; InputError for no picture or a large one."""
        # The page sends nothing when the visitor removes the file.
        if not data:
            return empty_state()
        if len(data) > MAX_BYTES:
            raise InputError(
                f"the picture has more than {MAX_BYTES // 2**20} MB; use a smaller one"
            )
        return empty_state() | {"picture": decode(data, "the uploaded file", MAX_PIXELS)}

    def ask(self, state: State, text: str, mode: str) -> Iterator[str | Answer]:
        """Yield the chain while it is written, then the answer."""
        search, reading = self.modes[mode]
        without = [state["id"]] if state["id"] else []
        yield from search.stream(
            checked_picture(state), checked_text(text), FOUND, reading, without
        )

    def answer(self, state: State, text: str, mode: str) -> Answer:
        """Return the answer alone."""
        *_, last = self.ask(state, text, mode)
        assert isinstance(last, Answer), "a stream ends with its answer"
        return last

    def ask_again(self, state: State, text: str, mode: str, sections: Sequence[str]) -> Answer:
        """Search with a chain that a person has edited, given as its three sections."""
        # Check each section, so that an error names it.
        checked = []
        for section, name in zip(sections, PARTS, strict=True):
            checked.append(checked_text(section, name))
        search, _ = self.modes[mode]
        return search.one(
            checked_picture(state),
            checked_text(text),
            FOUND,
            chain=Cot(*checked),
            without=[state["id"]] if state["id"] else [],
        )

    def pictures(self, answer: Answer) -> list[tuple[Image.Image, str]]:
        """Return the pictures found, each with a caption: place, score and id."""
        return [
            (self.images.load(name), f"{place} · {score:.3f} · {name}")
            for place, (name, score) in enumerate(answer.hits, 1)
            if name in self.images  # another index may hold more than this folder
        ]


def modes_of(search: Search, name: str = "") -> dict[str, tuple[Search, str | None]]:
    """Return the modes of a retriever, {label: (search, reading)}; labels begin with `name`."""
    # A head that writes chains has a mode for each of its readings.
    readings: Sequence[str | None] = (None,)
    if isinstance(search.retriever, ChainReader):
        readings = search.retriever.readings
    modes = {}
    for reading in readings:
        label = " ".join(filter(None, (name, reading or OWN_MODE)))
        modes[label] = (search, reading)
    return modes


# ---- the state


def empty_state() -> State:
    """Return the state of a visitor who has not chosen a reference."""
    return {"picture": None, "id": "", "hits": [], "turns": []}


def after_search(state: State, text: str, answer: Answer) -> State:
    """Return the state with the hits of a search, and with the search as a further turn."""
    # Remember a small copy of the reference.
    small = state["picture"].copy()
    small.thumbnail((SIDE, SIDE))
    # Forget the oldest turns.
    first = answer.hits[0][0] if answer.hits else "nothing"
    turns = [*state["turns"], {"picture": small, "text": text, "first": first}][-TURNS:]
    return state | {"hits": [name for name, _ in answer.hits], "turns": turns}


def checked_picture(state: State) -> Image.Image:
    """Return the reference picture; InputError when none has been chosen."""
    if state["picture"] is None:
        raise InputError("choose a reference picture first: upload one, or take one of the gallery")
    return state["picture"]


def checked_text(text: str, name: str = "change") -> str:
    """Return typed text without spaces around it; InputError when it is empty, too long or not text."""
    text = (text or "").strip()
    if not text:
        raise InputError(f"the {name} is empty; write what should be there")
    return check_text(text, f"the {name}", MAX_CHARACTERS)


def status_line(answer: Answer, mode: str, size: int) -> str:
    """Describe an answer in one line: times, flag and routing; `size` is the number of pictures searched."""
    line = f"{mode}: read in {answer.encode_seconds:.2f} s, {size:,} pictures searched in "
    line += f"{1000 * answer.search_seconds:.1f} ms."
    if answer.flag:
        line += f" Note: {answer.flag}."
    if answer.agreement is not None:
        line += f" Its chains agree to {answer.agreement:.0%}."
    # A head that routes queries, then one that explains them otherwise than by a chain.
    if answer.routing:
        used = [f"{name} {share:.0%}" for name, share in answer.routing.items() if share]
        line += " Chosen: " + ", ".join(used)
    elif answer.explanation and not written_parts(answer.explanation):
        line += f" {answer.explanation}"
    return line
