"""Cross-entropy over a vocabulary so large that its logits are the largest tensors of a training step."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from .losses import gather_counts

TILE = 2**24  # logits at a time: 64 MiB in float32, 110 rows at Qwen's 151,936 words


def token_loss(
    logits: Callable[[Tensor], Tensor], hidden: Tensor, wanted: Tensor, vocabulary: int, tile: int = TILE
) -> Tensor:
    """Mean cross-entropy of hidden states (S, H) against words (S,) -> scalar, 0 for none.

    `logits` maps (S, H) to (S, V). Beyond `tile` numbers they are computed a tile of rows at a time, and once more in
    the backward pass, so that never more than one tile is in memory. Every process computes equally many tiles, an
    empty one if need be: where weights are sharded, all must read the output matrix at the same moments (ZeRO-3).
    """

    def part(states: Tensor, words: Tensor) -> Tensor:
        return functional.cross_entropy(logits(states).float(), words, reduction="sum")

    rows = max(1, tile // vocabulary)  # of a tile: at least one, however small the tile
    count = max(gather_counts(max(1, -(-len(wanted) // rows)), hidden.device))
    if count == 1:
        return part(hidden, wanted) / max(len(wanted), 1)
    tiles = zip(hidden.tensor_split(count), wanted.tensor_split(count), strict=True)
    return sum(checkpoint(part, *one, use_reentrant=False) for one in tiles) / max(len(wanted), 1)
