"""Losses as functions of embeddings, independent of models, trainers and batch formats.

Letters in shapes: B queries, N targets, D embedding dimensions, H hidden dimensions, E experts, M
pool size, K chosen experts or prompts, S tokens, V vocabulary. Everything is computed in float32.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils.checkpoint import checkpoint

TILE = 2**24  # logits at a time: 64 MiB in float32, 110 rows at Qwen's vocabulary of 151,936


# ---- contrastive losses


def info_nce(
    query: Tensor,
    target: Tensor,
    positives: Tensor,
    temperature: Tensor | float,
    ids_query: Tensor | None = None,
    ids_target: Tensor | None = None,
) -> Tensor:
    """Return the InfoNCE loss (van den Oord et al. 2018) of queries against targets, a scalar.

    With s = query @ target.T / temperature and p_b the positive of query b:
    loss = 1 / B * sum_b (log sum_n exp s[b, n] - s[b, p_b]).

    Args:
        query: (B, D) unit vectors.
        target: (N, D) unit vectors.
        positives: (B,) the column of each query's target.
        temperature: divides the similarities.
        ids_query: (B,) or (B, P) identifies the target image of each query, or all P correct ones.
            Another column with one of these images is then left out of the sum, instead of being
            a negative.
        ids_target: (N,) identifies the image of each column.

    Example:
        >>> info_nce(torch.eye(4), torch.eye(4), torch.arange(4), temperature=0.5)
        tensor(0.3407)
    """
    logits = query.float() @ target.float().T / temperature  # (B, N)
    duplicates = same_image(positives, ids_query, ids_target, target.shape[0])
    logits = logits.masked_fill(duplicates, float("-inf"))
    return F.cross_entropy(logits, positives)


def same_image(
    positives: Tensor, ids_query: Tensor | None, ids_target: Tensor | None, count: int
) -> Tensor:
    """Return the columns (B, N), bool, that hold a query's target image a second time, or another correct one.

    They are neither the query's positive nor negatives. `info_nce` explains the arguments; `count`
    is N.
    """
    if (ids_query is None) != (ids_target is None):
        raise ValueError("ids are given for one side only; give both sides' ids, or none")
    mask = torch.zeros(len(positives), count, dtype=torch.bool, device=positives.device)
    if ids_query is not None and ids_target is not None:
        correct = ids_query.reshape(len(ids_query), -1, 1)  # (B, P, 1)
        mask = (correct == ids_target).any(dim=1)  # (B, N)
    return mask.scatter(1, positives[:, None], False)


@torch.no_grad()
def batch_statistics(
    query: Tensor,
    target: Tensor,
    positives: Tensor,
    ids_query: Tensor | None = None,
    ids_target: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return in-batch R@1 (0..1) and the mean cosines of positives and of negatives, as scalars.

    A tie with a negative is a miss, so that constant embeddings do not look perfect. Without any
    negative, R@1 is 1 and the negatives' similarity 0. `info_nce` explains the arguments.
    """
    similarity = query.float() @ target.float().T  # (B, N)
    positive = similarity.gather(1, positives[:, None])  # (B, 1)
    duplicates = same_image(positives, ids_query, ids_target, target.shape[0])  # (B, N)
    negative = ~duplicates.scatter(1, positives[:, None], True)  # (B, N)
    beaten = (positive > similarity) | ~negative
    return {
        "in_batch_r1": beaten.all(dim=1).float().mean(),
        "positive_similarity": positive.mean(),
        "negative_similarity": (similarity * negative).sum() / negative.sum().clamp(min=1),
    }


# ---- losses of routers and prompt pools


def load_balance(probabilities: Tensor, chosen: Tensor) -> Tensor:
    """Return the load-balancing loss of a router, E * sum_e f_e * P_e, a scalar.

    See Shazeer et al. 2017 and Fedus et al. 2021.

    f_e is the share of the B * K choices that fell on expert e, P_e its mean probability. The loss
    is 1 when both are even, E when one expert gets everything. Only P_e has a gradient.

    Args:
        probabilities: (B, E), of the global batch: gather them with `gather_with_grad` first,
            because the mean of the processes' losses is another number.
        chosen: (B, K) indices of experts, of the global batch, too.
    """
    experts = probabilities.shape[1]
    share = choice_share(chosen, experts)  # (E,)
    return experts * (share * probabilities.float().mean(dim=0)).sum()


def even_use(probabilities: Tensor) -> Tensor:
    """Return KL(uniform || mean use) of M experts or prompts, 0 when their use is even.

    Its gradient is steep where one is hardly ever probable; there, `load_balance` has no gradient
    that would revive it.

    Args:
        probabilities: (B, M).
    """
    mean = probabilities.float().mean(dim=0)  # (M,)
    return -(mean * len(mean)).clamp_min(1e-12).log().mean()


def router_z(logits: Tensor) -> Tensor:
    """Return the router z-loss (ST-MoE, Zoph et al. 2022), which keeps logits small.

    It is the mean over rows of (log sum_e exp logits[b, e])^2.

    Args:
        logits: (B, E).
    """
    return torch.logsumexp(logits.float(), dim=-1).square().mean()


def choice_share(chosen: Tensor, count: int) -> Tensor:
    """Return the share (E,) of all choices (B, K) that fell on each of `count` experts or prompts."""
    return torch.bincount(chosen.flatten(), minlength=count).float() / chosen.numel()


def pool_pull(query: Tensor, keys: Tensor, chosen: Tensor) -> Tensor:
    """Return minus the mean cosine of queries and their chosen keys, the key loss of L2P.

    L2P is Learning to Prompt (Wang et al. 2022).

    Args:
        query: (B, H).
        keys: (M, H), of the pool.
        chosen: (B, K) indices of keys.
    """
    # cosines
    similarity = F.normalize(query.float(), dim=-1) @ F.normalize(keys.float(), dim=-1).T  # (B, M)
    return -similarity.gather(1, chosen).mean()


# ---- all processes


def gather_counts(count: int, device: torch.device) -> list[int]:
    """Return how many rows each process holds, in rank order; [count] without a process group."""
    if not _several():
        return [count]
    own = torch.tensor([count], device=device)
    counts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, own)
    return torch.cat(counts).tolist()


def gather_with_grad(rows: Tensor, counts: list[int] | None = None) -> Tensor:
    """Concatenate the rows of every process in rank order: (n_r, ...) -> (sum of n_r, ...).

    The gradient of a process's rows is summed over all processes: it is the gradient of the sum of
    their losses.

    Args:
        rows: of this process; the processes may hold different numbers of rows.
        counts: what `gather_counts` returned for them, if it was called before.
    """
    if not _several():
        return rows
    if counts is None:
        counts = gather_counts(len(rows), rows.device)
    return _Gather.apply(rows, counts)


def _several() -> bool:
    """Return whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _Gather(torch.autograd.Function):
    """Gather rows of different numbers, with a gradient."""

    @staticmethod
    def forward(ctx, rows: Tensor, counts: list[int]) -> Tensor:
        assert len(rows) == counts[dist.get_rank()], "counts do not belong to these rows"
        ctx.counts = counts
        # all_gather takes tensors of one shape: pad to the longest
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        # drop the padding after gathering
        everyone = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(everyone, padded)
        return torch.cat([part[:count] for part, count in zip(everyone, counts, strict=True)])

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        # each process's loss depends on all rows: sum the gradients, then keep the own rows
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        start = sum(ctx.counts[: dist.get_rank()])
        return gradient[start : start + ctx.counts[dist.get_rank()]], None


# ---- the chain's loss


def token_loss(
    logits: Callable[[Tensor], Tensor],
    hidden: Tensor,
    wanted: Tensor,
    vocabulary: int,
    tile: int = TILE,
) -> Tensor:
    """Return the mean cross-entropy of hidden states against tokens, 0 for none.

    More than `tile` logits are computed a tile of rows at a time, and once more in the backward
    pass, so that never more than one tile is in memory. All processes compute the same number of
    tiles, empty ones if need be: where weights are sharded (ZeRO-3), all must read the output
    matrix at the same moments.

    Args:
        logits: maps hidden states (S, H) to logits (S, V).
        hidden: (S, H).
        wanted: (S,) token ids.
        vocabulary: V.
        tile: logits at a time.
    """

    def summed(states: Tensor, tokens: Tensor) -> Tensor:
        return F.cross_entropy(logits(states).float(), tokens, reduction="sum")

    # the number of tiles, the largest of all processes
    rows = max(1, tile // vocabulary)  # of a tile: at least one, however small the tile
    count = max(gather_counts(max(1, -(-len(wanted) // rows)), hidden.device))
    if count == 1:
        return summed(hidden, wanted) / max(len(wanted), 1)

    # checkpointing keeps a tile's logits until its loss is known, no longer
    tiles = zip(hidden.tensor_split(count), wanted.tensor_split(count), strict=True)
    losses = [checkpoint(summed, *one, use_reentrant=False) for one in tiles]
    return sum(losses) / max(len(wanted), 1)
