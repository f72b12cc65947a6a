"""Train a reranker: a Qwen-VL that looks at a query and a candidate picture and says yes or no.

    accelerate launch train/rerank.py --model Qwen/Qwen2.5-VL-3B-Instruct --benchmark cirr \
        --root DIR --negatives negatives.jsonl --output_dir runs/rerank

Also: python train/rerank.py, cir-cot rerank. --model takes a base checkpoint (that of `cir-cot
export` included) or an earlier reranker. `cir-cot retrieval --rerank K` uses the run folder.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cir_cot.cli import run
from cir_cot.errors import InputError
from cir_cot.heads.rerank import Reranker
from cir_cot.training.arguments import QwenArguments, option
from cir_cot.training.dataset import CirDataset, load_rows
from cir_cot.training.negatives import with_negatives, with_own_negatives
from cir_cot.training.parsing import parse_arguments
from cir_cot.training.progress import show_in_one_line
from cir_cot.training.run import load_head, train_and_save
from cir_cot.training.run_folder import check_run_folder, run_folder
from cir_cot.training.trainer import CirTrainer


@dataclass
class RerankArguments(QwenArguments):
    """Train a reranker: cross-entropy of yes and no, on targets and negatives."""

    chains: list[str] | None = option(
        None, "JSONL files of chains, if the records do not hold them; none are needed."
    )
    negatives: str | None = option(
        None,
        "JSONL file of hard negatives, from cir-cot mine; default: the dataset's own: image sets, the reference, "
        "targets of the same reference, and others.",
    )
    contrastive_weight: float = option(0.0, "Must stay 0: nothing is embedded.")
    chunk_tokens: int = option(0, "Must stay 0: the loss is a sum over rows; use smaller batches.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.contrastive_weight or self.chunk_tokens or self.vision_cache:
            raise InputError(
                "a reranker embeds nothing: leave contrastive_weight, chunk_tokens and vision_cache out"
            )
        if self.eval_strategy != "no":
            raise InputError(
                "eval_strategy: a reranker is measured with cir-cot retrieval --rerank; leave it out"
            )


def read_rows(args: RerankArguments) -> CirDataset:
    """Load records, pictures and negatives."""
    rows, left_out = load_rows(args, args.chains or (), vary_captions=True)
    if left_out and args.should_save:
        print(left_out)
    if args.negatives is None:
        return with_own_negatives(rows, args.seed)
    return with_negatives(rows, args.negatives, 1)


def main(argv: Sequence[str]) -> int:
    """Train as the arguments say; the run folder is complete when it returns 0."""
    # 1. Parse the arguments, and refuse a folder that holds another run.
    args = parse_arguments(RerankArguments, argv, "rerank")
    check_run_folder(args)
    # 2. Load the data.
    rows = read_rows(args)
    # 3. Build the head.
    head = load_head(Reranker, args, ())
    with run_folder(args):
        # 4. Create the trainer.
        trainer = CirTrainer(head, args, rows)
        show_in_one_line(trainer, args.folder.name)
        # 5. Train, and save the run folder.
        done = train_and_save(trainer, argv)
    if args.should_save:
        print(done)
    return 0


if __name__ == "__main__":
    run(main)
