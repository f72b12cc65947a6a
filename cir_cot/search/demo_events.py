"""Answer the events of the demo's page: search, search again, choose a reference.

Every text that visitors or models write is escaped, and bad input is answered with a line in the status.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Any

import gradio as gr

from cir_cot.errors import InputError
from cir_cot.prompts import PARTS, written_parts
from cir_cot.webpage import thumbnail

from .dialogue import Dialogue, State, after_search, status_line
from .search import Answer

TICK = 0.1  # seconds between two updates of a chain that grows
NOTHING = "nothing"  # the choice not to compare modes

Update = tuple[Any, ...]  # one value for each component that an event changes


# ---- pieces of the page


def note(text: str, bad: bool = False) -> str:
    """Return a status line as HTML, escaped, that screen readers announce."""
    return f'<p class="note" role="{"alert" if bad else "status"}">{escape(text)}</p>'


def turns_of(state: State) -> str:
    """Return the dialogue so far as HTML: the reference, the text and the first hit of each turn."""
    if not state["turns"]:
        return ""
    items = []
    for number, turn in enumerate(state["turns"], 1):
        picture = thumbnail(turn["picture"], "reference of this turn")
        items.append(
            f"<li>{picture}{number}. {escape(turn['text'])}<br>→ {escape(turn['first'])}</li>"
        )
    return f'<h2>Dialogue</h2><ol class="turns">{"".join(items)}</ol>'


def sections_of(explanation: str) -> list[str]:
    """Return the three sections of a chain, as far as they are written."""
    sections = written_parts(explanation)
    return [sections.get(part, "") for part in PARTS]


# ---- what events do


class Buttons:
    """The event handlers of the page; each answers bad input with a line in the status."""

    def __init__(self, dialogue: Dialogue):
        self.dialogue = dialogue
        self.count = len(dialogue.ids)

    def search(self, state: State, text: str, mode: str, other: str) -> Iterator[Update]:
        """Search while showing the chain as it grows.

        Yields:
            state, three sections, pictures found, pictures found by the other mode, status, dialogue.
        """
        same = gr.skip()  # leaves a component as it is
        try:
            # Show the chain while it is written, at most once a TICK.
            shown = 0.0
            for update in self.dialogue.ask(state, text, mode):
                if isinstance(update, Answer):
                    answer = update
                elif time.monotonic() - shown > TICK:
                    shown = time.monotonic()
                    writing = note("Writing the chain …")
                    yield same, *sections_of(update), same, same, writing, same
            status = status_line(answer, mode, self.count)
            # Search in the other mode.
            second = []
            if other != NOTHING:
                compared = self.dialogue.answer(state, text, other)
                second = self.dialogue.pictures(compared)
                status = f"{status} {status_line(compared, other, self.count)}"
            # Show both.
            state = after_search(state, text.strip(), answer)
            sections = sections_of(answer.explanation)
            found = self.dialogue.pictures(answer)
            yield state, *sections, found, second, note(status), turns_of(state)
        except InputError as error:
            yield same, *[same] * 3, same, same, note(str(error), bad=True), same

    def again(self, state: State, text: str, mode: str, *sections: str) -> Update:
        """Search with the chain in the boxes.

        Returns:
            state, pictures found, pictures found by the other mode, status, dialogue.
        """
        same = gr.skip()  # leaves a component as it is
        try:
            answer = self.dialogue.ask_again(state, text, mode, sections)
            found = self.dialogue.pictures(answer)
        except InputError as error:
            return same, same, same, note(str(error), bad=True), same
        # The corrected chain is not compared: the second gallery is emptied.
        state = after_search(state, f"{text.strip()} (chain corrected)", answer)
        status = status_line(answer, f"{mode}, with your chain", self.count)
        return state, found, [], note(status), turns_of(state)

    def hit(self, state: State, event: gr.SelectData) -> Update:
        """Continue from a picture that was found."""
        return choose(lambda: self.dialogue.start_from(state["hits"][event.index], state["turns"]))

    def starter(self, names: Sequence[str], event: gr.SelectData) -> Update:
        """Begin with one of the offered pictures."""
        return choose(lambda: self.dialogue.start_from(names[event.index], []))

    def named(self, name: str | None) -> Update:
        """Begin with a picture of the gallery, by its id."""
        return choose(lambda: self.dialogue.start_from((name or "").strip(), []))

    def upload(self, data: bytes | None) -> Update:
        """Begin with a visitor's own picture."""
        return choose(lambda: self.dialogue.upload(data))


def choose(new_state: Callable[[], State]) -> Update:
    """Choose a reference; return state, reference picture, status and dialogue."""
    try:
        state = new_state()
    except InputError as error:
        return gr.skip(), gr.skip(), note(str(error), bad=True), gr.skip()
    prompt = "Now write what should change." if state["picture"] else ""
    return state, state["picture"], note(prompt), turns_of(state)
