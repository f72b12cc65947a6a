"""The Teacher protocol: a multimodal model that writes chains, its questions and its answers.

`openai_teacher.OpenAITeacher` asks servers, `transformers_teacher.TransformersTeacher` runs a model
in this process. What a teacher answers is untrusted data: it is filtered before use.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

from PIL import Image

from cir_cot.models.resizing import TOKEN, smart_size

from .budget import Budget

QUALITY = 90  # of the JPEG that is sent, from 0 to 95
RAW = 2000  # characters of a refused answer that the quarantine keeps
REASON = 400  # characters of a reason, which may quote an answer


@dataclass(frozen=True)
class Picture:
    """A picture as a teacher gets it: JPEG bytes without metadata, and its area in pixels."""

    jpeg: bytes
    pixels: int

    @cached_property
    def url(self) -> str:
        """The picture as a data URL, the form that servers take."""
        return "data:image/jpeg;base64," + base64.b64encode(self.jpeg).decode()

    @cached_property
    def image(self) -> Image.Image:
        """The picture as a local model gets it: the same bytes, decoded to RGB."""
        return Image.open(io.BytesIO(self.jpeg)).convert("RGB")


Content = Sequence[str | Picture]
Turn = tuple[str, Content]  # (role, content)


@dataclass(frozen=True)
class Answer:
    """What a teacher answered.

    Attributes:
        text: the answer.
        complete: False if the token limit truncated it.
        tries: how many requests it took.
    """

    text: str
    complete: bool = True
    tries: int = 1


class Teacher(Protocol):
    """Answer questions about pictures; inherit from it to write another kind of teacher.

    Attributes:
        model: the model's name, recorded with each chain.
        temperature: of sampling; 0 is greedy.
        budget: counts what is used, and bounds it.
    """

    model: str
    temperature: float
    budget: Budget

    async def ask(
        self, turns: Sequence[Turn], max_tokens: int, schema: dict | None = None
    ) -> Answer:
        """Answer a conversation in at most `max_tokens` tokens, as JSON if a `schema` is given.

        Raises:
            Unanswered: this row gets no answer; other rows may.
            InputError: no row would get an answer.
            BudgetSpent: the call could exceed the budget.
        """
        ...

    def estimate(self, turns: Sequence[Turn]) -> int:
        """Estimate the tokens of a prompt, rather too many than too few."""
        return estimate_prompt_tokens(turns)

    async def close(self) -> None:
        """Release connections and tasks."""


class Unanswered(Exception):  # noqa: N818 - an outcome of a row, not a program error
    """A row ends without a chain.

    Attributes:
        reason: why, shortened to REASON characters.
        tries: how many requests were made.
        raw: the last answer, cut to RAW characters.
    """

    def __init__(self, reason: str, tries: int, raw: str = ""):
        super().__init__(shorten(reason))
        self.reason = shorten(reason)
        self.tries = tries
        self.raw = raw[:RAW]


@dataclass(frozen=True)
class Plan:
    """What is asked for each row.

    Attributes:
        stages: "separate" asks for caption, reasoning and conclusion in three calls, "joint" in
            one.
        see_target: show the target picture to the teacher. For training rows only: a chain that
            knows the answer must never be read in evaluation.
        repairs: how many times a chain that fails a filter is asked for again.
        max_pixels: larger pictures are shrunk to this area.
        verifier: the teacher that scores each conclusion, or None.

    Example:
        plan = Plan(stages="joint", repairs=1)
    """

    stages: Literal["separate", "joint"] = "separate"
    see_target: bool = False
    repairs: int = 2
    max_pixels: int = 512 * 784  # 512 visual tokens of Qwen2.5-VL
    verifier: Teacher | None = None


def encode_jpeg(picture: Image.Image, max_pixels: int) -> Picture:
    """Shrink a picture to `max_pixels` and encode it without any metadata."""
    # Sides of complete visual tokens: Qwen's servers then do not resize the picture again.
    if picture.width * picture.height > max_pixels:
        height, width = smart_size(picture.height, picture.width, max_pixels=max_pixels)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)

    # A copy: the caller's picture keeps its metadata.
    clean = picture.convert("RGB") if picture.mode != "RGB" else picture.copy()
    clean.info = {}  # Pillow would copy a JPEG comment into the new file
    file = io.BytesIO()
    clean.save(file, "JPEG", quality=QUALITY)
    return Picture(file.getvalue(), clean.width * clean.height)


def estimate_prompt_tokens(turns: Sequence[Turn]) -> int:
    """Estimate a prompt's tokens, high: 3 letters a token, visual tokens as of Qwen2.5-VL."""
    # Text by its letters, pictures by their area.
    tokens = 8 * len(turns)  # the chat template's own
    letters = 0
    for _, content in turns:
        for part in content:
            if isinstance(part, Picture):
                tokens += part.pixels // TOKEN**2 + 16
            else:
                letters += len(part)
    return tokens + letters // 3


def shorten(reason: str) -> str:
    """Cut a reason to REASON characters."""
    return reason if len(reason) <= REASON else reason[: REASON - 1] + "…"
