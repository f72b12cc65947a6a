"""Decide for each query, from its prompt alone, whether a chain is worth writing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from cir_cot.errors import InputError
from cir_cot.models.backbone import Backbone
from cir_cot.models.chat import ChatEncoder
from cir_cot.prompts import PARTS

from .grammar import Grammar
from .pictures import PictureHead
from .qwen import Readout, chosen

# L2 penalties of the logistic regression, of which cross-validation chooses one; ours.
PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)
FOLDS = 5


class AdaptiveHead(PictureHead):
    """Head whose adaptive reading writes a chain only where the prompt's last hidden state speaks for one.

    Without a gate the model's own preference decides: the probability of the retrieval token against that of a chain's
    first token. A gate is a logistic regression on the same state, fitted to what chains were worth (`fit_gate`);
    `cir-cot calibrate --learn` fits one.

    Args:
        backbone: the Qwen-VL.
        base: the checkpoint that it was loaded from.
        threshold: `stop_confidence` from which no chain is written.
        gate: whether there is a gate; its weights are in head.safetensors.
        readout: further arguments of PictureHead.
    """

    max_new_tokens: int

    def __init__(
        self,
        backbone: Backbone,
        base: str,
        threshold: float = 0.5,
        gate: bool = False,
        **readout: Unpack[Readout],
    ):
        super().__init__(backbone, base, **readout)
        self.threshold = float(threshold)
        self.gate = new_gate(backbone.hidden_size) if gate else None

    def settings(self) -> dict:
        """Return the keyword arguments that build this head again."""
        gate = {} if self.gate is None else {"gate": True}
        return super().settings() | {"threshold": self.threshold} | gate

    def encoder(self, side: str = "right") -> ChatEncoder:
        """Return the encoder of prompts; it pads on the `side` "right" to encode, "left" to generate."""
        return ChatEncoder(self.backbone.processor, self.backbone.ret_id, side)

    def is_sure(self, start: int, hidden: Tensor) -> Tensor:
        """Return bool (B,): whether no chain is written, from hidden states (B, H); `start` begins a chain."""
        return self._confidence(hidden, start) >= self.threshold

    def _confidence(self, hidden: Tensor, start: int) -> Tensor:
        if self.gate is not None:
            return torch.sigmoid(self.gate(hidden.to(self.gate.weight.dtype)))[:, 0]  # (B,)
        logits = self.backbone.logits(hidden).float()  # (B, V)
        return torch.sigmoid(logits[:, self.backbone.ret_id] - logits[:, start])  # (B,)

    def stop_confidence(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """Return how sure the head is that each query needs no chain -> (B,), 0 .. 1; see `threshold`."""
        # The alternative to the retrieval token is the first token of a chain.
        start = Grammar(self.encoder("left"), PARTS, self.max_new_tokens).start[0]
        states = self.prompt_states(images, texts)
        return self._confidence(states.to(self.backbone.device), start).cpu()

    @torch.no_grad()
    def prompt_states(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """Return the hidden state at the end of each query's prompt -> (B, H), on the CPU."""
        encoder = self.encoder("left")
        states = torch.zeros(
            len(images), self.backbone.hidden_size, dtype=self.backbone.plain.dtype
        )
        for rows in self.batches_by_size(images, texts):
            pictures, words = chosen(rows, images, texts)
            inputs, _ = encoder.query(pictures, words, [[]] * len(rows))
            states[rows] = self.backbone(self._to_device(inputs))[:, -1].cpu()  # (b, H)
        return states


def new_gate(width: int) -> nn.Linear:
    """Return an untrained gate on hidden states of this width; training of the head leaves it alone."""
    return nn.Linear(width, 1).requires_grad_(False)


def fit_gate(states: Tensor, needless: Tensor) -> nn.Linear:
    """Fit a gate to what chains were worth: a logistic regression with an L2 penalty.

    The penalty is the one of PENALTIES with the least loss in five-fold cross-validation.

    Args:
        states: `AdaptiveHead.prompt_states` (N, H).
        needless: bool (N,), whether a query's chain brought its target no further forward.

    Returns:
        A gate whose sigmoid is the probability that no chain is needed.

    Raises:
        InputError: fewer than five queries, or the chains were worth something for all or for none.
    """
    wanted = needless.double()  # (N,)
    if len(wanted) < FOLDS or wanted.min() == wanted.max():
        raise InputError(
            f"{len(wanted)} queries, {int(wanted.sum())} of them need no chain: nothing can be "
            "learned from that; give more queries of both kinds"
        )
    # Each feature counts by its own spread.
    values = states.double()  # (N, H)
    mean = values.mean(dim=0)  # (H,)
    spread = values.std(dim=0).clamp(min=1e-6)  # (H,)
    scaled = (values - mean) / spread
    # Choose the penalty on queries that the regression has not seen.
    folds = torch.arange(len(wanted)) % FOLDS  # (N,)
    losses = []
    for penalty in PENALTIES:
        total = 0.0
        for fold in range(FOLDS):
            seen = folds != fold
            weight, bias = _regression(scaled[seen], wanted[seen], penalty)
            logits = scaled[~seen] @ weight + bias
            loss = functional.binary_cross_entropy_with_logits(
                logits, wanted[~seen], reduction="sum"
            )
            total += loss.item()
        losses.append(total)
    best = PENALTIES[losses.index(min(losses))]
    weight, bias = _regression(scaled, wanted, best)
    # On the states as they are.
    gate = new_gate(states.shape[1])
    with torch.no_grad():
        gate.weight.copy_((weight / spread)[None])
        gate.bias.copy_(bias - (weight * mean / spread).sum())
    return gate


def _regression(values: Tensor, wanted: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Minimise sum of log losses + penalty / 2 |w|^2 -> weights (H,), bias; the bias has no penalty."""
    weight = torch.zeros(values.shape[1], dtype=values.dtype, requires_grad=True)
    bias = torch.zeros((), dtype=values.dtype, requires_grad=True)
    search = torch.optim.LBFGS(
        [weight, bias], max_iter=200, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        search.zero_grad()
        logits = values @ weight + bias
        error = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
        total = error + penalty / 2 * weight.square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        search.step(loss)
    return weight.detach(), bias.detach()
