"""A reranker: the backbone looks at a query together with a candidate picture and says yes or no.

The score is logit(yes) - logit(no) after the question, so that sigmoid(score) is the softmax over the two, as in
Qwen3-VL-Reranker. It is trained by the cross-entropy of these two, on the target and on negatives of each query.
"""

import copy
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional

from cir_cot.devices import fast_dtype, pick_device
from cir_cot.errors import InputError
from cir_cot.hub import located
from cir_cot.models.backbone import Backbone
from cir_cot.models.chat import IGNORE
from cir_cot.models.pair_chat import PairEncoder, Query
from cir_cot.prompts import ANSWERS
from cir_cot.records import Cot
from cir_cot.retriever import Judgement, QueryOutput, read_settings

from .base import HeadOutput, TrainingRow, target_ids
from .qwen import QwenHead

# Shares of the training rows that show a negative, and that hide the chain: the model's own chain may be wrong where
# the first stage is, so that the reranker must not trust it blindly. Both are ours.
NEGATIVE_SHARE = 0.5
CHAIN_DROPOUT = 0.5


class Reranker(QwenHead):
    """Judge candidates pointwise; trained by `CirTrainer` with `contrastive_weight` 0, saved as any head.

    Example:
        reranker = load_reranker("runs/rerank")
        reranker.judge(reference, "the same in red", None, candidates).scores  # (K,)
    """

    kind = "rerank"

    def __init__(self, backbone: Backbone, base: str, **readout: Any):
        super().__init__(backbone, base, **readout)
        self.encoder = PairEncoder(backbone.processor, backbone.ret_id)
        self.answers = answer_ids(self.encoder)

    def collator(self) -> "JudgeCollator":
        """Return the function that turns training rows into a batch."""
        return JudgeCollator(self.encoder, self.answers)

    def forward(
        self,
        query: dict[str, Tensor],
        target: dict[str, Tensor] | None = None,
        labels: Tensor | None = None,
    ) -> HeadOutput:
        """Return the cross-entropy of the answers as aux loss `lm`; a reranker embeds nothing.

        It is that of two classes, yes and no, as in judging: the rest of the vocabulary takes no part.
        """
        hidden = self.backbone(query)  # (B, T, H)
        aux = {}
        if labels is not None:
            # The state before each answer.
            at = labels[:, 1:] != IGNORE  # (B, T - 1)
            logits = self.backbone.logits(hidden[:, :-1][at])[:, list(self.answers)]  # (B, 2)
            wanted = (labels[:, 1:][at] == self.answers[1]).long()  # (B,)
            aux["lm"] = functional.cross_entropy(logits.float(), wanted)
        return HeadOutput(hidden[:, -1].float(), None, self.temperature(), aux, {}, {})

    @torch.no_grad()
    def judge(
        self, reference: Image, text: str, chain: Cot | None, candidates: Sequence[Image]
    ) -> Judgement:
        """Judge whether each of K candidates is what a query asks for.

        The query is read once; its keys and values serve all candidates, which are read in batches of `batch_size` rows
        and `token_budget` tokens.

        Returns:
            Scores (K,) on the CPU, and the tokens that were read, padding left out.
        """
        # The query.
        before = self.encoder.before([(reference, text, chain)])
        tokens = before["input_ids"].numel()
        places = self.backbone.positions(before)  # (3, 1, P)
        cache = self.backbone.new_cache()
        self.backbone(self._to_device(before), places.to(self.backbone.device), cache)
        scores = torch.zeros(len(candidates))
        for rows in self.batches_by_size(candidates):
            # A copy of the query's keys and values for each candidate.
            shared = copy.deepcopy(cache)
            copies = torch.zeros(len(rows), dtype=torch.long, device=self.backbone.device)
            self.backbone.keep_rows(shared, copies)
            after = self.encoder.after([candidates[row] for row in rows])
            tokens += int(after["attention_mask"].sum())
            scores[rows] = self._scores(after, places, shared)
        return Judgement(scores, tokens)

    def _scores(self, after: dict[str, Tensor], before: Tensor, cache: Any) -> Tensor:
        """Score candidates (K, S) that follow a cached query with positions (3, 1, P) -> (K,) on the CPU."""
        # Positions count on from the query's: M-RoPE is relative to where a part starts.
        places = self.backbone.positions(after) + self.backbone.next_positions(before)  # (3, K, S)
        mask = after["attention_mask"]  # (K, S)
        seen = torch.ones(len(mask), before.shape[2], dtype=mask.dtype)
        inputs = self._to_device(after | {"attention_mask": torch.cat([seen, mask], dim=1)})
        hidden = self.backbone(inputs, places.to(self.backbone.device), cache)  # (K, S, H)
        # The answer follows the last token.
        last = (mask.sum(dim=1) - 1).to(hidden.device)
        logits = self.backbone.logits(hidden[torch.arange(len(last)), last])  # (K, V)
        yes, no = self.answers
        return (logits[:, yes].float() - logits[:, no].float()).cpu()

    def encode_query(self, images: Sequence[Image], texts: Sequence[str]) -> QueryOutput:
        """Refuse: a reranker embeds nothing."""
        self._refuse()

    def encode_target(self, images: Sequence[Image]) -> Tensor:
        """Refuse: a reranker embeds nothing."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise InputError(
            "a reranker judges candidates and embeds nothing; retrieve with another model first"
        )


class JudgeCollator:
    """Collate rows for the reranker: each shows its target or a negative, as the row's own draw decides.

    A row without negatives shows its target. The answer is yes where the picture shown is a correct target.
    """

    def __init__(self, encoder: PairEncoder, answers: tuple[int, int]):
        self.encoder = encoder
        self.answers = answers

    def __call__(self, rows: Sequence[TrainingRow]) -> dict:
        queries: list[Query] = []
        candidates = []
        answers = []
        for row in rows:
            # Not the stream that drew the negative: the two choices are independent.
            chance = random.Random(f"judge {row.draw}")
            name, shown = row.record.targets[0], row.target
            if row.negatives and chance.random() < NEGATIVE_SHARE:
                name, shown = row.negatives[0]
            chain = None if chance.random() < CHAIN_DROPOUT else row.record.cot
            queries.append((cast(Image, row.reference), row.record.text, chain))
            candidates.append(cast(Image, shown))
            answers.append([self.answers[int(name not in row.record.targets)]])
        inputs, labels = self.encoder.pairs(queries, candidates, answers)
        return {"query": inputs, "labels": labels, "ids": target_ids(rows)}


def answer_ids(encoder: PairEncoder) -> tuple[int, int]:
    """Return the first token of "yes" and of "no"; InputError where they are the same."""
    yes, no = (ids[0] for ids in encoder.plain_ids(ANSWERS))
    if yes == no:
        raise InputError(
            "the checkpoint's tokenizer begins yes and no with the same token; use another"
        )
    return yes, no


def load_reranker(folder: str | Path, merge: bool = True, **options: Any) -> Reranker:
    """Load a trained reranker for inference.

    Args:
        folder: the folder that `cir-cot rerank` wrote, or a name on the hub.
        merge: merge a LoRA adapter into the weights, which reads faster.
        options: those of `load_retriever`.

    Raises:
        InputError: the folder holds no reranker, or an unfinished one.
    """
    folder = located(folder)
    metadata = read_settings(folder)
    if metadata["kind"] != Reranker.kind:
        raise InputError(
            f"{folder}: a {metadata['kind']!r} retriever; give a folder that cir-cot rerank wrote"
        )
    if options.get("dtype") is None:
        options["dtype"] = fast_dtype(pick_device(options.get("device")))
    reranker = Reranker.load(folder, metadata, **options)
    reranker.trained_in = metadata.get("trained_in")
    if merge and getattr(reranker.backbone.config, "quantization_config", None) is None:
        reranker.backbone.merge()
    return reranker
