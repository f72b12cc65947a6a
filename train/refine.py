"""Refine a trained chain retriever by the ranks that its own chains reach (GRPO).

Draws several chains of each training query, rewards each by 1 / rank of the target in a fixed
index, and raises the probability of those above their group's mean. The result is a folder like
the start's. A run that was interrupted goes on when the same command is given again.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from cir_cot.cli import run
from cir_cot.data import load_benchmark
from cir_cot.errors import InputError
from cir_cot.evaluation.evaluate import check_pictures
from cir_cot.options import (
    add_category,
    add_dataset,
    add_device,
    add_dtype,
    add_model,
    command_parser,
    loading_options,
    natural,
    positive,
)
from cir_cot.retriever import SETTINGS_FILE
from cir_cot.storage import locked

SHOWN = ("reward", "form", "kl")  # values of a step's log line that the bar shows


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `cir-cot refine`."""
    parser = command_parser("refine", __doc__)
    add_model(parser)
    add_dataset(parser)
    add_category(parser, "the only one of the split")
    parser.add_argument(
        "--reward",
        choices=("rank", "similarity"),
        default="rank",
        help="1 / rank of the target, or the cosine to it as a control (default rank)",
    )
    numbers = (
        ("--steps", 200, "updates of the weights"),
        ("--queries", 8, "queries of a step"),
        ("--samples", 8, "chains of a query, at least 2"),
        ("--passes", 1, "times that a step's chains are learned from"),
        ("--lora-r", 16, "rank of the adapter"),
        ("--save-every", 20, "steps between checkpoints"),
    )
    for name, default, text in numbers:
        parser.add_argument(
            name, type=positive, default=default, metavar="N", help=f"{text} (default {default})"
        )
    weights = (
        ("--learning-rate", 1e-4, "of Adam, constant"),
        ("--temperature", 1.0, "of the draws"),
        ("--kl", 0.04, "weight of the divergence from the start"),
        ("--anchor", 1.0, "weight of the embeddings' distance from the start's"),
        ("--form", 0.1, "reward of a chain whose form had not to be forced"),
        ("--length", 0.1, "what a chain of the head's most tokens costs"),
    )
    for name, value, text in weights:
        parser.add_argument(
            name, type=float, default=value, metavar="X", help=f"{text} (default {value})"
        )
    parser.add_argument("--seed", type=natural, default=0, help="of queries and draws (default 0)")
    add_device(parser)
    add_dtype(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the result")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Refine, and save the retriever."""
    args = parse(argv)
    # Load the data.
    benchmarks = load_benchmark(args.benchmark, args.root, args.split, args.category)
    if len(benchmarks) != 1:
        raise InputError(f"{args.split} has {len(benchmarks)} categories; name one with --category")
    (benchmark,) = benchmarks
    images = benchmark.images()
    check_pictures(benchmark, images)
    records = [record for record in benchmark.records if record.targets]
    if not records:
        raise InputError(f"{args.root}: {args.split} has no query with a target")

    from cir_cot.heads import load_retriever  # peft takes ten seconds: after the arguments' checks
    from cir_cot.heads.base import save_retriever
    from cir_cot.heads.cot import CotRetriever
    from cir_cot.training.group_policy import Policy
    from cir_cot.training.refine import Refinement, Refiner, check_refine_folder, run_facts

    plan = Refinement(
        steps=args.steps,
        queries=args.queries,
        samples=args.samples,
        passes=args.passes,
        temperature=args.temperature,
        learning_rate=args.learning_rate,
        reward=args.reward,
        form=args.form,
        length=args.length,
        rank_lora=args.lora_r,
        seed=args.seed,
        save_every=args.save_every,
        policy=replace(Policy(), kl=args.kl, anchor=args.anchor),
    )
    out = Path(args.out)
    if (out / SETTINGS_FILE).exists():
        raise InputError(f"{out}: holds a finished retriever; give a new folder")
    asked = {name: getattr(args, name) for name in ("model", "benchmark", "root", "split")}
    facts = run_facts(plan, **asked, category=args.category, dtype=args.dtype)
    check_refine_folder(out, facts, argv)
    with locked(out):
        head = load_retriever(args.model, **loading_options(args))
        if not isinstance(head, CotRetriever):
            raise InputError(f"{args.model}: writes no chains; refine a chain retriever")
        refiner = Refiner(head, records, images, benchmark.gallery, plan, out)
        refiner.load_state()
        with tqdm(total=plan.steps, initial=refiner.step, desc="refine", unit=" steps") as bar:

            def show(line: dict) -> None:
                bar.set_postfix({name: f"{line[name]:.3f}" for name in SHOWN})
                bar.update()

            refiner.run(show)
        # The adapter becomes part of the weights: an ordinary retriever.
        head.backbone.merge()
        save_retriever(head, out)
    print(f"refined in {plan.steps} steps: {out}")
    return 0


if __name__ == "__main__":
    run(main)
