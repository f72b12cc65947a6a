"""Train the prompt-pool encoder: one forward pass, soft prompts chosen per query from a learned pool.

    accelerate launch train/prompt_pool.py \
        --config train/configs/prompt_pool_fashioniq_7b.yaml --root DIR

Also: python train/prompt_pool.py, cir-cot prompt-pool. The run folder is like that of train/sft.py;
no chains are needed. The share of training queries that chose each prompt is logged as `prompt_0`
and so on, and kept in metrics.json.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cir_cot.cli import run
from cir_cot.errors import InputError
from cir_cot.heads.prompt_pool import PromptPoolRetriever
from cir_cot.training.arguments import HELP, QwenArguments, option
from cir_cot.training.dataset import load_rows
from cir_cot.training.parsing import parse_arguments
from cir_cot.training.run import load_head, train_and_save
from cir_cot.training.run_folder import check_run_folder, run_folder
from cir_cot.training.trainer import CirTrainer
from cir_cot.training.validation import load_validation

SETTINGS = ("pool", "length", "top", "connector")  # arguments that are the head's own settings


@dataclass
class PromptPoolArguments(QwenArguments):
    """Train the prompt-pool encoder: InfoNCE with soft prompts from a learned pool."""

    lm_weight: float = option(0.0, "Must stay 0: this head writes no chain.")
    pool: int | None = option(None, "Number of prompts in the pool, 0 for none" + HELP)
    length: int | None = option(None, "Soft tokens of a prompt" + HELP)
    top: int | None = option(None, "Prompts chosen for each query" + HELP)
    connector: int | None = option(None, "Learned queries of the Connector, 0 for none" + HELP)
    pull_weight: float = option(1.0, "Weight of the key loss.")  # ours
    # ours: see docs/prompt_pool.md
    balance_weight: float = option(0.1, "Weight of the loss that balances the use of prompts.")
    frozen: bool = option(
        False, "Train only the pool, the Connector and the projection, no weight of the base."
    )

    def __post_init__(self):
        super().__post_init__()
        if self.lm_weight:
            raise InputError(
                f"lm_weight {self.lm_weight}: this head writes no chain; leave lm_weight out"
            )
        if self.pull_weight < 0 or self.balance_weight < 0:
            raise InputError(
                f"pull_weight {self.pull_weight}, balance_weight {self.balance_weight}: "
                "neither may be negative"
            )

    def aux_weights(self) -> dict[str, float]:
        """Return the weights of the head's own losses."""
        return {"pull": self.pull_weight, "balance": self.balance_weight}


def main(argv: Sequence[str]) -> int:
    """Train as the arguments say; the run folder is complete when it returns 0."""
    # 1. Parse the arguments, and refuse a folder that holds another run.
    args = parse_arguments(PromptPoolArguments, argv, "prompt-pool")
    check_run_folder(args)
    # 2. Load the data.
    rows, left_out = load_rows(args, vary_captions=True)
    validation = load_validation(args)
    if left_out and args.should_save:
        print(left_out)
    # 3. Build the head.
    head = load_head(PromptPoolRetriever, args, SETTINGS, args.frozen)
    with run_folder(args):
        # 4. Create the trainer.
        trainer = CirTrainer(head, args, rows, validation)
        # 5. Train, and save the run folder.
        done = train_and_save(trainer, argv, announce=print)
    if args.should_save:
        print(done)
    return 0


if __name__ == "__main__":
    run(main)
