"""How a multimodal model is asked for a chain, whoever serves it: three questions, or one, and again with the reason.

A teacher is anything with `ask(turns, max_tokens, schema) -> Answer`: `replicas.OpenAITeacher` talks to servers,
`local_teacher.TransformersTeacher` runs a model here. The conversation grows from stage to stage, so that a server with
a prefix cache reads the picture once. What a teacher says is data: it is filtered, never trusted.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

from PIL import Image

from cir_cot import prompts
from cir_cot.errors import InputError
from cir_cot.files import parse_json
from cir_cot.models.resizing import TOKEN, smart_size
from cir_cot.prompts import PARTS
from cir_cot.records import Cot, Record, cot_from_dict

from .answers import own_words, scores, without_fence, without_thinking
from .filters import FILTERS

MAX_TOKENS = {
    "caption": 256,
    "reasoning": 512,
    "conclusion": 192,
    "joint": 1024,
    "score": 16,
}  # ours, of one answer
LETTERS = 16  # of a token, at most, before an answer counts as too long
QUALITY = 90  # of the JPEG that is sent
RAW = 2000  # characters of a refused answer that the quarantine keeps
REASON = 400  # characters of a reason: it may quote an answer
SCHEMA = {
    "type": "object",
    "properties": {part: {"type": "string"} for part in PARTS},
    "required": list(PARTS),
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Picture:
    """A picture as it leaves the machine: JPEG bytes without metadata, and its area."""

    jpeg: bytes
    pixels: int

    @cached_property
    def url(self) -> str:
        """The picture in the form that servers take."""
        return "data:image/jpeg;base64," + base64.b64encode(self.jpeg).decode()

    @cached_property
    def image(self) -> Image.Image:
        """The picture as a local model sees it: the same bytes, decoded."""
        return Image.open(io.BytesIO(self.jpeg)).convert("RGB")


Turn = tuple[str, list[str | Picture]]  # (role, content)


@dataclass(frozen=True)
class Answer:
    """What a teacher said; `whole` is False where the limit of tokens cut it; `tries` counts requests it took."""

    text: str
    whole: bool = True
    tries: int = 1


class Teacher(Protocol):
    """Whoever answers. Raises Unanswered for a row that gets no answer, InputError when no row would."""

    model: str

    async def ask(
        self, turns: Sequence[Turn], max_tokens: int, schema: dict | None = None
    ) -> Answer: ...


class Unanswered(Exception):  # noqa: N818 - a row without a chain is an outcome, not an error of the program
    """A row ends without a chain: why, after how many requests, and the last answer."""

    def __init__(self, reason: str, tries: int, raw: str = ""):
        super().__init__(shorten(reason))
        self.reason = shorten(reason)
        self.tries = tries
        self.raw = raw[:RAW]


@dataclass(frozen=True)
class Plan:
    """What is asked for each row, how often, and how large its pictures are sent."""

    stages: str = "separate"
    see_target: bool = False
    repairs: int = 2
    max_pixels: int = 512 * 784
    verifier: Teacher | None = None


def prepare(picture: Image.Image, max_pixels: int) -> Picture:
    """Shrink a picture to a budget of pixels and encode it anew, without EXIF, comments, profiles or thumbnails."""
    # to whole visual tokens, so that Qwen's servers leave it as it is
    if picture.width * picture.height > max_pixels:
        height, width = smart_size(picture.height, picture.width, max_pixels=max_pixels)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    clean = picture.convert("RGB") if picture.mode != "RGB" else picture.copy()
    clean.info = {}  # Pillow would carry a JPEG comment over
    file = io.BytesIO()
    clean.save(file, "JPEG", quality=QUALITY)
    return Picture(file.getvalue(), clean.width * clean.height)


async def write_chain(
    teacher: Teacher, record: Record, plan: Plan, reference: Picture, target: Picture | None = None
) -> tuple[Record, bool]:
    """(record with its chain, was it asked for again); Unanswered where no chain passes the filters.

    A chain that fails is asked for again with the reason, from the part at fault on, up to `plan.repairs` times.
    `target` is shown with `plan.see_target`, and to the verifier.
    """
    draft = Draft(record, reference, target if plan.see_target else None)
    try:
        for repair in range(plan.repairs + 1):
            await (
                draft.ask_jointly(teacher)
                if plan.stages == "joint"
                else draft.ask_in_stages(teacher)
            )
            if draft.problem is None and plan.verifier:
                await draft.verify(plan.verifier, target)
            if draft.problem is None:
                return draft.record, repair > 0
            draft.restart(plan.stages)
    except Unanswered as error:
        raise Unanswered(error.reason, draft.tries + error.tries, error.raw or draft.raw) from error
    raise Unanswered(draft.complaint[1], draft.tries, draft.raw)


@dataclass
class Draft:
    """A chain in the making; `complaint` is (answer, what is wrong with it) of what is being asked for again."""

    record: Record
    reference: Picture
    seen: Picture | None
    parts: dict[str, str] = field(default_factory=dict)
    problem: str | None = None
    complaint: tuple[str, str] | None = None
    raw: str = ""
    tries: int = 0

    async def ask(self, teacher: Teacher, turns: list[Turn], kind: str) -> Answer:
        """Ask one question, with the complaint about its last answer if there is one."""
        if self.complaint:
            turns = [
                *turns,
                ("assistant", [self.complaint[0] or "-"]),
                ("user", [again(self.complaint[1])]),
            ]
        answer = await teacher.ask(turns, MAX_TOKENS[kind], SCHEMA if kind == "joint" else None)
        self.tries, self.raw, self.complaint = self.tries + answer.tries, answer.text, None
        return bounded(answer, kind)

    async def ask_in_stages(self, teacher: Teacher) -> None:
        """Ask for the parts that are missing, one call each, then filter the whole chain."""
        for part in PARTS[len(self.parts) :]:
            turns = stage_turns(self.record.text, self.parts, self.reference, self.seen)
            answer = await self.ask(teacher, turns, part)
            self.parts[part] = own_words(answer.text, part)
            if not answer.whole:
                self.problem = truncated(part)
                return
        self.filter()

    async def ask_jointly(self, teacher: Teacher) -> None:
        """Ask for all parts in one call, as JSON, then filter the chain."""
        answer = await self.ask(
            teacher, joint_turns(self.record.text, self.reference, self.seen), "joint"
        )
        # A truncated answer is refused even where it parses: a server may close the braces that it cut.
        if not answer.whole:
            self.problem = truncated("joint")
            return
        try:
            cot = cot_from_dict(
                parse_json(without_fence(without_thinking(answer.text)), "the answer"), "the answer"
            )
        except InputError as error:
            self.problem = shorten(f"json: {error}")
            return
        self.parts = {part: own_words(getattr(cot, part), part) for part in PARTS}
        # Each part has the limit that it has when it is asked for alone.
        too_long = [part for part in PARTS if len(self.parts[part]) > LETTERS * MAX_TOKENS[part]]
        if too_long:
            self.problem = truncated(too_long[0])
            return
        self.filter()

    def filter(self) -> None:
        """Name the first filter that the chain fails, and why."""
        self.record = replace(self.record, cot=Cot(**self.parts))
        found = ((name, check(self.record)) for name, check in FILTERS)
        self.problem = next((shorten(f"{name}: {what}") for name, what in found if what), None)

    async def verify(self, verifier: Teacher, target: Picture) -> None:
        """Have the conclusion scored; the score is part of the record, and a filter reads it there."""
        score = await verify(verifier, self.record, self.reference, target)
        self.tries += 1
        self.record = replace(
            self.record, teacher=(self.record.teacher or {}) | {"confidence": score}
        )
        self.filter()

    def restart(self, stages: str) -> None:
        """Forget the part at fault and those after it, and keep what was wrong for the next question."""
        kept = [] if stages == "joint" else PARTS[: PARTS.index(part_at_fault(self.problem))]
        bad = self.raw if stages == "joint" else self.parts[PARTS[len(kept)]]
        self.complaint = (bad[: LETTERS * MAX_TOKENS["joint"]], self.problem)
        self.problem = None
        self.parts = {part: self.parts[part] for part in kept}


def part_at_fault(problem: str) -> str:
    """The part that a problem names first; the conclusion where it names none, as the verifier's does."""
    places = {part: problem.find(f"the {part}") for part in PARTS}
    named = [part for part in PARTS if places[part] >= 0]
    return min(named, key=places.get, default="conclusion")


def bounded(answer: Answer, kind: str) -> Answer:
    """Mark an answer as truncated where it is longer than its limit of tokens allows: not every server has limits."""
    too_long = len(answer.text) > LETTERS * MAX_TOKENS[kind]
    return replace(answer, whole=False) if too_long else answer


def truncated(kind: str) -> str:
    """Name the part, or the whole answer, that goes beyond its limit."""
    what = "answer" if kind == "joint" else kind
    return f"truncated: the {what} goes beyond {MAX_TOKENS[kind]} tokens"


def shorten(reason: str) -> str:
    """Cut a reason to REASON characters."""
    return reason if len(reason) <= REASON else reason[: REASON - 1] + "…"


def stage_turns(
    text: str, parts: dict[str, str], reference: Picture, seen: Picture | None
) -> list[Turn]:
    """The conversation up to the first part that is missing: caption, then reasoning, then conclusion."""
    reasoning = [prompts.annotation_prompt("reasoning", text)]
    questions = {
        "caption": [reference, prompts.annotation_prompt("caption")],
        "reasoning": [seen, prompts.SEEN, *reasoning] if seen else reasoning,
        "conclusion": [prompts.annotation_prompt("conclusion")],
    }
    turns: list[Turn] = [("system", [prompts.ANNOTATOR])]
    for part in PARTS[: len(parts) + 1]:
        turns.append(("user", questions[part]))
        if part in parts:
            turns.append(("assistant", [parts[part]]))
    return turns


def joint_turns(text: str, reference: Picture, seen: Picture | None) -> list[Turn]:
    """One question for the whole chain."""
    question: list[str | Picture] = [reference, prompts.annotation_prompt("joint", text)]
    return [
        ("system", [prompts.ANNOTATOR]),
        ("user", [*question, seen, prompts.SEEN] if seen else question),
    ]


def estimate(turns: Sequence[Turn]) -> int:
    """Tokens that a prompt takes, estimated high: 3 letters a token, visual tokens as Qwen2.5-VL has them."""
    parts = [part for _, turn in turns for part in turn]
    words = sum(len(part) for part in parts if isinstance(part, str))
    return (
        words // 3
        + sum(part.pixels // TOKEN**2 + 16 for part in parts if isinstance(part, Picture))
        + 8 * len(turns)
    )


def again(problem: str) -> str:
    """What is said about an answer that a filter refused."""
    return prompts.ASK_AGAIN.replace("{reason}", problem)


async def verify(verifier: Teacher, record: Record, reference: Picture, target: Picture) -> float:
    """Confidence, 0 to 1, that the conclusion fits reference, text and target; Unanswered where none is given."""
    question = prompts.score_prompt(record.text, record.cot.conclusion)
    answer = bounded(
        await verifier.ask([("user", [reference, target, question])], MAX_TOKENS["score"]), "score"
    )
    if not answer.whole:
        raise Unanswered(truncated("score"), answer.tries, answer.text)
    found = scores(without_thinking(answer.text))
    if len(found) != 1:
        raise Unanswered(
            f"verifier: no score from 0 to 1 in {answer.text[:80]!r}", answer.tries, answer.text
        )
    return float(found[0])
