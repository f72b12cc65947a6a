"""Fine-tune CLIP or SigLIP so that image plus text embedding is a query (CLIP4Cir, stage 1).

    accelerate launch train/clip.py --config train/configs/clip_fashioniq.yaml \
        --model openai/clip-vit-base-patch32 --root DIR

Also: python train/clip.py, cir-cot clip. The run folder is a complete checkpoint with its
processor, which transformers, `cir-cot moe` and `--target_encoder` of `cir-cot sft` load.
Defaults are those of CLIP4Cir (docs/moe.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cir_cot.cli import run
from cir_cot.heads.clip import ClipRetriever
from cir_cot.models.clip import PAD_RATIO, load_clip
from cir_cot.training.arguments import ClipArguments, option
from cir_cot.training.dataset import load_rows
from cir_cot.training.parsing import parse_arguments
from cir_cot.training.run import train_and_save
from cir_cot.training.run_folder import check_run_folder, run_folder
from cir_cot.training.trainer import CirTrainer
from cir_cot.training.validation import load_validation


@dataclass
class Stage1Arguments(ClipArguments):
    """Fine-tune CLIP or SigLIP for composed retrieval (CLIP4Cir, stage 1)."""

    learning_rate: float = option(2e-6, "Peak learning rate.")
    adam_epsilon: float = option(1e-7, "AdamW's epsilon.")
    per_device_train_batch_size: int = option(128, "Rows of a step and process.")
    num_train_epochs: float = option(100.0, "Passes over the data.")


def main(argv: Sequence[str]) -> int:
    """Train as the arguments say; the run folder is complete when it returns 0."""
    # 1. Parse the arguments, and refuse a folder that holds another run.
    args = parse_arguments(Stage1Arguments, argv, "clip")
    check_run_folder(args)
    # 2. Load the data.
    rows, left_out = load_rows(args, vary_captions=True)
    validation = load_validation(args)
    if left_out and args.should_save:
        print(left_out)
    # 3. Build the head.
    encoder = load_clip(args.model, args.pad_ratio, frozen=False, fallback=PAD_RATIO)
    head = ClipRetriever(encoder, args.model, args.temperature)
    with run_folder(args):
        # 4. Create the trainer.
        trainer = CirTrainer(head, args, rows, validation)
        # 5. Train, and save the run folder.
        done = train_and_save(trainer, argv)
    if args.should_save:
        print(done)
    return 0


if __name__ == "__main__":
    run(main)
