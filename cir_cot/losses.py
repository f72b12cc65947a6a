"""Losses as functions of embeddings: they know no model, no trainer and no batch format.

B queries, N targets, D dimensions, E experts, M pool size, K chosen ones. Everything is computed in float32.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

TILE = 2**24  # logits at a time: 64 MiB in float32, 110 rows at Qwen's 151,936 words


def info_nce(
    query: Tensor,
    target: Tensor,
    positives: Tensor,
    temperature: Tensor | float,
    ids_query: Tensor | None = None,
    ids_target: Tensor | None = None,
) -> Tensor:
    """Contrastive loss of queries (B, D) against targets (N, D), unit vectors -> scalar, the mean over queries.

    `positives` (B,) is each query's column. With `ids_query` (B,) and `ids_target` (N,), a column that shows the same
    image as a query's own target counts as no negative of it. InfoNCE of van den Oord et al. 2018, queries to targets.
    """
    logits = query.float() @ target.float().T / temperature  # (B, N)
    logits = logits.masked_fill(
        same_image(positives, ids_query, ids_target, target.shape[0]), float("-inf")
    )
    return F.cross_entropy(logits, positives)


def same_image(
    positives: Tensor, ids_query: Tensor | None, ids_target: Tensor | None, count: int
) -> Tensor:
    """Columns (B, N) that hold a query's target image a second time: neither its positive nor negatives -> bool."""
    if (ids_query is None) != (ids_target is None):
        raise ValueError("ids are given for one side only; give both sides' ids, or none")
    mask = torch.zeros(len(positives), count, dtype=torch.bool, device=positives.device)
    if ids_query is not None:
        mask = ids_query[:, None] == ids_target[None, :]  # (B, N)
    return mask.scatter(1, positives[:, None], False)


@torch.no_grad()
def batch_statistics(
    query: Tensor,
    target: Tensor,
    positives: Tensor,
    ids_query: Tensor | None = None,
    ids_target: Tensor | None = None,
) -> dict[str, Tensor]:
    """How well the batch separates: in-batch R@1 (0..1) and mean cosine of positives and of negatives -> scalars.

    A tie with a negative is a miss, so that constant embeddings do not look perfect. Without any negative, R@1 is 1 and
    their similarity 0.
    """
    similarity = query.float() @ target.float().T  # (B, N)
    positive = similarity.gather(1, positives[:, None])  # (B, 1)
    negative = ~same_image(positives, ids_query, ids_target, target.shape[0]).scatter(
        1, positives[:, None], True
    )
    beaten = (positive > similarity) | ~negative
    return {
        "in_batch_r1": beaten.all(dim=1).float().mean(),
        "positive_similarity": positive.mean(),
        "negative_similarity": (similarity * negative).sum() / negative.sum().clamp(min=1),
    }


def load_balance(probabilities: Tensor, chosen: Tensor) -> Tensor:
    """Balance of a router: probabilities (B, E) and experts chosen (B, K) -> E * sum_e f_e * P_e, scalar.

    f_e is the share of the B * K choices that fell on expert e, P_e its mean probability: 1 when both are even, E when
    one expert takes everything (Shazeer et al. 2017, Fedus et al. 2021). Only P_e carries a gradient. For the global
    batch gather both with `gather_with_grad` first: a mean of the ranks' values is another number.
    """
    experts = probabilities.shape[1]
    share = choice_share(chosen, experts)
    return experts * (share * probabilities.float().mean(dim=0)).sum()


def even_use(probabilities: Tensor) -> Tensor:
    """How far the mean use of M parts is from even, probabilities (B, M) -> KL(even, mean use), scalar, 0 when even.

    Its gradient is steep where a part is hardly ever probable: there `load_balance` has none that would revive it.
    """
    mean = probabilities.float().mean(dim=0)
    return -(mean * len(mean)).clamp_min(1e-12).log().mean()


def router_z(logits: Tensor) -> Tensor:
    """Keep a router's logits (B, E) small: the mean squared log of their softmax's denominator, scalar (ST-MoE, Zoph
    et al. 2022)."""
    return torch.logsumexp(logits.float(), dim=-1).square().mean()


def choice_share(chosen: Tensor, count: int) -> Tensor:
    """Share of all choices (B, K) that fell on each of `count` experts or prompts -> (E,), summing to 1."""
    return torch.bincount(chosen.flatten(), minlength=count).float() / chosen.numel()


def pool_pull(query: Tensor, keys: Tensor, chosen: Tensor) -> Tensor:
    """Pull queries (B, H) and their chosen keys of a pool (M, H) together: chosen (B, K) -> -mean cosine, scalar.

    The key loss of Learning to Prompt (Wang et al. 2022).
    """
    similarity = F.normalize(query.float(), dim=-1) @ F.normalize(keys.float(), dim=-1).T  # (B, M)
    return -similarity.gather(1, chosen).mean()


def gather_counts(count: int, device: torch.device) -> list[int]:
    """The number of rows each process holds, in rank order; [count] without a process group."""
    if not _several():
        return [count]
    counts = torch.zeros(dist.get_world_size(), dtype=torch.long, device=device)
    counts[dist.get_rank()] = count
    dist.all_reduce(counts)
    return counts.tolist()


def gather_with_grad(rows: Tensor, counts: list[int] | None = None) -> Tensor:
    """Rows (n_r, ...) of every process, concatenated in rank order -> (sum of n_r, ...).

    The processes may hold different numbers of rows; `counts` (see `gather_counts`) spares asking for them again. The
    gradient of a process's rows is the sum over all processes: it is the gradient of the sum of their losses.
    """
    if not _several():
        return rows
    return _Gather.apply(rows, gather_counts(len(rows), rows.device) if counts is None else counts)


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, counts: list[int]) -> Tensor:
        assert len(rows) == counts[dist.get_rank()], "counts do not belong to these rows"
        ctx.counts = counts
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        everyone = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(everyone, padded)
        return torch.cat([part[:count] for part, count in zip(everyone, counts, strict=True)])

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        start = sum(ctx.counts[: dist.get_rank()])
        return gradient[start : start + ctx.counts[dist.get_rank()]], None


def token_loss(
    logits: Callable[[Tensor], Tensor],
    hidden: Tensor,
    wanted: Tensor,
    vocabulary: int,
    tile: int = TILE,
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
