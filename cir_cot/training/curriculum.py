"""Teach a tiny Qwen2.5-VL what a pretrained multimodal embedding model brings along.

A step teaches one lesson. Lessons of language (`lessons.TASKS`) are learned by next-token prediction. Alignment puts a
picture and its description in one place, as an embedding model does before it ever sees a composed query: the hidden
state at the retrieval token after a picture, and after its description alone, contrastively in both directions, among
scenes that are one edit apart. A lesson is drawn by its running loss, so what is not known yet comes more often.

Selectors are learned from text alone, among few objects and then among more, each until every attribute alone is
KNOWN, while pictures are learned by describing them; then all lessons with pictures. Without this order colours or
shapes are not learned in 2,600 steps, and pictures not after text (docs/log.md).

Batches are drawn and tokenised in worker processes (`batches.draw_batch`); the model reads them on the device.
"""

import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from torch import Tensor
from torch.nn import functional

from cir_cot.losses import batch_statistics, info_nce
from cir_cot.models.backbone import Backbone
from cir_cot.models.chat import IGNORE, ChatEncoder
from cir_cot.models.tower import picture_features

from . import lessons
from .lesson_batches import ALIGN, Batch, Lesson, draw_batch, language_batch
from .lessons import ATTRIBUTES, EVEN, TASKS, Example

WORDS = (3, 6, 9)  # most objects of a scene whose selectors are learned from text alone
KNOWN = 0.85  # share of scenes with every verdict right at which the next lesson begins
LEAST = 0.02  # weight of a lesson that is known: it still comes now and then
ALIGN_SHARE = 0.3  # of the steps, once selectors are known
WORDS_UNTIL = 0.25  # progress at which pictures join the selectors, known or not
LOOK_EVERY = 25  # steps between two measurements of the selectors
BETAS, WARM_UP, FLOOR = (0.9, 0.98), 200, 0.02
TEMPERATURE = 0.03  # of alignment

logger = logging.getLogger(__name__)


class Curriculum:
    """Decide what the next step teaches: selectors in text and described pictures first, then every lesson."""

    def __init__(self, rows: int, seed: int):
        self.rows = rows
        self.rng = random.Random(seed)
        self.words = list(WORDS)
        self.alone = EVEN
        self.known = [0.0] * len(ATTRIBUTES)
        self.losses = dict.fromkeys(TASKS, 1.0)
        self.in_batch_r1 = 0.0

    def next_lesson(self) -> Lesson:
        """Draw the next lesson by the running losses."""
        seed = self.rng.getrandbits(62)
        if not self.words and self.rng.random() < ALIGN_SHARE:
            return Lesson(ALIGN, 2 * self.rows, seed)  # pairs are short
        names = ["describe", "select"] if self.words else list(TASKS)
        weights = [LEAST + min(self.losses[name], 1.0) for name in names]
        (name,) = self.rng.choices(names, weights)
        text_only = self.words[0] if self.words and name == "select" else None
        return Lesson(name, self.rows, seed, text_only, tuple(self.alone))

    def record(self, lesson: Lesson, loss: float, in_batch_r1: float) -> None:
        """Take a step's loss into the lesson's running mean."""
        if lesson.name == ALIGN:
            self.in_batch_r1 = 0.95 * self.in_batch_r1 + 0.05 * in_batch_r1
        else:
            self.losses[lesson.name] = 0.95 * self.losses[lesson.name] + 0.05 * loss

    def assess(self, base: Backbone, progress: float) -> None:
        """Measure selectors of one attribute; weigh them by what is missing; go on when all are known."""
        most = self.words[0] if self.words else 9
        found = exact_alone(base, self.rng, 16, most, pictures=not self.words)
        self.known = [0.7 * old + 0.3 * new for old, new in zip(self.known, found, strict=True)]
        self.alone = [LEAST + 1 - share for share in self.known]
        if self.words and progress > WORDS_UNTIL:
            self.words = []
        elif self.words and min(self.known) > KNOWN:
            self.words = self.words[1:]
            self.known = [0.5] * len(ATTRIBUTES)

    def status(self) -> dict[str, str]:
        """Return what a progress bar shows."""
        values = (
            self.losses
            | {"aligned": self.in_batch_r1}
            | dict(zip(ATTRIBUTES, self.known, strict=True))
        )
        lesson = {"words": str(self.words[0])} if self.words else {}
        return lesson | {name: f"{value:.3f}" for name, value in values.items()}


def learning_rate(progress: float, step: int, peak: float) -> float:
    """Return the rate at a step: linear warm-up, then a cosine down to 2 % of the peak at `progress` 1."""
    wave = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return peak * min(1.0, (step + 1) / WARM_UP) * (FLOOR + (1 - FLOOR) * wave)


def train(
    base: Backbone,
    curriculum: Curriculum,
    steps: int,
    peak_rate: float,
    workers: int = 0,
    max_seconds: float = math.inf,
    report: Callable[[int, dict[str, str]], None] = lambda step, status: None,
) -> int:
    """Train the base in place -> steps taken; after `max_seconds` fewer than `steps`.

    `workers` processes draw batches ahead (0: none). `report` gets the step and the curriculum's status.
    """
    device = base.device
    optimizer = torch.optim.AdamW(
        base.parameters(), betas=BETAS, weight_decay=0.01, fused=device.type == "cuda"
    )
    bf16 = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    base.train()
    started = time.monotonic()
    pending: deque[tuple[Lesson, Tensor, Tensor]] = deque()
    step = 0
    for step, (lesson, batch) in enumerate(draw_ahead(curriculum, steps, workers), 1):
        progress = max(step / steps, (time.monotonic() - started) / max_seconds)
        if progress > 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress, step, peak_rate)
        # forward, backward, update
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss, in_batch_r1 = lesson_loss(base, lesson, to_device(batch, device))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(base.parameters(), 1.0)
        optimizer.step()
        # losses are read some steps later, so that the device never waits for the host
        pending.append((lesson, loss.detach(), in_batch_r1))
        if len(pending) > 4:
            done, value, found = pending.popleft()
            curriculum.record(done, value.item(), found.item())
        if step % LOOK_EVERY == 0:
            curriculum.assess(base.eval(), progress)
            base.train()
            report(step, curriculum.status())
    return step


def draw_ahead(curriculum: Curriculum, steps: int, workers: int) -> Iterator[tuple[Lesson, Batch]]:
    """Yield lessons with their batches, drawn by `workers` processes two batches each ahead of their use."""
    if not workers:
        for _ in range(steps):
            lesson = curriculum.next_lesson()
            yield lesson, draw_batch(lesson)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        queue: deque = deque()
        for _ in range(steps):
            while len(queue) < 2 * workers:
                lesson = curriculum.next_lesson()
                queue.append((lesson, pool.submit(draw_batch, lesson)))
            lesson, future = queue.popleft()
            yield lesson, future.result()
        pool.shutdown(cancel_futures=True)


def to_device(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """Copy a batch's arrays to the device."""
    return {
        name: torch.from_numpy(value).to(device, non_blocking=True) for name, value in batch.items()
    }


def lesson_loss(base: Backbone, lesson: Lesson, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Compute a lesson's loss -> (loss, in-batch R@1 of alignment or 0), scalars."""
    if lesson.name != ALIGN:
        logits, wanted, _ = predict(base, batch)
        return functional.cross_entropy(logits.float(), wanted), torch.zeros(())
    pictures = embed(base, batch, "")  # (B, D)
    texts = embed(base, batch, "text_")
    rows = torch.arange(len(texts), device=texts.device)
    loss = info_nce(texts, pictures, rows, TEMPERATURE) + info_nce(
        pictures, texts, rows, TEMPERATURE
    )
    return loss / 2, batch_statistics(texts, pictures, rows)["in_batch_r1"]


def hidden_states(base: Backbone, batch: dict[str, Tensor], side: str = "") -> Tensor:
    """Read a batch -> states (B, T, H) of the last layer; `side` "text_" reads the descriptions of alignment."""
    model = base.plain.model
    ids = batch[f"{side}input_ids"]
    embedded = model.get_input_embeddings()(ids)  # (B, T, H)
    if not side and "pictures" in batch:
        features = picture_features(base, batch["pictures"]).to(embedded.dtype)  # (B * 9, H)
        embedded = embedded.masked_scatter((ids == base.image_token_id)[..., None], features)
    return model.language_model(
        inputs_embeds=embedded,
        attention_mask=batch[f"{side}attention_mask"],
        position_ids=batch[f"{side}positions"],
        use_cache=False,
    ).last_hidden_state


def embed(base: Backbone, batch: dict[str, Tensor], side: str) -> Tensor:
    """Read the state at each row's retrieval token -> unit vectors (B, H)."""
    hidden = hidden_states(base, batch, side)
    at = (batch[f"{side}input_ids"] == base.ret_id).int().argmax(dim=1)
    rows = torch.arange(len(at), device=at.device)
    return functional.normalize(hidden[rows, at].float(), dim=-1)


def predict(base: Backbone, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Predict the supervised tokens -> logits (S, V), wanted ids (S,), their places (B, T - 1)."""
    wanted = batch["labels"][:, 1:]
    at = wanted != IGNORE
    hidden = hidden_states(base, batch)[:, :-1]
    return base.logits(hidden[at]), wanted[at], at


@torch.no_grad()
def exact_rows(
    base: Backbone,
    drawn: list[Example],
    rng: random.Random,
    verdicts: bool = False,
    pictures: bool = True,
) -> float:
    """Return the share of examples whose every supervised token is predicted."""
    encoder = ChatEncoder(base.processor, base.ret_id)
    batch = language_batch(base, encoder, rng, drawn, verdicts, pictures)
    logits, wanted, at = predict(base, to_device(batch, base.device))
    right = torch.ones_like(at)
    right[at] = logits.argmax(dim=-1) == wanted
    return right.all(dim=1).float().mean().item()


def exact_answers(base: Backbone, rows: int = 500) -> dict[str, float]:
    """Return for each task the percentage of held-out scenes whose every supervised token is predicted."""
    rates = {}
    for name, task in TASKS.items():
        rng = random.Random(name)
        drawn = [task(rng, True) for _ in range(rows)]
        rates[name] = round(100 * exact_rows(base, drawn, rng, name == "select"), 2)
    return rates


def exact_alone(
    base: Backbone,
    rng: random.Random,
    rows: int,
    most: int = 9,
    pictures: bool = True,
    test: bool = False,
) -> list[float]:
    """Return for selectors of a slot, size, colour or shape alone the share of scenes with all verdicts right."""
    rates = []
    for only in range(len(ATTRIBUTES)):
        weights = [float(at == only) for at in range(len(ATTRIBUTES))]
        drawn = [lessons.select(rng, test, weights, 0, most) for _ in range(rows)]
        rates.append(exact_rows(base, drawn, rng, True, pictures))
    return rates


@torch.no_grad()
def alignment_recall(base: Backbone, rows: int = 500, seed: int = 0) -> float:
    """Return R@1 (%) of held-out descriptions among as many pictures, families of scenes one edit apart."""
    from .lesson_batches import alignment_batch

    rng = random.Random(seed)
    drawn = lessons.draw_distinct_scenes(rng, rows, test=True)
    encoder = ChatEncoder(base.processor, base.ret_id)
    batch = to_device(alignment_batch(base, encoder, rng, drawn), base.device)
    texts = embed(base, batch, "text_")
    pictures = embed(base, batch, "")
    at = torch.arange(rows, device=texts.device)
    return round(100 * batch_statistics(texts, pictures, at)["in_batch_r1"].item(), 2)
