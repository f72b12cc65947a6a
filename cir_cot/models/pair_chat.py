"""Turn a query and a candidate picture into one turn that asks whether they fit.

The turn is cut before the candidate: what comes before it is the same for all candidates of a query, so a reranker
reads it once and keeps its keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from cir_cot.errors import InputError
from cir_cot.prompts import JUDGE_ANSWER, judge_prompt
from cir_cot.records import Cot

from .chat import _STAND_IN, IGNORE, ChatEncoder
from .loading import loading

if TYPE_CHECKING:
    from .architectures import QwenProcessor

Query = tuple[Image.Image, str, Cot | None]  # reference picture, modification, chain


class PairEncoder(ChatEncoder):
    """Encode queries and candidate pictures, in two parts or as complete rows.

    Args:
        processor: Of the checkpoint.
        ret_id: Id of the retrieval token.

    Example:
        encoder = PairEncoder(backbone.processor, backbone.ret_id)
        prefix = encoder.before([(reference, "the same in red", None)])
        suffixes = encoder.after(candidates)
    """

    def __init__(self, processor: QwenProcessor, ret_id: int):
        super().__init__(processor, ret_id)
        # A turn of picture, text, picture, text: what stands between the texts holds the second picture.
        part: list[dict[str, Any]] = [{"type": "image"}, {"type": "text", "text": _STAND_IN}]
        turns: list[dict[str, Any]] = [{"role": "user", "content": part * 2}]
        with loading("the checkpoint's chat template cannot be used"):
            pieces = processor.apply_chat_template(turns, add_generation_prompt=True)
        parts = [self._template_ids(piece) for piece in pieces.split(_STAND_IN)]
        counts = [ids.count(self.image_token) for ids in parts]
        if counts != [1, 1, 0]:
            raise InputError(
                "the checkpoint's chat template does not show two pictures and two texts in their order; use another"
            )
        self.opening, self.middle, self.closing = parts

    def before(self, queries: Sequence[Query]) -> dict[str, Tensor]:
        """Encode what comes before the candidates: references, modifications and chains (B, P)."""
        pixels, visual = self._pictures([reference for reference, _, _ in queries])
        return self._inputs(self._query_ids(queries, visual), pixels)

    def after(self, candidates: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Encode the candidates with the question, up to the answer (K, S), padded on the right."""
        pixels, visual = self._pictures(candidates)
        return self._inputs(self._candidate_ids(visual), pixels)

    def pairs(
        self,
        queries: Sequence[Query],
        candidates: Sequence[Image.Image],
        answers: Sequence[list[int]],
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Encode B complete rows with given answers.

        Returns:
            Model inputs (B, T), and labels (B, T): -100 everywhere but at the answers.
        """
        # Pictures in the order of the rows: reference and candidate of the first, of the second, and so on.
        shown: list[Image.Image] = []
        for (reference, _, _), candidate in zip(queries, candidates, strict=True):
            shown += [reference, candidate]
        pixels, visual = self._pictures(shown)
        # Rows of three parts: query, candidate, answer.
        starts = self._query_ids(queries, visual[::2])
        ends = self._candidate_ids(visual[1::2])
        rows = []
        labels = []
        for start, end, answer in zip(starts, ends, answers, strict=True):
            rows.append([*start, *end, *answer])
            labels.append([IGNORE] * (len(start) + len(end)) + answer)
        return self._inputs(rows, pixels), self._pad(labels, IGNORE)

    def _pictures(self, images: Sequence[Image.Image]) -> tuple[dict[str, Tensor], list[int]]:
        """Return the patches of pictures, and how many visual tokens each becomes."""
        images_of = self.processor.image_processor
        pixels = images_of(images=list(images), return_tensors="pt")
        visual = pixels["image_grid_thw"].prod(dim=1) // images_of.merge_size**2
        return dict(pixels), visual.tolist()

    def _query_ids(self, queries: Sequence[Query], visual: Sequence[int]) -> list[list[int]]:
        """Return the tokens before the candidate of each query."""
        prompts = self.plain_ids([judge_prompt(text, chain) for _, text, chain in queries])
        rows = zip(visual, prompts, strict=True)
        return [self._shown(self.opening, count) + prompt for count, prompt in rows]

    def _candidate_ids(self, visual: Sequence[int]) -> list[list[int]]:
        """Return the tokens of each candidate and of the question after it."""
        (question,) = self.plain_ids([JUDGE_ANSWER])
        return [self._shown(self.middle, count) + question + self.closing for count in visual]

    def _shown(self, ids: list[int], count: int) -> list[int]:
        """Repeat the image token of a part of the template for each visual token."""
        at = ids.index(self.image_token)
        return ids[:at] + [self.image_token] * count + ids[at + 1 :]

    def _inputs(self, rows: list[list[int]], pixels: dict[str, Tensor]) -> dict[str, Tensor]:
        """Pad rows to model inputs; their positions are counted by the model."""
        ids = self._pad(rows, self.tokenizer.pad_token_id)
        return {
            "input_ids": ids,
            "attention_mask": self._pad([[1] * len(row) for row in rows], 0),
            "mm_token_type_ids": torch.eq(ids, self.image_token).long(),
            **pixels,
        }
