"""Look again at the first hits of a search with a reranker."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from cir_cot.errors import InputError
from cir_cot.images import ImageStore
from cir_cot.prompts import text_to_cot
from cir_cot.retriever import Judge, inference

from .gallery_index import Hit


@dataclass(frozen=True)
class SecondLook:
    """Reorder the first K hits of a query by a reranker's scores.

    Attributes:
        judge: the reranker, of `load_reranker`.
        first: K, at least 1.
        images: pictures of the gallery.

    Example:
        search = open_search("runs/model", "runs/index")
        images = list_pictures(search.index.metadata["images"])
        search.again = SecondLook(load_reranker("runs/rerank"), 20, images)
    """

    judge: Judge
    first: int
    images: ImageStore

    def __post_init__(self) -> None:
        if self.first < 1:
            raise InputError(f"rerank {self.first}: look at one picture at least")

    def __call__(
        self, image: Image.Image, text: str, explanation: str, hits: Sequence[Hit]
    ) -> tuple[list[Hit], dict]:
        """Return the hits, the first K with their probability of yes, and what it cost.

        Hits of equal score, and those behind the first K, keep their order.

        Raises:
            InputError: a picture cannot be read, or a score is not finite.
        """
        started = time.perf_counter()
        names = [name for name, _ in hits[: self.first]]
        pictures = [self.images.load(name) for name in names]
        with inference(self.judge):
            judged = self.judge.judge(image, text, text_to_cot(explanation), pictures)
        scores = dict(zip(names, judged.scores.tolist(), strict=True))
        for name, score in scores.items():
            if not math.isfinite(score):
                raise InputError(f"picture {name!r}: the reranker's score is {score}; use float32")
        # sorted() keeps the order of the index at ties.
        ordered = sorted(names, key=lambda name: -scores[name])
        sure = torch.tensor([scores[name] for name in ordered]).sigmoid().tolist()
        cost = {
            "first": self.first,
            "pictures": len(names),
            "tokens": judged.tokens,
            "seconds": round(time.perf_counter() - started, 4),
        }
        return [*zip(ordered, sure, strict=True), *hits[self.first :]], cost
