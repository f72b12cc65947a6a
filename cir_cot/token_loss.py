"""Cross-entropy over a vocabulary so large that its logits are the largest tensors of a training step."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

TILE = 2**24  # logits at a time: 64 MiB in float32, 110 rows at Qwen's 151,936 words


def token_loss(logits: Callable[[Tensor], Tensor], hidden: Tensor, wanted: Tensor, tile: int = TILE) -> Tensor:
    """Mean cross-entropy of hidden states (S, H) against words (S,), at least one -> scalar.

    `logits` maps (S, H) to (S, V). Beyond `tile` numbers they are computed a tile of rows at a time, and once more in
    the backward pass, so that never more than one tile is in memory.
    """

    def part(states: Tensor, words: Tensor) -> Tensor:
        return functional.cross_entropy(logits(states).float(), words, reduction="sum")

    with torch.no_grad():
        words = logits(hidden[:1]).shape[-1]
    rows = max(1, tile // words)
    if len(wanted) <= rows:
        return part(hidden, wanted) / len(wanted)
    tiles = zip(hidden.split(rows), wanted.split(rows), strict=True)
    return sum(checkpoint(part, *one, use_reentrant=False) for one in tiles) / len(wanted)
