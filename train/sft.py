"""Train the chain retriever: a Qwen-VL model learns to write chains of thought and to retrieve with them.

    accelerate launch train/sft.py --config train/configs/joint.yaml --model Qwen/Qwen2.5-VL-7B-Instruct --root DIR

Also: python train/sft.py, torchrun --nproc_per_node 2 train/sft.py, cir-cot sft. The run folder holds the retriever
(adapter or weights, head, processor, card), run.json, metrics.json and checkpoints. --model takes a base checkpoint or
a retriever of an earlier stage.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from cir_cot.backbone import load_backbone
from cir_cot.cli import run
from cir_cot.collate import CirDataset
from cir_cot.heads.cot import CotRetriever
from cir_cot.recipe import parse_arguments, write_metrics_json, write_run_json
from cir_cot.records import InputError
from cir_cot.retriever import SETTINGS_FILE, load_head_weights, read_settings
from cir_cot.rows import DataArguments, load_rows, option
from cir_cot.trainer import CirTrainer

HEAD = ("readout", "projection", "temperature", "learn_temperature", "chain_dropout")
HELP = "; default: that of the checkpoint, or the head's"


@dataclass
class SftArguments(DataArguments):
    """Train the chain retriever (see the module's docstring)."""

    chains: list[str] | None = option(None, "JSONL files of chains, if the records do not hold them.")
    lora_r: int = option(16, "LoRA rank; 0 trains all weights.")  # ReCALL: 16 beats 32, 64 and full fine-tuning
    lora_alpha: int = option(32, "LoRA alpha.")  # twice the rank, as TRACE has it
    lora_dropout: float = option(0.1, "Dropout of the adapters' inputs.")  # ReCALL
    quantization: Literal["nf4", "int8"] | None = option(None, "Load the base in 4 or 8 bits (QLoRA).")
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "Type of the base's weights.")
    attn: str = option("sdpa", "Attention: sdpa, eager or flash_attention_2.")
    min_pixels: int | None = option(None, "Least area of a picture after resizing; default: the checkpoint's.")
    max_pixels: int | None = option(None, "Largest area of a picture after resizing; default: the checkpoint's.")
    train_vision: bool = option(False, "Train the vision tower too, with --lora_r 0.")  # TRACE: frozen
    recompute: bool = option(False, "Recompute activations in the backward pass: a third slower, far less memory.")
    readout: Literal["ret", "before_ret"] | None = option(None, "Token whose hidden state is the query vector" + HELP)
    projection: int | None = option(None, "Dimension of a linear projection of that state" + HELP)
    temperature: float | None = option(None, "Temperature of InfoNCE, or its start" + HELP)
    learn_temperature: bool | None = option(None, "Train the temperature" + HELP)
    chain_dropout: float | None = option(None, "Share of rows trained without their chain" + HELP)
    train_only: Literal["all", "readout"] = option(
        "all", "readout: freeze the reasoner, so that no chain changes, and train what reads the vector."
    )

    def __post_init__(self):
        super().__post_init__()
        if self.gradient_checkpointing:
            raise InputError("gradient_checkpointing goes by the name --recompute here")


def read_rows(args: SftArguments) -> CirDataset:
    """Read records with their chains, and pictures; chains are needed unless they weigh nothing."""
    rows, left_out = load_rows(args, args.chains or ())
    if args.lm_weight and all(record.cot is None for record in rows.records):
        raise InputError(f"{args.root}: no record has a chain; give --chains FILE, or --lm_weight 0 to train without")
    if left_out and args.should_save:
        print(left_out)
    return rows


def load_head(args: SftArguments) -> CotRetriever:
    """Build the head on a base checkpoint, or go on from a saved one with its settings where none are given."""
    given = {name: getattr(args, name) for name in HEAD if getattr(args, name) is not None}
    options = {name: getattr(args, name) for name in ("dtype", "attn", "quantization", "min_pixels", "max_pixels")}
    options["freeze_vision"] = not args.train_vision
    if not (Path(args.model) / SETTINGS_FILE).is_file():
        lora = {"r": args.lora_r, "alpha": args.lora_alpha, "dropout": args.lora_dropout} if args.lora_r else None
        return CotRetriever(load_backbone(args.model, lora=lora, **options), args.model, **given)
    facts = read_settings(args.model)
    whole = facts["backbone"] == "."  # fully fine-tuned: the folder is the checkpoint
    backbone = load_backbone(args.model if whole else facts["backbone"], **options)
    if not whole:
        backbone.load_adapter(args.model, trainable=True)
    head = CotRetriever(backbone, facts["backbone"], **facts["settings"] | given)
    load_head_weights(head, args.model)
    if "temperature" in given:
        nn.init.constant_(head.log_temperature, math.log(args.temperature))
    return head


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
    rows = read_rows(args)
    torch.manual_seed(args.seed)  # before the head: adapters and projection start at random
    head = load_head(args)
    freeze(head, args)
    if args.recompute:
        head.backbone.checkpoint_activations()
    trainer = CirTrainer(head, args, rows)
    write_run_json(args.output_dir, argv, args)
    result = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    write_metrics_json(args.output_dir, result.metrics | {"history": trainer.state.log_history}, args)
    if args.should_save:
        print(f"trained {result.global_step} steps on {len(rows)} rows; the retriever is in {args.output_dir}")
    trainer.accelerator.end_training()
    return 0


if __name__ == "__main__":
    run(main)
