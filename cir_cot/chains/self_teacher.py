"""Self-taught chains: a trained retriever draws several for each query and keeps what helps it.

This is rejection sampling. A chain is kept if it passes the filters (but that of length) and if the
query, read with it, ranks a target better than the same model does without a chain (the pair-aware
rule of MMEmb-R1, arXiv 2604.06156). Where a target is first already, a chain that leaves it there
is kept.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from torch import Tensor

from cir_cot.errors import InputError
from cir_cot.evaluation.encode import encode_gallery
from cir_cot.evaluation.ranking import dot_products
from cir_cot.heads.cot import CotRetriever
from cir_cot.heads.sampling import Sampling
from cir_cot.images import ImageStore
from cir_cot.prompts import PARTS, cot_to_text, text_to_cot
from cir_cot.records import Cot, Record
from cir_cot.retriever import inference

from .annotate import Watch
from .budget import Budget
from .filters import problems, size
from .job import Job, Task
from .teacher import RAW, shorten


@dataclass(frozen=True)
class Gallery:
    """Pictures among which targets are ranked: column of each id, and embeddings (N, D)."""

    column: Mapping[str, int]
    vectors: np.ndarray

    def ranks(self, record: Record, queries: Tensor) -> list[int]:
        """Return the rank of a record's best target by each query vector (K, D), 1 for the best.

        Pictures that score as high as the target count as better; other targets do not count.
        """
        targets = [self.column[name] for name in record.targets]
        scores = dot_products(queries.numpy(), self.vectors)  # (K, N)
        best = scores[:, targets].max(axis=1, keepdims=True)  # (K, 1)
        scores[:, targets] = -np.inf
        return (1 + (scores >= best).sum(axis=1)).tolist()


@dataclass(frozen=True)
class Drawn:
    """A chain that was drawn.

    Attributes:
        text: as the model wrote it.
        cot: the chain; None if a section is missing.
        rank: of the target, with this chain.
        problem: why it cannot be kept whatever its rank; "" if nothing is wrong.
    """

    text: str
    cot: Cot | None
    rank: int
    problem: str

    @property
    def length(self) -> int:
        """Words and punctuation marks of the chain."""
        return size(" ".join(getattr(self.cot, part) for part in PARTS)) if self.cot else 0


def choose(drawn: Iterable[Drawn], without: int, keep_better: bool = True) -> Drawn | None:
    """Return the chain to keep: the best rank, the shortest of equals; None if none is kept.

    Args:
        drawn: the chains of a query.
        without: the target's rank without a chain.
        keep_better: keep only what ranks the target better than that, or first as before.
    """
    good = [one for one in drawn if not one.problem]
    if keep_better:
        good = [one for one in good if one.rank < without or one.rank == 1]
    return min(good, key=lambda one: (one.rank, one.length), default=None)


def refusal_reason(drawn: Sequence[Drawn], without: int) -> str:
    """Say why no chain of a query is kept."""
    passed = [one.rank for one in drawn if not one.problem]
    if not passed:
        return shorten(drawn[0].problem)
    return f"rank: the target is at {min(passed)} with the best chain and at {without} without one"


class SelfTeacher:
    """Draw chains with the retriever that will be trained on them.

    Args:
        retriever: a trained chain head.
        samples: K, chains drawn for each query.
        temperature: of the draws, above 0.
        keep_better: see `choose`.
        batch_size: queries in one group, which is written when all its chains are drawn; also the
            most rows that are decoded at once.

    Example:
        teacher = SelfTeacher(load_retriever("runs/model"), samples=4)
    """

    def __init__(
        self,
        retriever: CotRetriever,
        samples: int,
        temperature: float = 0.7,
        keep_better: bool = True,
        batch_size: int = 16,
    ):
        self.retriever = retriever
        self.samples = samples
        self.temperature = temperature
        self.keep_better = keep_better
        self.batch_size = batch_size
        retriever.batch_size = batch_size

    def encode_galleries(
        self, queries: Iterable[tuple[Record, ImageStore]]
    ) -> dict[ImageStore, Gallery]:
        """Encode the references and targets of all queries, those of each store as one gallery."""
        names: dict[ImageStore, dict[str, None]] = {}
        for record, images in queries:
            found = names.setdefault(images, {})
            found.update(dict.fromkeys((record.reference, *record.targets)))
        galleries = {}
        for images, found in names.items():
            vectors = encode_gallery(self.retriever, list(found), images, self.batch_size)
            column = {name: index for index, name in enumerate(found)}
            galleries[images] = Gallery(column, vectors.numpy())
        return galleries

    def annotate(
        self, job: Job, tasks: Sequence[Task], galleries: Mapping[ImageStore, Gallery], watch: Watch
    ) -> str:
        """Write chains of the tasks to the job, group by group.

        Returns:
            Why it stopped early; "" if it did not.
        """
        with watch(job) as tell, inference(self.retriever):
            for start in range(0, len(tasks), self.batch_size):
                group = tasks[start : start + self.batch_size]
                pictures = [task.images.load(task.record.reference) for task in group]
                # A group that the budget does not cover is begun only as far as it does.
                prompts = self._prompt_tokens(group, pictures)
                covered = self._covered(job.budget, prompts)
                if covered:
                    self._annotate(
                        job, group[:covered], pictures[:covered], prompts[:covered], galleries
                    )
                    job.sync()
                    tell()
                if covered < len(group):
                    return "the budget is spent"
        return ""

    def _prompt_tokens(self, group: Sequence[Task], pictures: Sequence[Image.Image]) -> list[int]:
        """Count the tokens of each row's prompt."""
        nothing: list[list[int]] = [[] for _ in group]
        texts = [task.record.text for task in group]
        inputs, _ = self.retriever.encoder().query(pictures, texts, nothing)
        return inputs["attention_mask"].sum(dim=1).tolist()

    def _longest(self) -> int:
        """Return the most tokens of a chain: those of its sections, their tags and the last one."""
        tags = cot_to_text(Cot("", "", ""))
        return self.retriever.max_new_tokens + self._count_tokens(tags) + 1

    def _count_tokens(self, text: str) -> int:
        return len(self.retriever.backbone.processor.tokenizer(text).input_ids)

    def _covered(self, budget: Budget, prompts: Sequence[int]) -> int:
        """Return how many of the rows, from the first on, fit into the budget at their longest."""
        answers = self.samples * self._longest()
        for count in range(len(prompts), 0, -1):
            if budget.fits(sum(prompts[:count]) * (self.samples + 1), count * answers):
                return count
        return 0

    def _annotate(
        self,
        job: Job,
        group: Sequence[Task],
        pictures: Sequence[Image.Image],
        prompts: Sequence[int],
        galleries: Mapping[ImageStore, Gallery],
    ) -> None:
        """Draw, rank and choose the chains of a group; write what is kept, and why others not."""
        texts = [task.record.text for task in group]
        plain = self.retriever.encode_query(pictures, texts, "fast").embeddings  # (B, D)

        # K rows of each query; a row's draws depend on its key and number alone.
        rows = np.repeat(np.arange(len(group)), self.samples).tolist()
        seeds: list[int] = []
        for task in group:
            first = int(task.key[:15], 16)
            seeds += range(first, first + self.samples)
        asked = [pictures[row] for row in rows]
        wanted = [texts[row] for row in rows]
        sampling = Sampling(self.temperature, seeds)
        output = self.retriever.sample_query(asked, wanted, sampling)
        # The prompt is encoded for each chain, and once without one.
        job.budget.calls += len(rows)
        # A text that is no writing may have more tokens than were drawn.
        longest = self._longest()
        written = sum(min(self._count_tokens(text), longest) for text in output.explanations)
        job.budget.pay(sum(prompts) * (self.samples + 1), written)

        # Each query's chains, in the order in which they were drawn.
        for row, task in enumerate(group):
            gallery = galleries[task.images]
            mine = slice(row * self.samples, (row + 1) * self.samples)
            (without,) = gallery.ranks(task.record, plain[row : row + 1])
            ranks = gallery.ranks(task.record, output.embeddings[mine])
            found = zip(output.explanations[mine], output.flags[mine], ranks, strict=True)
            drawn = [judged(task.record, text, flag, rank) for text, flag, rank in found]
            self._write(job, task, drawn, without)

    def _write(self, job: Job, task: Task, drawn: Sequence[Drawn], without: int) -> None:
        """Write the chain that is kept, or why there is none."""
        kept = choose(drawn, without, self.keep_better)
        if kept is None:
            reason = refusal_reason(drawn, without)
            job.quarantine(task.name, reason, len(drawn), drawn[0].text[:RAW])
            return
        ranks = {"samples": self.samples, "rank": kept.rank, "rank_without": without}
        teacher = (task.record.teacher or {}) | ranks
        job.accept(replace(task.record, cot=kept.cot, teacher=teacher), repaired=False)


def judged(record: Record, text: str, flag: str, rank: int) -> Drawn:
    """Read a drawn chain and apply the filters."""
    cot = text_to_cot(text)
    if flag or cot is None:
        return Drawn(text, cot, rank, f"form: {flag or 'a section is missing or empty'}")
    found = problems(replace(record, cot=cot))
    # The bounds on length are for teachers: a trained model writes at the length of its own chains.
    found.pop("length", None)
    return Drawn(text, cot, rank, next((f"{name}: {found[name]}" for name in found), ""))


def open_self_teacher(
    model: str,
    samples: int,
    temperature: float,
    keep_better: bool,
    batch_size: int,
    dtype: str,
    device: object,
) -> SelfTeacher:
    """Load a saved retriever as a teacher; InputError if it writes no chains."""
    from cir_cot.heads import load_retriever

    retriever = load_retriever(model, device=device, dtype=dtype)
    if not isinstance(retriever, CotRetriever):
        raise InputError(f"{model}: --teacher self needs a chain-of-thought retriever")
    return SelfTeacher(retriever, samples, temperature, keep_better, batch_size)
