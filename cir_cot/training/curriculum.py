"""Pretrain a tiny Qwen2.5-VL on scenes, with a curriculum of language and alignment lessons.

The result has the abilities of a pretrained multimodal embedding model that training a retriever
relies on. A step teaches one lesson:

- Language (`lessons.TASKS`), by next-token prediction.
- Alignment of a picture with its description, as an embedding model learns it before any composed
  query: InfoNCE in both directions between the hidden states at the retrieval token after a picture
  and after its description alone, among scenes that are one edit apart.

A lesson is drawn with its running loss as the weight, so what is not learned yet comes more often.

Selectors are first learned from text alone, among few objects and then among more, each stage until
every attribute alone reaches KNOWN. Pictures are meanwhile learned by describing them. After that
all lessons show pictures. Without this order, colours or shapes are not learned in 2,600 steps, and
pictures not after text (docs/log.md).

Worker processes draw and tokenise the batches (`lesson_batches.draw_batch`).
"""

import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from torch import Tensor

from cir_cot.models.backbone import Backbone

from .lesson_batches import ALIGN, Batch, Lesson, draw_batch
from .lesson_losses import exact_alone, lesson_loss, to_device
from .lessons import ATTRIBUTES, EVEN, TASKS

# Curriculum.
TEXT_STAGES = (3, 6, 9)  # most objects of a scene, for selectors learned from text alone
TEXT_UNTIL = 0.25  # progress at which selectors get pictures, learned or not
KNOWN = 0.85  # share of scenes with all verdicts right at which the next stage begins
LEAST = 0.02  # weight of a lesson that is learned: it still comes now and then
ALIGN_SHARE = 0.3  # share of the steps for alignment, once selectors are learned
ASSESS_EVERY = 25  # steps between two measurements of the selectors
# Optimization.
BETAS = (0.9, 0.98)
WARM_UP = 200  # steps
FLOOR = 0.02  # of the peak learning rate
DELAY = 4  # steps after which a loss is read, so that the device never waits for the host

logger = logging.getLogger(__name__)


class Curriculum:
    """Choose the lesson of each step by stage and running losses.

    Args:
        rows: rows of a batch; of alignment twice as many, because its texts are short.
        seed: of the choices and of the rows.
    """

    def __init__(self, rows: int, seed: int):
        self.rows = rows
        self.rng = random.Random(seed)
        self.text_stages = list(TEXT_STAGES)  # those that are left
        self.alone: Sequence[float] = EVEN
        self.known = [0.0] * len(ATTRIBUTES)
        self.losses = dict.fromkeys(TASKS, 1.0)
        self.in_batch_r1 = 0.0

    def next_lesson(self) -> Lesson:
        """Draw the next lesson by the running losses."""
        seed = self.rng.getrandbits(62)
        if not self.text_stages and self.rng.random() < ALIGN_SHARE:
            return Lesson(ALIGN, 2 * self.rows, seed)
        names = ["describe", "select"] if self.text_stages else list(TASKS)
        weights = [LEAST + min(self.losses[name], 1.0) for name in names]
        (name,) = self.rng.choices(names, weights)
        text_only = self.text_stages[0] if self.text_stages and name == "select" else None
        return Lesson(name, self.rows, seed, text_only, tuple(self.alone))

    def record_loss(self, lesson: Lesson, loss: float, in_batch_r1: float) -> None:
        """Update a lesson's running mean with the loss of a step."""
        if lesson.name == ALIGN:
            self.in_batch_r1 = 0.95 * self.in_batch_r1 + 0.05 * in_batch_r1
        else:
            self.losses[lesson.name] = 0.95 * self.losses[lesson.name] + 0.05 * loss

    def assess(self, base: Backbone, progress: float) -> None:
        """Measure selectors of one attribute, weight them, and start the next stage when due.

        Args:
            progress: share of the training that is done.
        """
        # Attributes that are not learned yet are drawn more often.
        most = self.text_stages[0] if self.text_stages else 9
        found = exact_alone(base, self.rng, 16, most, pictures=not self.text_stages)
        self.known = [0.7 * old + 0.3 * new for old, new in zip(self.known, found, strict=True)]
        self.alone = [LEAST + 1 - share for share in self.known]
        # The next stage has more objects, so attributes count as half learned.
        if self.text_stages and progress > TEXT_UNTIL:
            self.text_stages = []
        elif self.text_stages and min(self.known) > KNOWN:
            self.text_stages = self.text_stages[1:]
            self.known = [0.5] * len(ATTRIBUTES)

    def postfix(self) -> dict[str, str]:
        """Return the values that a progress bar shows."""
        known = dict(zip(ATTRIBUTES, self.known, strict=True))
        values = self.losses | {"aligned": self.in_batch_r1} | known
        shown = {"words": str(self.text_stages[0])} if self.text_stages else {}
        for name, value in values.items():
            shown[name] = f"{value:.3f}"
        return shown


def learning_rate(progress: float, step: int, peak: float) -> float:
    """Return the rate at a step: linear warm-up, then a cosine to FLOOR of the peak at progress 1."""
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
    """Train the base in place.

    Args:
        peak_rate: learning rate after warm-up.
        workers: processes that draw batches ahead, 0 for none.
        max_seconds: training ends then, if that is before `steps`.
        report: called with the step and `Curriculum.postfix` at each assessment.

    Returns:
        The steps that were taken.
    """
    device = base.device
    optimizer = torch.optim.AdamW(
        base.parameters(), betas=BETAS, weight_decay=0.01, fused=device.type == "cuda"
    )
    bf16 = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    # `pending` holds losses that have not been read yet.
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
        # Forward, backward, update.
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss, in_batch_r1 = lesson_loss(base, lesson, to_device(batch, device))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(base.parameters(), 1.0)
        optimizer.step()
        # Record a loss some steps later, when the device has computed it.
        pending.append((lesson, loss.detach(), in_batch_r1))
        if len(pending) > DELAY:
            done, value, found = pending.popleft()
            curriculum.record_loss(done, value.item(), found.item())
        if step % ASSESS_EVERY == 0:
            curriculum.assess(base.eval(), progress)
            base.train()
            report(step, curriculum.postfix())
    return step


def draw_ahead(curriculum: Curriculum, steps: int, workers: int) -> Iterator[tuple[Lesson, Batch]]:
    """Yield lessons with their batches; each worker process draws two batches ahead."""
    # In this process.
    if not workers:
        for _ in range(steps):
            lesson = curriculum.next_lesson()
            yield lesson, draw_batch(lesson)
        return
    # In worker processes, which start afresh: forked ones would share locks of torch.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        queue: deque = deque()
        for _ in range(steps):
            while len(queue) < 2 * workers:
                lesson = curriculum.next_lesson()
                queue.append((lesson, pool.submit(draw_batch, lesson)))
            lesson, future = queue.popleft()
            yield lesson, future.result()
        pool.shutdown(cancel_futures=True)
