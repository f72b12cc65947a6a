"""Assemble one process's share of the loss of an optimizer step.

With R rows and T supervised tokens in an optimizer step over W processes, a micro-batch of b rows
and t tokens weights its contrastive and auxiliary means with W * b / R and its language-model mean
with W * t / T. DDP averages over the processes, so the sum over processes and gradient accumulation
is the mean over all R rows and all T tokens.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cir_cot.heads.base import HeadOutput
from cir_cot.losses import batch_statistics, gather_counts, gather_with_grad, info_nce

from .arguments import CirArguments
from .chunks import Batch, Chunk, collated_parts
from .step_metrics import StepMetrics, supervised_tokens


class StepTotals(NamedTuple):
    """Rows and supervised tokens of an optimizer step, over its micro-batches and all processes."""

    rows: int
    tokens: int


def count_step(batches: Sequence[Batch]) -> tuple[int, int]:
    """Return the rows and the supervised tokens of this process's micro-batches of a step."""
    rows = 0
    tokens = 0
    for batch in batches:
        rows += sum(len(part["ids"]) for part in collated_parts(batch))
        tokens += supervised_tokens(batch)
    return rows, tokens


def split_negatives(outputs: HeadOutput, negatives: Tensor | None) -> HeadOutput:
    """Split the target embeddings (B * (1 + K), D) of rows with hard negatives, whose hashes are `negatives` (B, K)."""
    if negatives is None or outputs.target is None:
        return outputs
    rows, count = negatives.shape
    shown = outputs.target.view(rows, 1 + count, -1)  # (B, 1 + K, D)
    return outputs._replace(target=shown[:, 0], negative=shown[:, 1:], negative_ids=negatives)


class StepLosses:
    """Compute and log the weighted losses of a step from a head's outputs.

    Args:
        head: computes its own losses of all rows, `batch_losses`, if its outputs have `rows`.
        args: weights of the losses.
        metrics: where each loss is logged without its weight.
        processes: number of processes, W.
    """

    def __init__(self, head: Any, args: CirArguments, metrics: StepMetrics, processes: int):
        self.head = head
        self.args = args
        self.metrics = metrics
        self.processes = processes

    def row_losses(self, outputs: HeadOutput, chunk: Chunk, totals: StepTotals) -> Tensor | float:
        """Return a chunk's share of the auxiliary losses, a scalar.

        `lm` is a mean over supervised tokens, any other one a mean over rows.
        """
        if outputs.rows and not self.args.contrastive_weight:
            raise ValueError(
                "the head has losses of all rows: they need a contrastive_weight above 0"
            )
        # Each loss with its own count; an uncounted chunk adds 0 but takes part in the graph.
        batch = chunk.batch
        rows = len(chunk)
        loss: Tensor | float = 0.0
        for name, value in outputs.aux.items():
            count = supervised_tokens(batch) if name == "lm" else rows
            total = totals.tokens if name == "lm" else totals.rows
            if not chunk.counted:
                count = 0
            share = self.processes * count / max(total, 1)
            loss = loss + self._loss_weight(name) * value * share
            self.metrics.add(f"{name}_loss", value, count)
        # What else the chunk shows in the log.
        if chunk.counted:
            for name, value in outputs.stats.items():
                self.metrics.add(name, value, rows)
            target = batch["target"] if self.args.contrastive_weight else None
            self.metrics.count_tokens(batch["query"], target)
        return loss

    def batch_losses(self, outputs: HeadOutput, ids: Tensor, totals: StepTotals) -> Tensor:
        """Return this process's share of the losses that need all rows of a micro-batch, a scalar.

        These are InfoNCE and the head's own. The head's are the same on every process, which counts
        the share of its own rows.

        Args:
            outputs: of all rows of this process's micro-batch.
            ids: image hashes (B, P) of the rows' correct targets, the trained one first.
            totals: of the optimizer step.
        """
        counts = gather_counts(len(ids), ids.device)
        # InfoNCE.
        contrastive = self._contrastive(outputs, ids, counts)
        self.metrics.add("contrastive_loss", contrastive, len(ids))
        self.metrics.add("temperature", outputs.temperature, len(ids))
        loss = self.args.contrastive_weight * contrastive
        # The head's own losses, such as a router's balance, on the rows of all processes.
        if outputs.rows:
            rows = {name: gather_with_grad(value, counts) for name, value in outputs.rows.items()}
            for name, value in self.head.batch_losses(rows).items():
                self.metrics.add(f"{name}_loss", value, len(ids))
                loss = loss + self._loss_weight(name) * value
        return loss * (self.processes * len(ids) / totals.rows)

    def _contrastive(self, outputs: HeadOutput, ids: Tensor, counts: list[int]) -> Tensor:
        """Return InfoNCE of this process's queries against the targets of all processes, a scalar."""
        assert outputs.target is not None, "a contrastive step encodes targets"
        target = gather_with_grad(outputs.target, counts)  # (N, D)
        own_ids = ids.reshape(len(ids), -1)[:, 0]  # (B,)
        all_ids = gather_with_grad(own_ids, counts)  # (N,)
        # The column of each query's own target: those of the processes before come first.
        first = sum(counts[: self.args.process_index])
        positives = first + torch.arange(len(ids), device=ids.device)  # (B,)
        # Hard negatives of all rows are further columns, and negatives of every query they are not correct for.
        if outputs.negative is not None and outputs.negative_ids is not None:
            negative = gather_with_grad(outputs.negative, counts).flatten(0, 1)  # (N * K, D)
            target = torch.cat([target, negative])  # (N * (1 + K), D)
            all_ids = torch.cat([all_ids, gather_with_grad(outputs.negative_ids, counts).flatten()])
        statistics = batch_statistics(outputs.query, target, positives, ids, all_ids)
        for name, value in statistics.items():
            self.metrics.add(name, value, len(ids))
        return info_nce(outputs.query, target, positives, outputs.temperature, ids, all_ids)

    def _loss_weight(self, name: str) -> float:
        weights = self.args.aux_weights()
        if name not in weights:
            arguments = type(self.args).__name__
            raise ValueError(
                f"the head returns a loss {name!r}, which {arguments}.aux_weights lacks"
            )
        return weights[name]
