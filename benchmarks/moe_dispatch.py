"""Measure a training step of the mixture of experts, rows sorted by expert, beside a loop over single rows.

The peer is the dispatch that CLIP4Cir-MoE publishes, re-created from its description: for each row, one call for each
of its K experts. Both use the same layer and weights, forward and backward, and must give the same results; by default
at d = 640 (P = 2560: rows of 5120, H = 5120, 2 of 4 experts). The loop's time grows with the rows, so that a CPU takes
few.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cir_cot.cli import run
from cir_cot.heads.combiners import SparseMoe
from cir_cot.profiling.counters import seconds, write_ratios


def row_by_row(moe: SparseMoe, z: Tensor) -> Tensor:
    """Pass rows (B, W) through the experts of `moe`, a call for each row and expert -> (B, H)."""
    route = moe.route(z)
    rows = []
    for row in range(len(z)):
        total = 0
        for expert, weight in zip(route.chosen[row].tolist(), route.weights[row], strict=True):
            total = total + weight * moe.experts[expert](z[row : row + 1])
        rows.append(total)
    return torch.cat(rows)


def sorted_by_expert(moe: SparseMoe, z: Tensor) -> Tensor:
    """Pass rows (B, W) through the layer of the library -> (B, H)."""
    return moe(z)[0]


def step(moe: SparseMoe, z: Tensor, way: Callable[[SparseMoe, Tensor], Tensor]) -> list[Tensor]:
    """Run one forward and backward pass -> outputs (B, H), gradients of the rows and of the weights."""
    moe.zero_grad()
    z = z.detach().requires_grad_()
    out = way(moe, z)
    out.square().mean().backward()
    if z.is_cuda:
        torch.cuda.synchronize()
    return [out.detach(), z.grad, *(parameter.grad for parameter in moe.parameters())]


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Return the largest difference, relative to the largest entry of each tensor."""
    pairs = zip(ours, theirs, strict=True)
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).item() for a, b in pairs)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the script's arguments."""
    parser = argparse.ArgumentParser(
        prog="moe_dispatch.py", description="Dispatch of a mixture of experts", allow_abbrev=False
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here")
    parser.add_argument(
        "--batch", type=int, default=64, help="rows; the peer's time grows with them"
    )
    parser.add_argument(
        "--dim",
        type=int,
        default=640,
        help="CLIP's width d; rows are 8d wide, as is the hidden layer",
    )
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--top_k", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3, help="interleaved measurements of both")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Check that both agree, measure, print one table and write it as JSON; 1 when they differ."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    moe = SparseMoe(
        8 * args.dim, 8 * args.dim, args.experts, args.top_k, improved=False, routing="learned"
    )
    moe = moe.to(args.device).eval()  # no dropout: both must give the same numbers
    z = torch.randn(args.batch, 8 * args.dim, device=args.device)
    # Check, then measure in turns.
    ways = {"ours": sorted_by_expert, "peer": row_by_row}
    worst = difference(step(moe, z, ways["ours"]), step(moe, z, ways["peer"]))
    times = seconds(
        {name: lambda way=way: step(moe, z, way) for name, way in ways.items()}, args.pairs
    )
    ours, peer = ({"seconds": times[side]} for side in ("ours", "peer"))
    settings = {name: value for name, value in vars(args).items() if name != "json"}
    ratio = {"time": times["peer"] / times["ours"]}
    print(
        write_ratios(
            args.json,
            "moe_dispatch",
            ours,
            peer,
            ratio,
            largest_difference=worst,
            settings=settings,
        )
    )
    return 0 if worst < 1e-4 else 1


if __name__ == "__main__":
    run(main)
