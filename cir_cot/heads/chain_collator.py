"""Collate training rows of the chain retriever, some of them without their chain."""

import random
from collections.abc import Callable, Sequence
from typing import cast

import torch
from PIL.Image import Image
from torch import Tensor

from cir_cot.models.chat import IGNORE, ChatEncoder
from cir_cot.prompts import cot_to_text
from cir_cot.records import Cot

from .base import TrainingRow, image_hash, target_ids


class ChainCollator:
    """Collate rows for the chain retriever: query and target inputs, labels (B, T), ids (B,).

    With probability `chain_dropout`, decided by the row's own `draw`, a row has no chain: the retrieval token follows
    the prompt at once and nothing is supervised, because a token that the fast reading forces teaches no text.

    `targets` encodes target images, by default as prompts of the same model. Targets that are feature vectors stay
    vectors.

    With K hard negatives a row, the target inputs have 1 + K pictures a row, the target first, and `negatives` (B, K)
    holds their image hashes.
    """

    def __init__(
        self,
        encoder: ChatEncoder,
        chain_dropout: float = 0.0,
        targets: Callable[[Sequence[Image]], dict[str, Tensor]] | None = None,
    ):
        self.encoder = encoder
        self.chain_dropout = chain_dropout
        self.targets = targets or encoder.target

    def __call__(self, rows: Sequence[TrainingRow]) -> dict:
        chains = [self._kept_chain(row) for row in rows]
        # Answers: the chain with the retrieval token, or the token alone.
        texts = [cot_to_text(chain) for chain in chains if chain]
        written = iter(self.encoder.answer_token_ids(texts))
        answers = [next(written) if chain else [self.encoder.ret_id] for chain in chains]
        # Queries: reference image, modification text, answer.
        references = cast(list[Image], [row.reference for row in rows])
        query, labels = self.encoder.query(references, [row.record.text for row in rows], answers)
        # Without a chain nothing is supervised.
        labels[torch.tensor([chain is None for chain in chains])] = IGNORE
        # Each row's target, and after it the row's hard negatives.
        shown: list[Image | Tensor] = []
        for row in rows:
            shown += [row.target, *(image for _, image in row.negatives)]
        # Rows whose targets are correct for each other are no negatives.
        batch = {
            "query": query,
            "target": self._collate_targets(shown),
            "labels": labels,
            "ids": target_ids(rows),
        }
        if rows[0].negatives:
            hashes = [[image_hash(name) for name, _ in row.negatives] for row in rows]
            batch["negatives"] = torch.tensor(hashes)  # (B, K)
        return batch

    def _kept_chain(self, row: TrainingRow) -> Cot | None:
        # The row's own draw decides, so that a resumed run decides alike.
        dropped = random.Random(row.draw).random() < self.chain_dropout
        return None if dropped else row.record.cot

    def _collate_targets(self, targets: Sequence[Image | Tensor]) -> dict[str, Tensor]:
        if torch.is_tensor(targets[0]):
            return {"vectors": torch.stack(cast(list[Tensor], targets))}  # (B, D)
        return self.targets(cast(list[Image], targets))
