"""Gradient caching: train on contrastive batches that are larger than memory, with any head.

InfoNCE needs the embeddings of all rows of a batch at once, but not all activations (Gao et al.
2021, arXiv 2101.06983). `cached_step` therefore computes a step in three steps:

1. Encode chunk by chunk without gradients; keep the embeddings, and the random state before each
   chunk.
2. Compute InfoNCE on all embeddings, gathered from every process, and its gradient with respect to
   each embedding. Losses of a head that need all rows, such as a router's balance, are computed
   here too, from the per-row tensors that the head returns as `rows`.
3. Encode chunk by chunk once more, from the same random states, now with gradients. The backward
   pass of a chunk starts from the gradients of step 2 and from the losses that need no other row
   (the cross-entropy of the chain, `aux`).

What is guaranteed:

- Loss and gradients are those of the plain step, for any chunks, except for rounding.
- Both passes draw the same dropout. A head that draws other random numbers is reported.
- At most one chunk of pictures is on the device.
- Every process runs the same number of forward and backward passes.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from cir_cot.heads.base import HeadOutput, pad_target_ids

from .chunks import Chunk

# Largest change of an embedding between both passes, as the sum of absolute differences of a unit
# vector. Rounding in bfloat16, in kernels without a fixed order of sums, stays far below.
MAX_CHANGE = 0.5

RandomState = tuple[Tensor, Tensor | None]  # of the CPU, of the device


@dataclass(frozen=True)
class ChunkedLoss:
    """The three functions that define the loss of a step for `cached_step`.

    Attributes:
        forward: `forward(chunk, final)` runs the head on a chunk. In the first pass (`final` False)
            only embeddings and `rows` are needed, so the loss of the chain may be left out.
        row_losses: `row_losses(outputs, chunk)` returns the sum of the losses that need no row of
            another chunk, a scalar.
        batch_losses: `batch_losses(outputs, ids)` returns the sum of the losses that need all rows
            of the batch, a scalar; `outputs` holds the tensors of all counted rows, `ids` (B, P)
            their image hashes. None: there is no such loss, and one pass is enough.
    """

    forward: Callable[[Chunk, bool], HeadOutput]
    row_losses: Callable[[HeadOutput, Chunk], Tensor | float]
    batch_losses: Callable[[HeadOutput, Tensor], Tensor] | None


def cached_step(
    chunks: Sequence[Chunk],
    loss: ChunkedLoss,
    backward: Callable[[Tensor, bool], None],
    no_sync: Callable[[], AbstractContextManager],
    device: torch.device,
) -> Tensor:
    """Compute the loss of all chunks and accumulate its gradients in the parameters.

    Args:
        chunks: all rows of this process; uncounted chunks come last.
        loss: what to compute.
        backward: `backward(chunk_loss, last)` runs the backward pass of one chunk.
        no_sync: a context in which gradients stay in their process. They are exchanged once, with
            the last chunk.
        device: where the head runs.

    Returns:
        The loss, a scalar without a graph.
    """
    total = torch.zeros((), device=device)
    cache: _EmbeddingCache | None = None
    if loss.batch_losses is not None:
        # Step 1: embeddings of all rows, without gradients.
        cache = _EmbeddingCache(chunks, loss.forward, device)
        # Step 2: the losses of all rows, and their gradients with respect to the embeddings.
        total = cache.backward(loss.batch_losses)
    # Step 3: once more with gradients, which continue from those of step 2.
    for number, chunk in enumerate(chunks):
        last = number == len(chunks) - 1
        if cache is not None:
            set_random_state(cache.states[number], device)
        with nullcontext() if last else no_sync():
            outputs = loss.forward(chunk, True)
            chunk_loss = torch.as_tensor(loss.row_losses(outputs, chunk))
            total += chunk_loss.detach()
            if cache is not None:
                chunk_loss = cache.continue_backward(chunk_loss, outputs, chunk, last)
            backward(chunk_loss, last)
    if cache is not None:
        cache.check_repeatable()
    return total


class _EmbeddingCache:
    """Outputs of the first pass over all chunks, and the gradients that InfoNCE gives them."""

    @torch.no_grad()
    def __init__(
        self,
        chunks: Sequence[Chunk],
        forward: Callable[[Chunk, bool], HeadOutput],
        device: torch.device,
    ):
        self.device = device
        self.states: list[RandomState] = []  # before each chunk
        self.start = 0  # rows of the chunks that the second pass has finished
        self.max_embedding_change = torch.zeros((), device=device)
        # Run the head; uncounted chunks take part, so that every process runs equally many passes.
        counted = []
        ids = []
        for chunk in chunks:
            self.states.append(random_state(device))
            outputs = forward(chunk, False)
            if chunk.counted:
                counted.append(outputs)
                ids.append(chunk.ids)
        self.ids = pad_target_ids(ids).to(device)  # (B, P)
        self.outputs = _join(counted, device)

    def backward(self, batch_losses: Callable[[HeadOutput, Tensor], Tensor]) -> Tensor:
        """Compute the losses of all rows and the gradients of the cached tensors; return the sum."""
        total = batch_losses(self.outputs, self.ids)
        total.backward()
        return total.detach().clone()

    def continue_backward(
        self, chunk_loss: Tensor, outputs: HeadOutput, chunk: Chunk, last: bool
    ) -> Tensor:
        """Add to a chunk's loss the terms whose gradients are those of the losses of all rows.

        The gradient of (value * gradient).sum() with respect to `value` is `gradient`: the backward
        pass of the sum continues the one that ended at the cached tensors. Its value means nothing.
        """
        cached = row_tensors(self.outputs)
        # An uncounted chunk takes part with no rows: its zero gradients keep processes in step.
        count = len(chunk) if chunk.counted else 0
        stop = self.start + count
        for name, value in row_tensors(outputs).items():
            mine = cached[name]
            if mine.grad is not None:
                gradient = mine.grad[self.start : stop]
                chunk_loss = chunk_loss + (value[:count] * gradient).sum()
            if name in ("query", "target"):
                self._compare(value.detach()[:count], mine.detach()[self.start : stop])
        # The temperature is one tensor for all rows, so its gradient is added once. The zeros of
        # the other chunks matter: ZeRO-3 would add the gradient of the step before to a weight that
        # has none in the first chunk.
        temperature = outputs.temperature
        if torch.is_tensor(temperature) and temperature.requires_grad:
            mine = torch.as_tensor(self.outputs.temperature)
            chunk_loss = chunk_loss + temperature * (cast(Tensor, mine.grad) if last else 0.0)
        self.start = stop
        return chunk_loss

    def _compare(self, second: Tensor, first: Tensor) -> None:
        """Note how far the embeddings (K, D) of both passes differ in the mean over rows."""
        change = (second - first).abs().sum() / max(len(second), 1)
        self.max_embedding_change = torch.maximum(self.max_embedding_change, change)

    def check_repeatable(self) -> None:
        """Raise RuntimeError when the second pass gave other embeddings than the first."""
        change = self.max_embedding_change.item()
        if change > MAX_CHANGE:
            raise RuntimeError(
                f"the second pass of gradient caching gave other embeddings (by {change:.2f}): the "
                "head draws random numbers outside torch, or changes between its forward passes; "
                "train it with chunk_tokens 0"
            )


def row_tensors(outputs: HeadOutput) -> dict[str, Tensor]:
    """Return what a head computes for each row (B, ...): both embeddings, and its `rows`."""
    assert outputs.target is not None, "a contrastive step encodes both sides"
    tensors = {"query": outputs.query, "target": outputs.target} | outputs.rows
    if outputs.negative is not None and outputs.negative_ids is not None:
        tensors |= {"negative": outputs.negative, "negative_ids": outputs.negative_ids}
    return tensors


def _join(outputs: Sequence[HeadOutput], device: torch.device) -> HeadOutput:
    """Concatenate the row tensors of chunks as leaves whose gradients are kept."""
    # Embeddings and `rows` are per row; the temperature is one for all.
    by_chunk = [row_tensors(out) for out in outputs]
    leaves = {}
    for name in by_chunk[0]:
        leaves[name] = _leaf(torch.cat([tensors[name] for tensors in by_chunk]))
    return HeadOutput(
        query=leaves["query"],
        target=leaves["target"],
        temperature=_leaf(torch.as_tensor(outputs[0].temperature, device=device)),
        aux={},
        rows={name: leaves[name] for name in outputs[0].rows},
        stats={},
        negative=leaves.get("negative"),
        negative_ids=leaves.get("negative_ids"),
    )


def _leaf(value: Tensor) -> Tensor:
    return value.detach().clone().requires_grad_(value.is_floating_point())


def random_state(device: torch.device) -> RandomState:
    """Return the states of the random generators of the CPU and of the device."""
    cpu = torch.get_rng_state()
    if device.type == "cpu":
        return cpu, None
    return cpu, torch.get_device_module(device).get_rng_state(device)


def set_random_state(state: RandomState, device: torch.device) -> None:
    """Restore the states that `random_state` returned, to draw the same numbers again."""
    cpu, accelerator = state
    torch.set_rng_state(cpu)
    if accelerator is not None:
        torch.get_device_module(device).set_rng_state(accelerator, device)
