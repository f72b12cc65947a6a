"""Fine-tune a Qwen-VL to write a chain of thought and to retrieve with it.

    accelerate launch train/sft.py --config train/configs/joint.yaml \
        --model Qwen/Qwen2.5-VL-7B-Instruct --root DIR

Also: python train/sft.py, torchrun --nproc_per_node 2 train/sft.py, cir-cot sft. The run folder
holds the retriever (adapter or weights, head, processor, card), run.json, metrics.json and
checkpoints. --model takes a base checkpoint or a retriever of an earlier stage.
"""

from collections.abc import Sequence

from cir_cot.cli import run
from cir_cot.errors import InputError
from cir_cot.training.chain_training import require_chains, train_chains
from cir_cot.training.dataset import CirDataset, load_rows
from cir_cot.training.negatives import with_negatives
from cir_cot.training.parsing import parse_arguments
from cir_cot.training.run_folder import check_run_folder
from cir_cot.training.sft_arguments import SftArguments
from cir_cot.training.validation import load_validation


def read_rows(args: SftArguments) -> CirDataset:
    """Load records with their chains and pictures; chains are needed unless their weight is 0."""
    rows, left_out = load_rows(args, args.chains or (), vary_captions=True)
    require_chains(rows, args)
    if left_out and args.should_save:
        print(left_out)
    if args.negatives is None:
        return rows
    if args.target_encoder:
        raise InputError("negatives: targets of a foreign encoder take none; leave one of them out")
    return with_negatives(rows, args.negatives, args.negatives_per_row)


def main(argv: Sequence[str]) -> int:
    """Train as the arguments say; the run folder is complete when it returns 0."""
    # 1. Parse the arguments, and refuse a folder that holds another run.
    args = parse_arguments(SftArguments, argv, "sft")
    check_run_folder(args)
    # 2. Load the data.
    rows = read_rows(args)
    validation = load_validation(args)
    # 3. Train.
    _, done = train_chains(args, rows, validation, argv, announce=print)
    if args.should_save:
        print(done)
    return 0


if __name__ == "__main__":
    run(main)
