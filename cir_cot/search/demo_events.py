"""Answer the events of the demo's page: search, correct the chain, judge a result, go back, choose a reference.

Every handler returns a value for each component of SCREEN, so that no part of the page can be stale. Every text that
visitors or models write is escaped, and bad input is answered with a line in the status.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from html import escape
from typing import Any

import gradio as gr

from cir_cot.errors import InputError
from cir_cot.prompts import PARTS, written_parts
from cir_cot.records import Record

from .answer import Answer, status_line
from .chain_difference import difference
from .dialogue import Dialogue, State, after_search
from .filter_columns import shown_in, where_of
from .question import Question, from_address, to_address

NOWHERE = 10_000  # the first place that no gallery has
TICK = 0.1  # seconds between two updates of a chain that grows
# What an event can change, beside the controls of the filters, which come last.
SCREEN = (
    "state", "choose", "reference", "text", "mode", "other", "chain", *PARTS,
    "status", "found", "judge", "judged", "second", "difference", "history", "address",
)  # fmt: skip

Update = tuple[Any, ...]  # one value for each component of the screen


def note(text: str, bad: bool = False) -> str:
    """Return a status line as HTML, escaped, that screen readers announce."""
    return f'<p class="note" role="{"alert" if bad else "status"}">{escape(text)}</p>'


def chain_of(explanation: str) -> dict[str, Any]:
    """Return the three sections of a chain, as far as they are written; their boxes are there when one is."""
    sections = written_parts(explanation)
    shown = {part: sections.get(part, "") for part in PARTS}
    return {"chain": gr.update(visible=bool(sections)), **shown}


def words_of(question: Question) -> str:
    """Return how a question was asked, for the status."""
    words = question.mode
    if question.chain:
        words += ", with your chain"
    if judged := len(question.liked) + len(question.disliked):
        words += f", moved by {judged} judged"
    return words


def history_of(state: State) -> Any:
    """Return the gallery of the turns so far: the reference, the text and the first hit of each."""
    items = []
    for number, turn in enumerate(state["turns"], 1):
        items.append((turn["picture"], f"{number}. {turn['text']} → {turn['first']}"))
    return gr.update(value=items, visible=bool(items))


class Buttons:
    """The event handlers of the page; each answers bad input with a line in the status.

    Args:
        dialogue: answers the questions.
        examples: records whose reference and text a visitor can click.
    """

    def __init__(self, dialogue: Dialogue, examples: Sequence[Record] = ()):
        self.dialogue = dialogue
        self.examples = examples
        self.count = len(dialogue.ids)
        self.nowhere = itertools.count(NOWHERE)
        # A column of numbers has two controls.
        self.filters = sum(1 if column.values else 2 for column in dialogue.columns)

    # ---- screens

    def screen(self, filters: Sequence[Any] = (), **changes: Any) -> Update:
        """Return a value for each component: the changes, and for all others to stay as they are."""
        assert changes.keys() <= set(SCREEN), "a change is of a component"
        values = [changes.get(name, gr.skip()) for name in SCREEN]
        return *values, *(filters or [gr.skip()] * self.filters)

    def bad(self, error: InputError) -> Update:
        """Return the screen with an error in the status."""
        return self.screen(status=note(str(error), bad=True))

    def answered(self, state: State, status: str = "") -> Iterator[Update]:
        """Yield the screen of a state whose question has been answered."""
        question, answer, second = state["question"], state["answer"], state["second"]
        lines = [status_line(answer, words_of(question), self.count)]
        pictures: list = []
        chains = ""
        # A comparison has pictures and a chain of its own.
        if second is not None:
            lines.append(status_line(second, question.other, self.count))
            pictures = self.dialogue.pictures(second)
            names = (question.mode, question.other)
            chains = difference(answer.explanation, second.explanation, names)
        yield self.screen(
            shown_in(self.dialogue.columns, question.where),
            state=state,
            choose=gr.update(open=False),
            reference=gr.update(value=state["picture"], visible=True),
            text=question.text,
            mode=question.mode,
            other=question.other,
            **chain_of(answer.explanation),
            status=note(" ".join(filter(None, [status, *lines]))),
            found=gr.update(value=self.dialogue.pictures(answer), visible=True),
            judge=gr.update(visible=False),
            second=gr.update(value=pictures, visible=second is not None),
            difference=chains,
            history=history_of(state),
            address=to_address(question),
        )
        yield self.deselected()

    def deselected(self) -> Update:
        """Return the screen without a selection in any gallery, once their pictures have changed.

        A gallery of gradio keeps the place selected when it gets other pictures. It ignores None for none, and a place
        that it was sent before.
        """
        nowhere = gr.update(selected_index=next(self.nowhere))
        return self.screen(found=nowhere, second=nowhere, history=nowhere)

    def chosen(self, new_state: Callable[[], State]) -> Update:
        """Choose a reference: show it, and nothing of the search before."""
        try:
            state = new_state()
        except InputError as error:
            return self.bad(error)
        there = state["picture"] is not None
        return self.screen(
            state=state,
            choose=gr.update(open=not there),
            reference=gr.update(value=state["picture"], visible=there),
            **chain_of(""),
            status=note("Now write what should change." if there else ""),
            found=gr.update(value=[], visible=False),
            judge=gr.update(visible=False),
            second=gr.update(value=[], visible=False),
            difference="",
            history=history_of(state),
        )

    # ---- searches

    def run(self, state: State, question: Question) -> Iterator[Update]:
        """Answer a question, showing the chain as it grows."""
        try:
            # Show the chain while it is written, at most once a TICK.
            shown = 0.0
            for update in self.dialogue.ask(state, question):
                if isinstance(update, Answer):
                    answer = update
                elif time.monotonic() - shown > TICK:
                    shown = time.monotonic()
                    yield self.screen(**chain_of(update), status=note("Writing the chain …"))
            # Search in the other mode; a corrected chain and judged pictures are the first one's.
            second = None
            if question.other:
                plain = Question(question.reference, question.text, question.other)
                compared = replace(plain, where=question.where)
                second = self.dialogue.answer(state, compared)
        except InputError as error:
            yield self.bad(error)
            return
        yield from self.answered(after_search(state, question, answer, second))

    def asked(self, state: State, text: str, mode: str, other: str, filters: Sequence) -> Question:
        """Return the question that the controls show."""
        where = where_of(self.dialogue.columns, filters)
        return Question(state["id"], (text or "").strip(), mode, other or "", where)

    def search(self, state: State, text: str, mode: str, other: str, *filters) -> Iterator[Update]:
        """Search with the text and the model's own chain."""
        yield from self.run(state, self.asked(state, text, mode, other, filters))

    def again(self, state: State, text: str, mode: str, *rest) -> Iterator[Update]:
        """Search with the chain in the boxes; `rest` is its three sections, then the filters."""
        parts = len(PARTS)
        question = self.asked(state, text, mode, "", rest[parts:])
        yield from self.run(state, replace(question, chain=tuple(rest[:parts])))

    def judge(self, state: State, liked: bool) -> Iterator[Update]:
        """Search again with the chosen result as one to resemble, or not to; no chain is written again."""
        if not state["chosen"] or state["question"] is None:
            yield self.bad(InputError("choose a picture that was found first"))
            return
        question = replace(state["question"].judged(state["chosen"], liked), other="")
        try:
            answer = self.dialogue.judge(state, question, state["answer"])
        except InputError as error:
            yield self.bad(error)
            return
        yield from self.answered(after_search(state, question, answer))

    def like(self, state: State) -> Iterator[Update]:
        """Search for more like the chosen result."""
        yield from self.judge(state, True)

    def dislike(self, state: State) -> Iterator[Update]:
        """Search for what the chosen result is not like."""
        yield from self.judge(state, False)

    # ---- choices

    def hit(self, state: State, event: gr.SelectData) -> Update:
        """Choose a result, to go on from it or to judge it."""
        name = self.dialogue.names(state["answer"])[event.index]
        return self.screen(
            state=state | {"chosen": name},
            judge=gr.update(visible=True),
            judged=note(f"Chosen: {name}"),
        )

    def start_from_hit(self, state: State) -> Update:
        """Continue from the chosen result."""
        return self.chosen(lambda: self.dialogue.start_from(state["chosen"], state["turns"]))

    def turn(self, state: State, event: gr.SelectData) -> Iterator[Update]:
        """Go back to an earlier turn."""
        turn = state["turns"][event.index]
        back = self.dialogue.back_to(turn, state["turns"])
        yield from self.answered(back, f"Back to turn {event.index + 1}.")

    def starter(self, names: Sequence[str], event: gr.SelectData) -> Update:
        """Begin with one of the offered pictures."""
        return self.chosen(lambda: self.dialogue.start_from(names[event.index], []))

    def named(self, name: str | None) -> Update:
        """Begin with a picture of the gallery, by its id."""
        return self.chosen(lambda: self.dialogue.start_from((name or "").strip(), []))

    def upload(self, data: bytes | None) -> Update:
        """Begin with a visitor's own picture."""
        return self.chosen(lambda: self.dialogue.upload(data))

    def example(self, mode: str, event: gr.SelectData) -> Iterator[Update]:
        """Begin with an example, and search with its text."""
        record = self.examples[event.index]
        yield from self.begin(Question(record.reference, record.text, mode))

    def opened(self, query: str) -> Iterator[Update]:
        """Answer the question in the page's address, if there is one."""
        try:
            question = from_address(query or "")
        except InputError as error:
            yield self.bad(error)
            return
        # A handler that yields nothing would empty the page.
        yield self.screen()
        if question.reference or question.text:
            first = next(iter(self.dialogue.modes))
            yield from self.begin(replace(question, mode=question.mode or first))

    def begin(self, question: Question) -> Iterator[Update]:
        """Start from a question's reference, and answer it if it holds a text."""
        if not question.reference:
            yield self.bad(InputError("an address without ref= names no picture: choose one"))
            return
        try:
            state = self.dialogue.start_from(question.reference, [])
        except InputError as error:
            yield self.bad(error)
            return
        yield self.chosen(lambda: state)
        if question.text:
            yield self.screen(text=question.text)
            yield from self.run(state, question)
