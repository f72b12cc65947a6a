"""Plan a training run at full size: memory, operations and seconds on a card, computed on fake tensors in minutes.

    cir-cot plan --model 7B --config train/configs/cirr_7b.yaml --card h100-80 --gpus 8

Nothing is downloaded and no GPU is needed. The exit code is 1 where the run does not fit.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence

from cir_cot.cli import PROBLEMS, run
from cir_cot.options import add_json, command_parser, positive

CARDS = ("h100-80", "h200-141", "a100-80", "l4-24")
SHARDINGS = ("ddp", "zero2", "zero3", "fsdp2")


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse the arguments of `cir-cot plan`; those of `sft` are returned as they are."""
    parser = command_parser("plan", __doc__)
    add = parser.add_argument
    add(
        "--model",
        required=True,
        metavar="3B|7B|DIR",
        help="published size, or a checkpoint's folder",
    )
    add("--config", required=True, metavar="FILE", help="YAML file of sft's arguments")
    add("--gpus", type=positive, default=1, metavar="N", help="number of processes (default 1)")
    add("--card", choices=CARDS, default="h100-80", help="card of each process (default h100-80)")
    add(
        "--sharding",
        choices=SHARDINGS,
        default="ddp",
        help="how processes share weights, gradients and optimizer (default ddp)",
    )
    add(
        "--training-only",
        action="store_true",
        help="leave out the passes of decoding and encoding",
    )
    add_json(parser, "the plan as one JSON object")
    return parser.parse_known_args(argv)


def main(argv: Sequence[str]) -> int:
    """Compute the plan and print it; 1 where the run does not fit."""
    args, more = parse(argv)
    started = time.process_time()
    # torch and peft take seconds: after the arguments' checks.
    from cir_cot.cards import CARDS as RATES
    from cir_cot.devices import peak_memory_mb, pick_device
    from cir_cot.profiling.plan import PlanArguments, plan
    from cir_cot.training.parsing import parse_arguments

    with tempfile.TemporaryDirectory() as folder:
        given = ["--config", args.config, "--model", args.model, "--root", ".", *more]
        own = ["--output_dir", folder, "--report_to", "none", "--disable_tqdm", "true"]
        settings = parse_arguments(PlanArguments, [*given, *own])
        found = plan(settings, RATES[args.card], args.gpus, args.sharding, not args.training_only)
    found |= {"model": args.model, "config": args.config, "card": args.card, "gpus": args.gpus}
    found |= {"sharding": args.sharding, "processor_seconds": time.process_time() - started}
    found["memory_mb"] = peak_memory_mb(pick_device("cpu"))
    if args.json:
        print(json.dumps(found))
    for line in lines(found):
        print(line, file=sys.stderr if args.json else sys.stdout)
    return 0 if found["fits"] else PROBLEMS


def lines(found: dict) -> list[str]:
    """Return a plan as a few lines of text."""
    parts = ("weights", "gradients", "optimizer", "activations")
    memory = ", ".join(f"{part} {found[f'{part}_gib']:.1f}" for part in parts)
    shown = [
        f"{found['model']} on {found['gpus']} x {found['card']} ({found['sharding']}), {found['rows']} rows a process "
        f"in {found['chunks']} chunks of at most {found['chunk_tokens'] or 'all'} tokens",
        f"memory of a process: {found['peak_gib']:.1f} of {found['usable_gib']:.1f} usable GiB ({memory})",
        f"a step: {found['operations']:.3g} operations, {found['kernels']:,} kernels, "
        f"{found['synchronisations']:,} waits of the host, "
        f"{found['wire_bytes'] / 2**30:.2f} GiB on the wire, at least {found['seconds']:.2f} s",
    ]
    if "decode" in found:
        decode = found["decode"]
        encode = found["encode"]
        shown += [
            f"decoding {decode['rows']} chains: {decode['kernels_per_step']:,} kernels a step, at most "
            f"{decode['tokens_per_second']:,.0f} tokens a second, {decode['peak_gib']:.1f} GiB",
            f"encoding: at most {encode['pictures_per_second']:,.0f} pictures a second, {encode['peak_gib']:.1f} GiB",
        ]
    if found["advice"]:
        shown.append(f"this does not fit: {found['advice']}")
    return shown


if __name__ == "__main__":
    run(main)
