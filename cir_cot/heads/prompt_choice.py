"""Prompts that rows choose from a pool: the losses of the choice, and its explanation."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cir_cot.losses import even_use, load_balance, pool_pull

# Ours: cosines become probabilities as softmax(10 cos), so that the best key can stand out.
SHARPNESS = 10.0


class Choice(NamedTuple):
    """Prompts that B rows chose from a pool of M, K each.

    Attributes:
        feature: query features (B, H).
        scores: cosines with the keys (B, M).
        chosen: numbers of the chosen prompts (B, K), ascending.
    """

    feature: Tensor
    scores: Tensor
    chosen: Tensor

    def pull(self, keys: Tensor) -> Tensor:
        """Return Learning to Prompt's key loss plus (ours) a push away from all keys (M, H): a cross-entropy, scalar.

        Alone, the pull is smallest where the features of all rows are equal, and then the choice carries no
        information.
        """
        # The smooth maximum of all cosines.
        push = torch.logsumexp(SHARPNESS * self.scores, dim=1).mean() / SHARPNESS
        return pool_pull(self.feature, keys, self.chosen) + push

    def explain(self, names: Sequence[str]) -> list[str]:
        """Name each row's prompts with their scores, best first."""
        texts = []
        for scores, chosen in zip(self.scores.tolist(), self.chosen.tolist(), strict=True):
            # Among equal scores the sort keeps the order of the numbers.
            best = sorted(chosen, key=scores.__getitem__, reverse=True)
            texts.append(", ".join(f"{names[prompt]} ({scores[prompt]:.2f})" for prompt in best))
        return texts

    def routing(self, names: Sequence[str]) -> list[dict[str, float]]:
        """Return each row's shares of the prompts by name: 1 / K each, 0 for those not chosen."""
        count = self.chosen.shape[1]
        routing = []
        for chosen in self.chosen.tolist():
            shares = dict.fromkeys(names, 0.0)
            for prompt in chosen:
                shares[names[prompt]] = 1 / count
            routing.append(shares)
        return routing


def pool_balance(scores: Tensor, chosen: Tensor) -> Tensor:
    """Return how evenly a pool is used by scores (B, M) and chosen prompts (B, K) -> scalar, 1 when even."""
    probabilities = (SHARPNESS * scores).softmax(dim=1)  # (B, M)
    return load_balance(probabilities, chosen) + even_use(probabilities)


def masked_mean(embedded: Tensor, at: Tensor) -> Tensor:
    """Return the mean of (B, T, H) over the tokens at (B, T) -> (B, H); 0 where there is none."""
    weight = at.to(embedded.dtype)
    count = weight.sum(dim=1, keepdim=True).clamp(min=1)  # (B, 1)
    return torch.einsum("bt,bth->bh", weight, embedded) / count
