"""Formulas of rank-rewarded refinement (GRPO, arXiv 2402.03300): rewards, advantages, loss.

Letters: Q queries, K chains a query, R = Q * K rows, S chosen tokens of all rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SPREAD = 1e-4  # added to the standard deviation, as trl does: equal rewards have no advantage


@dataclass(frozen=True)
class Policy:
    """Weights of the loss.

    Attributes:
        kl: of the divergence from the start; 0.04 as UME-R1 (arXiv 2511.00405) has it.
        clip: how far a token's ratio may fall below 1 before its gradient ends.
        clip_high: how far it may rise above 1; 0.28 as UME-R1 has it.
        anchor: of the distance between embeddings and those of the start; ours.
    """

    kl: float = 0.04
    clip: float = 0.2
    clip_high: float = 0.28
    anchor: float = 1.0


def reciprocal_ranks(vectors: Tensor, gallery: Tensor, targets: list[list[int]]) -> Tensor:
    """Return 1 / rank of each row's best target in a fixed gallery; ties count against it.

    Args:
        vectors: query embeddings (R, D).
        gallery: embeddings (N, D), the targets among them.
        targets: columns of each row's targets, at least one.

    Returns:
        (R,), in 0 .. 1.
    """
    scores = vectors @ gallery.T  # (R, N)
    found = torch.zeros(len(scores))
    for row, columns in enumerate(targets):
        best = scores[row, columns].max()
        others = scores[row].clone()
        others[columns] = -torch.inf
        found[row] = 1 / (1 + (others >= best).sum())
    return found


def similarities(vectors: Tensor, gallery: Tensor, targets: list[list[int]]) -> Tensor:
    """Return the cosine to each row's best target (R,): the control, which no rank corrects."""
    scores = vectors @ gallery.T  # (R, N)
    return torch.stack([scores[row, columns].max() for row, columns in enumerate(targets)])


def advantages(rewards: Tensor, samples: int) -> Tensor:
    """Normalise rewards (R,) within the K chains of each query -> (R,)."""
    groups = rewards.view(-1, samples)  # (Q, K)
    centred = groups - groups.mean(dim=1, keepdim=True)
    return (centred / (groups.std(dim=1, keepdim=True) + SPREAD)).flatten()


def policy_losses(
    new: Tensor, old: Tensor, start: Tensor, advantage: Tensor, policy: Policy
) -> tuple[Tensor, Tensor]:
    """Return the clipped policy loss and the divergence from the start of each token, both (S,).

    Args:
        new: log-probabilities (S,) by the weights that are trained.
        old: those by the weights that drew the tokens.
        start: those by the start.
        advantage: of each token's row (S,).
        policy: the bounds of the ratio.
    """
    ratio = (new - old).exp()
    bounded = ratio.clamp(1 - policy.clip, 1 + policy.clip_high)
    gain = torch.minimum(ratio * advantage, bounded * advantage)
    # Schulman's estimator k3: never negative, without bias.
    gap = start - new
    return -gain, gap.exp() - gap - 1
