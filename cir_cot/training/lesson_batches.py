"""Draw and tokenise the batches of the tiny base's lessons, in the training process or in workers.

A batch is a dict of arrays: `input_ids`, `attention_mask`, `labels` (B, T), `positions` (3, B, T)
and, where pictures are shown, `pictures` (B, S, S, 3) uint8. The descriptions of alignment are in
the same dict under `text_...`.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from cir_cot import prompts
from cir_cot.data import scenes
from cir_cot.models.backbone import Backbone, load_backbone
from cir_cot.models.chat import IGNORE, ChatEncoder
from cir_cot.models.tiny_qwen import tiny_model, tiny_processor, tiny_tokenizer
from cir_cot.models.tower import VISUAL_TOKENS, picture_grid

from . import lessons
from .lessons import EVEN, TASKS, Example

# 2.8 million parameters; one attention window a picture. Weights start with a standard deviation
# of 0.05 instead of transformers' 0.02: pictures are described after 500 steps instead of 1,500
# (docs/log.md).
SIZES = {
    "hidden": 192,
    "layers": 6,
    "heads": 6,
    "kv_heads": 3,
    "intermediate": 512,
    "window": 84,
    "init_std": 0.05,
}
ALIGN = "align"
# Tokens of the answer to a selector.
BY = " by"
END = ";"
YES = " yes"
NO = " no"

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Lesson:
    """One training step: what it teaches, and all that a worker needs to draw its rows.

    Attributes:
        name: a key of `lessons.TASKS`, or ALIGN.
        rows: rows of the batch.
        seed: of the rows.
        most_objects: teach selectors from text alone, in scenes of at most this many objects; None:
            show pictures.
        alone: weights of the attributes that a selector names alone.
    """

    name: str
    rows: int
    seed: int
    most_objects: int | None = None
    alone: Sequence[float] = EVEN


def new_base(seed: int) -> Backbone:
    """Build an untrained base whose tokenizer has every word of the scenes as one token."""
    tokenizer = tiny_tokenizer(lessons.corpus(), 512)
    model = tiny_model("qwen2_5_vl", tokenizer, seed, **SIZES)
    return load_backbone((model, tiny_processor("qwen2_5_vl", tokenizer)), freeze_vision=False)


@cache
def worker_base() -> tuple[Backbone, ChatEncoder]:
    """Build, once in each process, what tokenising needs; the weights are not used."""
    torch.set_num_threads(1)
    base = new_base(0)
    return base, ChatEncoder(base.processor, base.ret_id)


def draw_batch(lesson: Lesson) -> Batch:
    """Draw and tokenise the rows of a lesson."""
    base, encoder = worker_base()
    rng = random.Random(lesson.seed)
    # Pictures and their descriptions.
    if lesson.name == ALIGN:
        distinct = lessons.draw_distinct_scenes(rng, lesson.rows)
        return alignment_batch(base, encoder, rng, distinct)
    # Selectors from text alone.
    if lesson.most_objects is not None:
        drawn = [
            lessons.select(rng, False, lesson.alone, most=lesson.most_objects)
            for _ in range(lesson.rows)
        ]
        return language_batch(base, encoder, rng, drawn, verdicts=True, pictures=False)
    # Any other task, with pictures.
    drawn = [TASKS[lesson.name](rng, False, lesson.alone) for _ in range(lesson.rows)]
    return language_batch(base, encoder, rng, drawn, verdicts=lesson.name == "select")


def language_batch(
    base: Backbone,
    encoder: ChatEncoder,
    rng: random.Random,
    drawn: Sequence[Example],
    verdicts: bool = False,
    pictures: bool = True,
) -> Batch:
    """Tokenise examples with their answers as labels.

    Args:
        verdicts: supervise only the selector and the verdicts of an answer.
        pictures: show the scenes; else leave the tokens of pictures out.
    """
    # Answers end with the end-of-turn token.
    ids = encoder.plain_ids([example.answer for example in drawn])
    answers = [[*answer, encoder.tokenizer.eos_token_id] for answer in ids]
    batch = tokenise(base, encoder, [example.prompt for example in drawn], answers)
    if verdicts:
        batch["labels"] = supervise_verdicts(batch["labels"], encoder)
    if not pictures:
        return to_arrays(without_pictures(batch, encoder))
    return to_arrays(batch) | {"pictures": render([example.scene for example in drawn], rng)}


def alignment_batch(
    base: Backbone, encoder: ChatEncoder, rng: random.Random, drawn: Sequence[scenes.Scene]
) -> Batch:
    """Tokenise scenes twice: as pictures, and under `text_...` as descriptions alone."""
    # Pictures, with the retrieval token as the answer.
    picture_side = tokenise(
        base, encoder, [prompts.TARGET] * len(drawn), [[encoder.ret_id]] * len(drawn)
    )
    # Descriptions: half of them are in the question, half in the answer.
    questions = []
    answers = []
    for scene in drawn:
        text = scenes.scene_text(scene)
        asked = rng.random() < 0.5
        questions.append(prompts.DESCRIPTION.replace("{text}", text) if asked else prompts.DESCRIBE)
        answers.append("" if asked else text)
    text_side = tokenise(base, encoder, questions, encoder.answer_token_ids(answers))
    text_side = without_pictures(text_side, encoder)
    batch = picture_side | {f"text_{name}": value for name, value in text_side.items()}
    return to_arrays(batch) | {"pictures": render(drawn, rng)}


def tokenise(
    base: Backbone, encoder: ChatEncoder, questions: Sequence[str], answers: Sequence[list[int]]
) -> dict[str, Tensor]:
    """Tokenise rows with a picture each.

    Returns:
        input_ids, attention_mask and labels (B, T), positions (3, B, T).
    """
    inputs, labels = encoder.tokenise([VISUAL_TOKENS] * len(questions), questions, answers)
    positions = base.positions(inputs | {"image_grid_thw": picture_grid(len(questions))})
    return {
        "input_ids": inputs["input_ids"],
        "attention_mask": inputs["attention_mask"],
        "labels": labels,
        "positions": positions,
    }


def supervise_verdicts(labels: Tensor, encoder: ChatEncoder) -> Tensor:
    """Return labels (B, T) of only the repeated selector and the verdicts.

    The names of objects are many more tokens and would dominate the loss.
    """
    by, end, yes, no = (torch.tensor(ids[0]) for ids in encoder.plain_ids([BY, END, YES, NO]))
    # The selector is between "by" and the first ";" after it.
    begun = (labels == by).cumsum(dim=1) > 0
    ended = (begun & (labels == end)).cumsum(dim=1) > 0
    selector = begun & ~ended
    verdict = (labels == yes) | (labels == no)
    return labels.masked_fill(~(selector | verdict), IGNORE)


def without_pictures(batch: dict[str, Tensor], encoder: ChatEncoder) -> dict[str, Tensor]:
    """Drop the tokens of the picture, at the same places in each row, and count positions from 0."""
    seen = (batch["input_ids"][0] == encoder.image_token).nonzero()[:, 0]
    keep = torch.ones(batch["input_ids"].shape[1], dtype=torch.bool)
    keep[seen[0] - 1 : seen[-1] + 2] = False  # also the tokens that open and close a picture
    # Positions of text alone are the same in all three dimensions.
    kept = {name: batch[name][:, keep] for name in ("input_ids", "attention_mask", "labels")}
    positions = (kept["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
    return kept | {"positions": positions.expand(3, -1, -1).contiguous()}


def render(drawn: Sequence[scenes.Scene], rng: random.Random) -> np.ndarray:
    """Draw scenes as pictures (B, S, S, 3) uint8."""
    return np.stack([np.asarray(scenes.render(scene, rng)) for scene in drawn])


def to_arrays(batch: dict[str, Tensor]) -> Batch:
    """Convert tensors to arrays, which are sent between processes as plain bytes."""
    return {name: value.numpy() for name, value in batch.items()}
