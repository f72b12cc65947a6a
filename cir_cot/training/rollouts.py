"""Chains that a retriever draws of its queries, and what its weights make of their tokens."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL.Image import Image
from torch import Tensor

from cir_cot.heads.cot import CotRetriever
from cir_cot.heads.decoding import DecodingState
from cir_cot.heads.grammar import ChainRow
from cir_cot.heads.sampling import Sampling
from cir_cot.retriever import inference


@dataclass(frozen=True)
class Rollouts:
    """R drawn chains, as model inputs: prompt, chain and retrieval token.

    Attributes:
        rows: the chains, with the places of the tokens that the model chose.
        inputs: right-padded model inputs (R, T).
        chosen: (R, T) bool: True where the model chose the token itself.
    """

    rows: list[ChainRow]
    inputs: dict[str, Tensor]
    chosen: Tensor


def draw(
    head: CotRetriever,
    images: Sequence[Image],
    texts: Sequence[str],
    seeds: Sequence[int],
    temperature: float,
) -> Rollouts:
    """Draw a chain for each of R queries, and encode what was drawn by its token ids, not its text."""
    last = DecodingState([], torch.zeros(0))
    with inference(head):
        for state in head.decode_chains(images, texts, "full", None, Sampling(temperature, seeds)):
            last = state
    answers = [[*row.ids, head.backbone.ret_id] for row in last.rows]
    inputs, labels = head.encoder().query(images, texts, answers)
    # The answer starts where the labels do.
    chosen = torch.zeros_like(labels, dtype=torch.bool)
    for number, row in enumerate(last.rows):
        start = int((labels[number] >= 0).int().argmax())
        chosen[number, [start + place for place in row.chosen]] = True
    return Rollouts(last.rows, inputs, chosen)


def read_rollouts(head: CotRetriever, drawn: Rollouts) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities (S,) of the chosen tokens, row by row, and the embeddings (R, D)."""
    device = head.backbone.device
    inputs = {name: value.to(device) for name, value in drawn.inputs.items()}
    hidden = head.backbone(inputs)  # (R, T, H)
    at = drawn.chosen[:, 1:].to(device)  # (R, T - 1)
    # The state before a token predicts it.
    logits = head.backbone.logits(hidden[:, :-1][at]).float()  # (S, V)
    tokens = inputs["input_ids"][:, 1:][at]  # (S,)
    found = logits.log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]
    ended = inputs["input_ids"] == head.backbone.ret_id  # (R, T)
    place = ended.int().argmax(dim=1) - int(head.readout == "before_ret")
    states = hidden[torch.arange(len(hidden), device=device), place]
    return found, head.embed_states(states)


def seed_of(*parts: object) -> int:
    """Return a number of 63 bits that depends on all parts, the same in every process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
