"""Lead a dialogue of searches behind a web page: choose a reference, ask, correct the chain, continue from a result.

A visitor's state is a plain dict: the reference picture, its id if it is one of the gallery, the last question and its
answers, and the turns so far. All visitor input is checked here: only pictures of the index can be fetched, uploads are
bounded before they are decoded, and texts before they are encoded.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from cir_cot.digests import digest_bytes
from cir_cot.errors import InputError, shown
from cir_cot.images import ImageStore, decode
from cir_cot.prompts import PARTS
from cir_cot.records import MAX_PART, MAX_TEXT, Cot, check_text
from cir_cot.retriever import ChainReader, QueryOutput, inference

from .feedback import moved
from .filter_columns import columns_of
from .question import Question, caption_of
from .reference import digest_of
from .search import Answer, Search

MAX_BYTES = 10 * 2**20  # of an uploaded picture
MAX_PIXELS = 2**25  # of an uploaded picture
STARTERS = 8  # pictures offered to start from
FOUND = 12  # pictures found by a search
TURNS = 20  # turns remembered
JUDGED = 8  # pictures judged in a search: each is encoded again
SIDE = 144  # pixels, of a remembered picture
SHOWN = 480  # pixels, of a picture found
OWN_MODE = "as trained"  # label of a retriever without readings
# The readings in a few words.
EXPLAINED = {
    "full": "the whole chain",
    "short": "its conclusion only",
    "adaptive": "a chain if unsure",
    "fast": "no chain",
}

State = dict[str, Any]  # see `empty_state`
Modes = Mapping[str, tuple[Search, str | None]]  # label -> (search, reading)


class Dialogue:
    """Search one gallery in several modes, and keep each visitor's state.

    Args:
        modes: {label: (search, reading)}, as `modes_of` makes it; their indexes hold the same gallery.
        images: the pictures of the gallery.

    Example:
        dialogue = Dialogue(modes_of(search), list_pictures("photos"))
        state = dialogue.start_from("shirt-017", [])
        question = Question("shirt-017", "with long sleeves", "full")
        *chains, answer = dialogue.ask(state, question)
        state = after_search(state, question, answer)
    """

    def __init__(self, modes: Modes, images: ImageStore):
        self.modes = modes
        self.images = images
        # Offer the pictures that the first index holds and the folder still has.
        search, _ = next(iter(modes.values()))
        self.ids = [name for name in search.index.list_ids() if name in images]
        self.known = set(self.ids)
        self.columns = columns_of(search.index.list_payloads())
        if not self.ids:
            raise InputError(
                f"{images.root}: holds no picture of the index; name its folder with --images"
            )

    def chains(self, mode: str) -> bool:
        """Tell whether the retriever of a mode can encode a chain."""
        search, _ = self.mode(mode)
        return isinstance(search.retriever, ChainReader)

    def mode(self, label: str) -> tuple[Search, str | None]:
        """Return the search and the reading of a mode; InputError for another label."""
        if label not in self.modes:
            raise InputError(f"{shown(label)} is no mode here; use {', '.join(self.modes)}")
        return self.modes[label]

    def starters(self) -> tuple[list[tuple[Image.Image, str]], list[str]]:
        """Draw a few pictures of the gallery to start from; return them with their captions, and their ids."""
        names = random.sample(self.ids, min(STARTERS, len(self.ids)))
        return [(small(self.images.load(name), SHOWN), name) for name in names], names

    def start_from(self, name: str, turns: Sequence[dict]) -> State:
        """Return the state with a picture of the gallery as the reference; InputError for any other id."""
        if name not in self.known:
            raise InputError(f"{shown(name)} is not in the gallery")
        return empty_state() | {
            "picture": self.images.load(name),
            "id": name,
            "turns": list(turns),
        }

    def upload(self, data: bytes | None) -> State:
        """Return the state with an uploaded picture as the reference; InputError for no picture or a large one."""
        # The page sends nothing when the visitor removes the file.
        if not data:
            return empty_state()
        if len(data) > MAX_BYTES:
            raise InputError(
                f"the picture has more than {MAX_BYTES // 2**20} MB; use a smaller one"
            )
        picture = decode(data, "the uploaded file", MAX_PIXELS)
        return empty_state() | {"picture": picture, "upload": data}

    def back_to(self, turn: Mapping, turns: Sequence[dict]) -> State:
        """Return the state as it was after a turn; the turns since then stay."""
        question = turn["question"]
        if question.reference:
            state = self.start_from(question.reference, turns)
        else:
            state = self.upload(turn["upload"]) | {"turns": list(turns)}
        return state | {name: turn[name] for name in ("question", "answer", "second")}

    def ask(self, state: State, question: Question) -> Iterator[str | Answer]:
        """Yield the chain while it is written, then the answer."""
        search, reading = self.mode(question.mode)
        picture = checked_picture(state)
        text = checked_text(question.text)
        without = left_out(state, question)
        # A corrected chain is not written again.
        updates: Iterable[str | Answer]
        if question.chain:
            chain = checked_chain(question.chain)
            asked = ([picture], [text], FOUND, reading, [chain], question.where, without)
            updates = search.many(*asked, [self.digest(state)])
        else:
            updates = search.stream(
                picture, text, FOUND, reading, question.where, without, self.digest(state)
            )
        # Pictures that were judged move the query before the visitor sees hits.
        for update in updates:
            yield self.judge(state, question, update) if isinstance(update, Answer) else update

    def digest(self, state: State) -> str:
        """Return the digest of the reference's file: copies of it in the gallery are no hits."""
        if state["upload"] is not None:
            return digest_bytes(state["upload"])
        return digest_of(self.images.path(state["id"]))

    def answer(self, state: State, question: Question) -> Answer:
        """Return the answer alone."""
        *_, last = self.ask(state, question)
        assert isinstance(last, Answer), "a stream ends with its answer"
        return last

    def judge(self, state: State, question: Question, answer: Answer) -> Answer:
        """Return the answer with the hits after the question's judgements; its vector stays the query's own."""
        judged = (question.liked, question.disliked)
        if not any(judged):
            return answer
        if sum(map(len, judged)) > JUDGED:
            raise InputError(f"at most {JUDGED} pictures can be judged; start again from a result")
        # Encode the judged pictures as the gallery was.
        search, _ = self.mode(question.mode)
        vectors = [self._encode(search, names) for names in judged]
        assert answer.vector is not None, "a search keeps its query's vector"
        query = moved(answer.vector, *vectors)
        # Search again, with nothing to encode.
        output = QueryOutput(query[None], [answer.explanation], [answer.flag], [answer.routing])
        where, without = question.where, left_out(state, question)
        references = [self.digest(state)]
        again = search.find(output, FOUND, where, without, answer.encode_seconds, references)[0]
        return replace(answer, hits=again.hits, search_seconds=again.search_seconds)

    def _encode(self, search: Search, names: Sequence[str]) -> torch.Tensor:
        """Return the vectors (n, D) of pictures of the gallery; InputError for any other id."""
        if unknown := [name for name in names if name not in self.known]:
            raise InputError(f"{shown(unknown[0])} is not in the gallery")
        if not names:
            return torch.empty(0, search.index.metadata["dim"])
        with inference(search.retriever):
            vectors = search.retriever.encode_target([self.images.load(name) for name in names])
        return torch.as_tensor(vectors).float().cpu()

    def names(self, answer: Answer) -> list[str]:
        """Return the ids of the hits that the folder holds, best first; another index may hold more."""
        return [name for name, _ in answer.hits if name in self.images]

    def pictures(self, answer: Answer) -> list[tuple[Image.Image, str]]:
        """Return small copies of the pictures found, each with a caption: place, score and id."""
        found = []
        for place, (name, score) in enumerate(answer.hits, 1):
            if name in self.images:
                caption = f"{place} · {score:.3f} · {name}"
                found.append((small(self.images.load(name), SHOWN), caption))
        return found


def explained(modes: Modes) -> list[tuple[str, str]]:
    """Return the modes as choices: a name with what the mode does, and the label."""
    choices = []
    for label, (_, reading) in modes.items():
        words = EXPLAINED.get(reading or "")
        choices.append((f"{label}: {words}" if words else label, label))
    return choices


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
    return {
        "picture": None,
        "id": "",
        "upload": None,
        "question": None,
        "answer": None,
        "second": None,
        "chosen": "",
        "turns": [],
    }


def after_search(
    state: State, question: Question, answer: Answer, second: Answer | None = None
) -> State:
    """Return the state with the answers of a search, and with the search as a further turn.

    A turn holds what `Dialogue.back_to` needs; of an upload the file's bytes, which are smaller than its picture.
    """
    first = answer.hits[0][0] if answer.hits else "nothing"
    last = {"question": question, "answer": answer, "second": second}
    turn = last | {
        "picture": small(state["picture"], SIDE),
        "upload": state["upload"],
        "text": caption_of(question),
        "first": first,
    }
    # Forget the oldest turns.
    return state | last | {"chosen": "", "turns": [*state["turns"], turn][-TURNS:]}


def small(picture: Image.Image, side: int) -> Image.Image:
    """Return a copy of a picture that fits into a square of `side` pixels."""
    copy = picture.copy()
    copy.thumbnail((side, side))
    return copy


def left_out(state: State, question: Question) -> list[str]:
    """Return the ids that are no hits: the reference, and what the visitor does not want."""
    return [*filter(None, [state["id"]]), *question.disliked]


def checked_picture(state: State) -> Image.Image:
    """Return the reference picture; InputError when none has been chosen."""
    if state["picture"] is None:
        raise InputError("choose a reference picture first: upload one, or take one of the gallery")
    return state["picture"]


def checked_text(text: str, name: str = "change", longest: int = MAX_TEXT) -> str:
    """Return typed text without spaces around it; InputError when it is empty, too long or not text."""
    text = (text or "").strip()
    if not text:
        raise InputError(f"the {name} is empty; write what should be there")
    return check_text(text, f"the {name}", longest)


def checked_chain(sections: Sequence[str]) -> Cot:
    """Return typed sections as a chain; the first that is empty or too long is named."""
    checked = []
    for section, name in zip(sections, PARTS, strict=True):
        checked.append(checked_text(section, name, MAX_PART))
    return Cot(*checked)
