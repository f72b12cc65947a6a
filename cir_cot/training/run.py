"""What recipes share: arguments and loading of a head on a Qwen-VL, and the run from first step to saved folder."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from .backbone import load_backbone
from .budget import describe, estimate
from .gradcache import random_state, set_random_state
from .heads.qwen import QwenHead
from .launch import refuse_impossible
from .recipe import write_json, write_metrics_json, write_run_json
from .records import InputError
from .resizing import token_side
from .retriever import SETTINGS_FILE, read_settings
from .rows import DataArguments, option
from .trainer import CirTrainer

READOUT = ("readout", "projection", "temperature", "learn_temperature")
HELP = "; default: that of the checkpoint, or the head's"


@dataclass
class QwenArguments(DataArguments):
    """Arguments of every recipe that trains a head on a Qwen-VL."""

    lora_r: int = option(16, "LoRA rank; 0 trains all weights.")  # ReCALL: 16 beats 32, 64 and full fine-tuning
    lora_alpha: int = option(32, "LoRA alpha.")  # twice the rank, as TRACE has it
    lora_dropout: float = option(0.1, "Dropout of the adapters' inputs.")  # ReCALL
    quantization: Literal["nf4", "int8"] | None = option(None, "Load the base in 4 or 8 bits (QLoRA).")
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "Type of the base's weights.")
    attn: str = option("sdpa", "Attention: sdpa, eager or flash_attention_2.")
    min_pixels: int | None = option(None, "Least area of a picture after resizing; default: the checkpoint's.")
    max_pixels: int | None = option(None, "Largest area of a picture after resizing; default: the checkpoint's.")
    train_vision: bool = option(False, "Train the vision tower too, with --lora_r 0.")  # TRACE: frozen
    chunk_tokens: int = option(
        16384,  # ours: work enough for one GPU, and what a 7B with recompute keeps of it is a few GB
        "Tokens, padding included, that go through the model at once; a larger batch is cached chunk by chunk "
        "(same loss and gradients, a third slower). 0: never.",
    )
    recompute: bool = option(False, "Recompute activations in the backward pass: a third slower, far less memory.")
    readout: Literal["ret", "before_ret"] | None = option(None, "Token whose hidden state is the query vector" + HELP)
    projection: int | None = option(None, "Dimension of a linear projection of that state" + HELP)
    temperature: float | None = option(None, "Temperature of InfoNCE, or its start" + HELP)
    learn_temperature: bool | None = option(None, "Train the temperature" + HELP)

    def __post_init__(self):
        super().__post_init__()
        if self.gradient_checkpointing:
            raise InputError("gradient_checkpointing goes by the name --recompute here")
        refuse_impossible(self, self.quantization, self.train_vision, self.vision_cache is not None)


def load_head(kind: type[QwenHead], args: QwenArguments, settings: Sequence[str], frozen: bool = False) -> QwenHead:
    """Build a head on a base checkpoint, or go on from a saved one with its settings where none are given.

    `settings` name the arguments that are the head's own, beside those of its readout; `frozen` trains nothing else.
    The random numbers are those of `args.seed`.
    """
    torch.manual_seed(args.seed)  # adapters and heads start at random
    given = {name: value for name in (*READOUT, *settings) if (value := getattr(args, name)) is not None}
    options = {name: getattr(args, name) for name in ("dtype", "attn", "quantization", "min_pixels", "max_pixels")}
    options["freeze_vision"] = not args.train_vision
    if not (Path(args.model) / SETTINGS_FILE).is_file():
        lora = {"r": args.lora_r, "alpha": args.lora_alpha, "dropout": args.lora_dropout}
        adapter = lora if args.lora_r and not frozen else None
        head = kind(load_backbone(args.model, lora=adapter, frozen=frozen, **options), args.model, **given)
    else:
        facts = read_settings(args.model)
        if facts["kind"] != kind.kind:
            raise InputError(f"{args.model}: a {facts['kind']!r} retriever; this recipe trains {kind.kind!r}")
        head = kind.resume(args.model, facts, trainable=True, settings=given, **options)
        if "temperature" in given:
            nn.init.constant_(head.log_temperature, math.log(args.temperature))
    if args.recompute:
        head.backbone.checkpoint_activations()
    return head


def plan(trainer: CirTrainer) -> str:
    """Estimate the run's tokens and memory, keep it as estimate.json -> in words; every process must call it."""
    head, args = trainer.model, trainer.args
    if next(head.parameters()).device.type != args.device.type:
        return "no estimate of memory: DeepSpeed and FSDP move the model to the device when training starts"
    images = head.backbone.processor.image_processor
    side, pixels = token_side(images), images.size["longest_edge"]
    state = random_state(args.device)
    facts = estimate(head, trainer.train_dataset, trainer.data_collator, args, side, pixels)
    set_random_state(state, args.device)
    if args.should_save:
        write_json(Path(args.output_dir) / "estimate.json", facts)
    return describe(facts)


def fit(trainer: CirTrainer, argv: Sequence[str], announce: Callable[[str], object] | None = None) -> str:
    """Train as `trainer.args` say and complete the run folder -> what was done, in a line.

    `announce` is given the estimate of tokens and memory before the first step.
    """
    args = trainer.args
    write_run_json(args.output_dir, argv, args)
    if announce is not None:
        words = plan(trainer)
        if args.should_save:
            announce(words)
    result = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    write_metrics_json(args.output_dir, result.metrics | {"history": trainer.state.log_history}, args)
    trainer.accelerator.end_training()
    rows = len(trainer.train_dataset)
    return f"trained {result.global_step} steps on {rows} rows; the retriever is in {args.output_dir}"
