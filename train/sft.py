"""Train the chain retriever: a Qwen-VL model learns to write chains of thought and to retrieve with them.

    accelerate launch train/sft.py --config train/configs/joint.yaml --model Qwen/Qwen2.5-VL-7B-Instruct --root DIR

Also: python train/sft.py, torchrun --nproc_per_node 2 train/sft.py, cir-cot sft. The run folder holds the retriever
(adapter or weights, head, processor, card), run.json, metrics.json and checkpoints. --model takes a base checkpoint or
a retriever of an earlier stage.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from cir_cot.cli import run
from cir_cot.errors import InputError
from cir_cot.heads.cot import CotRetriever
from cir_cot.models.feature_cache import FeatureCache, picture_vectors
from cir_cot.training.arguments import HELP, QwenArguments, option, parse_arguments
from cir_cot.training.dataset import CirDataset, load_rows
from cir_cot.training.run import load_head, train_and_save
from cir_cot.training.run_folder import check_run_folder, run_folder
from cir_cot.training.trainer import CirTrainer


@dataclass
class SftArguments(QwenArguments):
    """Train the chain retriever (see the module's docstring)."""

    chains: list[str] | None = option(
        None, "JSONL files of chains, if the records do not hold them."
    )
    chain_dropout: float | None = option(None, "Share of rows trained without their chain" + HELP)
    train_only: Literal["all", "readout"] = option(
        "all",
        "readout: freeze the reasoner, so that no chain changes, and train what reads the vector.",
    )
    target_encoder: str | None = option(
        None, "CLIP or SigLIP checkpoint in whose space targets are, frozen."
    )
    features: str | None = option(
        None, "Folder that keeps those vectors; default: OUTPUT_DIR/features."
    )


def read_rows(args: SftArguments) -> CirDataset:
    """Read records with their chains, and pictures; chains are needed unless they weigh nothing."""
    rows, left_out = load_rows(args, args.chains or ())
    if args.lm_weight and all(record.cot is None for record in rows.records):
        raise InputError(
            f"{args.root}: no record has a chain; give --chains FILE, or --lm_weight 0 to train without"
        )
    if left_out and args.should_save:
        print(left_out)
    return rows


def encode_targets(head: CotRetriever, rows: CirDataset, args: SftArguments) -> CirDataset:
    """Encode every target picture once -> the rows with the frozen vectors in their place; training sees no other."""
    encoder = head.foreign.to(args.device)
    names = [record.targets[0] for record in rows.records]
    with args.main_process_first(
        local=False, desc="target vectors"
    ):  # the others find them on the disk
        cache = FeatureCache(
            args.features or Path(args.output_dir) / "features", encoder.identity()
        )
        targets = picture_vectors(cache, encoder.encode_images, rows.images, names)
    return CirDataset(rows.records, rows.images, rows.captions, targets)


def freeze(head: CotRetriever, args: SftArguments) -> None:
    """Leave trainable what this stage trains: without a contrastive loss no readout, in the decoupled stage only it."""
    readout = [*head.project.parameters(), head.log_temperature]
    if args.contrastive_weight == 0:
        for parameter in readout:
            parameter.requires_grad_(False)
    if args.train_only == "readout":
        # The retrieval token's row only where it is not the output row too: that one decides when a chain ends.
        if head.backbone.adapted and not head.backbone.config.tie_word_embeddings:
            readout += head.backbone.plain.get_input_embeddings().parameters()
        kept = [parameter for parameter in readout if parameter.requires_grad]
        if not kept:
            raise InputError(
                "train_only readout has nothing to train here; give --projection D from the first stage on"
            )
        head.requires_grad_(False)
        for parameter in kept:
            parameter.requires_grad_(True)
        for module in head.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # a frozen reasoner reads as it will at evaluation


def main(argv: Sequence[str]) -> int:
    """Train as the arguments say; the run folder is complete when it returns 0."""
    args = parse_arguments(SftArguments, argv)
    check_run_folder(args)
    rows = read_rows(args)
    head = load_head(CotRetriever, args, ("chain_dropout", "target_encoder"))
    freeze(head, args)
    with run_folder(args):
        if head.foreign is not None and args.contrastive_weight:
            rows = encode_targets(head, rows, args)
        done = train_and_save(CirTrainer(head, args, rows), argv, announce=print)
    if args.should_save:
        print(done)
    return 0


if __name__ == "__main__":
    run(main)
