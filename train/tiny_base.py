"""Pretrain a tiny Qwen2.5-VL on scenes and save it as a checkpoint.

It gets the abilities that training a retriever relies on: it learns to describe scenes, to say
which objects a selector means, to describe a picture after an edit, and to align a picture with its
description. It sees no chain and no composed query. Scenes come from the training side of the
benchmark's train/test hash, so no test scene is among them. The result ships as
`cir-cot/tiny-base`.
"""

import argparse
import math
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from cir_cot.cli import run
from cir_cot.devices import device_name
from cir_cot.files import write_json
from cir_cot.models.backbone import Backbone
from cir_cot.options import (
    add_batch_size,
    add_out,
    add_seed,
    command_parser,
)
from cir_cot.provenance import git_state, package_versions
from cir_cot.training.curriculum import Curriculum, train
from cir_cot.training.lesson_batches import SIZES, new_base
from cir_cot.training.lesson_losses import alignment_recall, exact_alone, exact_answers
from cir_cot.training.lessons import ATTRIBUTES


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `cir-cot tiny-base`."""
    parser = command_parser("tiny-base", __doc__)
    add = parser.add_argument
    add_out(parser, "folder for the checkpoint")
    add("--steps", type=int, default=12000, metavar="N", help="training steps (default 12000)")
    add_batch_size(parser, unit="rows", default=256)
    add(
        "--learning-rate",
        type=float,
        default=1.5e-3,
        metavar="X",
        help="peak learning rate (default 1.5e-3)",
    )
    add_seed(parser, of="the weights and of the scenes", default=1)
    add(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="processes that draw batches, 0 for none (default 0)",
    )
    add(
        "--held-out",
        type=int,
        default=500,
        metavar="N",
        help="scenes for the measurement of each skill (default 500)",
    )
    add(
        "--max-minutes",
        type=float,
        default=math.inf,
        metavar="M",
        help="end training after M minutes; the learning rate then decays to its floor before "
        "(default: no limit)",
    )
    return parser.parse_args(argv)


def measure(base: Backbone, held_out: int) -> dict[str, float]:
    """Return what the base has learned, in percent, on `held_out` scenes for each ability."""
    base.eval()
    measured = exact_answers(base, held_out)
    alone = exact_alone(base, random.Random(0), held_out, test=True)
    for name, rate in zip(ATTRIBUTES, alone, strict=True):
        measured[f"select by {name} alone"] = round(100 * rate, 2)
    recall = alignment_recall(base, held_out)
    measured[f"description to picture, R@1 among {held_out}"] = recall
    return measured


def main(argv: Sequence[str]) -> int:
    """Build, train and save the tiny base with its run.json."""
    args = parse(argv)
    started = time.time()
    # Build the base.
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = new_base(args.seed).to(device)
    base.plain.model.language_model.set_attn_implementation("eager" if device == "cpu" else "sdpa")
    curriculum = Curriculum(args.batch_size, args.seed)
    # Train it, with a progress bar.
    bar = tqdm(total=args.steps, desc="tiny base", unit=" steps", mininterval=5)

    def report(step: int, values: dict[str, str]) -> None:
        bar.update(step - bar.n)
        bar.set_postfix(values)
        if step % 500 == 0:
            print(step, values, f"{time.time() - started:.0f} s", file=sys.stderr, flush=True)

    taken = train(
        base,
        curriculum,
        args.steps,
        args.learning_rate,
        args.workers,
        60 * args.max_minutes,
        report,
    )
    bar.close()
    measured = measure(base, args.held_out)
    # Save it as float16, half the size.
    base.plain.model.visual.config._attn_implementation = "sdpa"
    base.half().save(args.out)
    facts = {
        "argv": list(argv),
        "arguments": vars(args),
        "steps": taken,
        "sizes": SIZES,
        "parameters": sum(parameter.numel() for parameter in base.parameters()),
        "minutes": round((time.time() - started) / 60, 1),
        "device": device_name(torch.device(device)),
        "git": git_state(),
        "versions": package_versions(),
        "held_out_scenes": measured,
    }
    write_json(Path(args.out) / "run.json", facts)
    rates = "; ".join(f"{task} {value:.1f} %" for task, value in measured.items())
    print(rates, f"saved in {args.out}")
    return 0


if __name__ == "__main__":
    run(main)
