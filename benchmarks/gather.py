"""Measure gathering of embeddings across processes: counts and one padded tensor, beside pickled objects.

Two processes over gloo hold 3 and 5 rows, to check values and gradients, and many rows, to measure time. The peer is
`torch.distributed.all_gather_object`, the usual solution for unequal batches, which carries no gradients.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import multiprocessing

from cir_cot.cli import run
from cir_cot.losses import gather_with_grad
from cir_cot.profiling.counters import seconds, write_ratios

PROCESSES = 2


def everyone_as_objects(rows: torch.Tensor) -> torch.Tensor:
    """Gather the rows (n_r, D) of every process by pickling -> (N, D), without gradients."""
    parts = [None] * dist.get_world_size()
    dist.all_gather_object(parts, rows)
    return torch.cat(parts)


def unequal(rank: int, dim: int) -> bool:
    """Tell whether 3 rows and 5 rows are gathered in order, and get the gradients of all processes' losses."""
    whole = torch.arange(8.0 * dim).view(8, dim)
    mine = whole[:3] if rank == 0 else whole[3:]
    leaf = mine.clone().requires_grad_()
    gathered = gather_with_grad(leaf)
    # The sum of both losses is 3 * sum of squares.
    loss = (rank + 1) * gathered.square().sum()
    loss.backward()
    same = torch.equal(gathered, whole) and torch.equal(everyone_as_objects(mine), whole)
    return same and torch.allclose(leaf.grad, 6 * mine)


def worker(rank: int, store: str, rows: int, dim: int, pairs: int, answers) -> None:
    """Check and measure in one process; the first one reports."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=PROCESSES)
    right = unequal(rank, dim)
    mine = torch.randn(rows + rank, dim)
    sides = {"ours": lambda: gather_with_grad(mine), "peer": lambda: everyone_as_objects(mine)}
    times = seconds(sides, pairs, before=dist.barrier)
    if rank == 0:
        answers.put((right, times))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # taking gloo's group apart at the interpreter's end can deadlock (torch 2.13)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the script's arguments."""
    parser = argparse.ArgumentParser(
        prog="gather.py",
        description="Gathering across processes against pickled objects",
        allow_abbrev=False,
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here")
    parser.add_argument("--rows", type=int, default=1024, help="rows a process")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=20, help="interleaved measurements of both")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Measure, print one table and write it as JSON; 1 when a gathered row is wrong."""
    args = parse(argv)
    # Start the processes, and take the first one's report.
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        given = (str(Path(folder) / "store"), args.rows, args.dim, args.pairs, answers)
        workers = [context.Process(target=worker, args=(rank, *given)) for rank in range(PROCESSES)]
        for process in workers:
            process.start()
        right, times = answers.get()
        for process in workers:
            process.join()
    ours, peer = ({"ms": times[side] * 1e3} for side in ("ours", "peer"))
    settings = {"processes": PROCESSES, "rows": args.rows, "dim": args.dim, "pairs": args.pairs}
    ratio = {"time": times["peer"] / times["ours"]}
    print(
        write_ratios(
            args.json,
            "gather",
            ours,
            peer,
            ratio,
            right_with_3_rows_beside_5=right,
            settings=settings,
        )
    )
    return 0 if right else 1


if __name__ == "__main__":
    run(main)
