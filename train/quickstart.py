"""Train and evaluate a retriever from nothing: scenes, tiny base, training, evaluation, report.

It takes the same path as a run on Qwen2.5-VL-7B, small enough for two CPU cores: the same commands,
recipe, head and protocol. With --full the same network is trained without chains, too, for about
the same time, which shows how much the chain adds.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from cir_cot.cli import run
from cir_cot.options import (
    add_out,
    add_overwrite,
    add_seed,
    command_parser,
)
from cir_cot.processes import unwinding
from cir_cot.storage import locked
from cir_cot.training.quickstart import (
    Quickstart,
    StepFailedError,
    prepare_folder,
    run_quickstart,
)

CONFIGS = Path(__file__).parent / "configs"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `cir-cot quickstart`."""
    parser = command_parser("quickstart", __doc__)
    add_out(parser, "folder for the data, the models, the results and the report")
    add_overwrite(parser, "run again in a folder that holds a finished quickstart")
    add_seed(parser, of="the scenes and of the query sample")
    parser.add_argument(
        "--references",
        type=int,
        default=2000,
        metavar="N",
        help="scenes for training, with 8 edits each (default 2000)",
    )
    parser.add_argument(
        "--test-references",
        type=int,
        default=400,
        metavar="N",
        help="scenes in each of the test splits, iid and novel (default 400)",
    )
    parser.add_argument(
        "--queries",
        type=int,
        default=2000,
        metavar="N",
        help="queries evaluated in each split; the gallery stays complete (default 2000)",
    )
    parser.add_argument(
        "--max-steps",
        type=int,
        metavar="N",
        help="stop every training after N steps, to check that everything runs (default: no limit)",
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="also train the same network without chains, for about the same time",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run every step, then write summary.json, report.md and report.html and print the table."""
    # 1. Parse the arguments.
    args = parse(argv)
    settings = Quickstart(
        out=Path(args.out),
        configs=CONFIGS,
        seed=args.seed,
        references=args.references,
        test_references=args.test_references,
        queries=args.queries,
        max_steps=args.max_steps,
        full=args.full,
    )
    # 2. Run in the locked folder; a signal ends the processes that train.
    with unwinding(), locked(settings.out):
        prepare_folder(settings.out, args.overwrite)
        try:
            print(run_quickstart(settings))
        except StepFailedError as error:
            raise SystemExit(str(error)) from error
    return 0


if __name__ == "__main__":
    run(main)
