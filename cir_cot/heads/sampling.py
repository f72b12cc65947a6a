"""Draw tokens from the model's distribution, the same ones in every batch, order and process.

Noise is a hash of the row, the place in its chain and the token, not the state of a generator, so that a row's chain
does not depend on what is decoded beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cir_cot.errors import InputError

# Most likely tokens that are drawn from, as Qwen's generation settings have it (top_k 20) or wider.
LIKELY = 64
# Constants of splitmix64, as signed 64-bit numbers.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def greedy(logits: Tensor, count: int) -> Tensor:
    """Return the `count` most likely tokens (A, count) of logits (A, V), best first."""
    return logits.topk(count).indices


@dataclass(frozen=True)
class Sampling:
    """Draw from the softmax of logits / temperature over the 64 most likely tokens.

    Attributes:
        temperature: above 0; towards 0 it becomes greedy.
        seeds: a number for each row of the queue: rows with equal seeds and logits get equal tokens.
    """

    temperature: float
    seeds: Sequence[int]

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(
                f"temperature {self.temperature} is not above 0; leave sampling out for the likeliest token"
            )

    def __call__(self, logits: Tensor, count: int, rows: Sequence[tuple[int, int]]) -> Tensor:
        """Return `count` different tokens (A, count) of each row in the order in which they are drawn.

        The grammar takes the first one that fits: a draw among those that fit (Gumbel-top-k, arXiv 1903.06059).

        Args:
            logits: (A, V).
            count: number of tokens.
            rows: for each row its number in the queue and the number of its next token.
        """
        likely = logits.topk(min(LIKELY, logits.shape[1]))  # (A, K)
        keys = [_mixed(self.seeds[number]) ^ place for number, place in rows]
        key = torch.tensor(keys, device=logits.device)[:, None]  # (A, 1)
        noise = gumbel(hash_of(hash_of(key) ^ likely.indices))  # (A, K)
        order = (likely.values / self.temperature + noise).topk(count).indices  # (A, count)
        return likely.indices.gather(1, order)


def _mixed(seed: int) -> int:
    """Return a signed 64-bit number whose bits all depend on the seed."""
    return int(hash_of(torch.tensor(seed)))


def hash_of(values: Tensor) -> Tensor:
    """Return a 64-bit hash of each number (splitmix64's finaliser)."""
    mixed = values * 1 + _GOLDEN
    mixed = (mixed ^ _shifted(mixed, 30)) * _FIRST
    mixed = (mixed ^ _shifted(mixed, 27)) * _SECOND
    return mixed ^ _shifted(mixed, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Shift right without the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def gumbel(hashes: Tensor) -> Tensor:
    """Return Gumbel noise, float32, made of the upper 52 bits of 64-bit hashes."""
    uniform = (_shifted(hashes, 12).double() + 0.5) * 2.0**-52  # 0 .. 1, both excluded
    return -(-uniform.log()).log().float()
