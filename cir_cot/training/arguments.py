"""Dataclasses of training arguments that every recipe extends, and their parser.

`CirArguments` holds what any head needs, `DataArguments` adds a checkpoint and a dataset, and
`ClipArguments` and `QwenArguments` add the options of their backbones.
"""

import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from cir_cot.data import BENCHMARKS

from cir_cot import compat  # noqa: F401  # isort: skip
from transformers import TrainingArguments

from cir_cot.errors import InputError

from .distributed import prepare_deepspeed, refuse_impossible, shards_parameters
from .refusals import refuse_uninstalled, refuse_unusable

READOUT = ("readout", "projection", "temperature", "learn_temperature")
HELP = "; default: that of the checkpoint, or of the head"
LAST = "last"  # a value of --resume_from_checkpoint

logger = logging.getLogger(__name__)


def option(default: Any, text: str) -> Any:
    """Declare a dataclass field with its help text: `top_k: int = option(2, "Experts of a row.")`."""
    return field(default=default, metadata={"help": text})


@dataclass
class CirArguments(TrainingArguments):
    """Arguments of every recipe: weights of the losses, order of rows, memory, optimizer."""

    # Losses. TRACE (arXiv 2603.02929) weighs both 1:1; CIRR R@5 with lm_weight 0 / 0.5 / 1 / 2 is
    # 53.2 / 55.9 / 57.0 / 55.7.
    contrastive_weight: float = option(
        1.0, "Weight of InfoNCE. 0 trains the chain alone (stage 1); targets are then not encoded."
    )
    lm_weight: float = option(
        1.0, "Weight of the cross-entropy of the chain. 0 trains retrieval alone."
    )
    # Batches. Chains are learned faster from more distinct pictures a step, so grouping is for
    # contrastive stages; a group of 4 is ours: half of the default batch.
    group_by: Literal["none", "reference", "category"] = option(
        "none", "Build batches from groups of rows that share this, as hard negatives."
    )
    group_size: int = option(
        4,
        "Rows of a group; must divide the rows of a micro-batch over all processes. "
        "0: one group fills the micro-batch.",
    )
    train_sampling_strategy: Literal["random", "group_by_length"] = option(
        "random", "group_by_length: put rows of similar length into one batch, to pad less."
    )
    # Memory.
    chunk_tokens: int = option(
        0,
        "Gradient caching: tokens, padding included, in one forward pass; 0: the complete batch. "
        "Same loss and gradients, memory of one chunk, a third to a half slower.",
    )
    vision_cache: str | None = option(
        None, "Folder for the features of the frozen vision tower, reused by later epochs and runs."
    )
    # Optimizer and schedule. TRACE: learning rate (LoRA) and epochs; ReCALL (arXiv 2602.01639):
    # warm-up and weight decay; the cosine is ours, all measurements on tiny models used it.
    learning_rate: float = option(2e-4, "Peak learning rate.")
    num_train_epochs: float = option(1.0, "Passes over the data.")
    warmup_steps: float = option(0.1, "Warm-up: steps, or a share of all steps when below 1.")
    weight_decay: float = option(0.01, "Weight decay of AdamW.")
    lr_scheduler_type: str = option("cosine", "Learning-rate schedule.")
    # Logging and resuming. transformers would replace a NaN by a mean of earlier losses.
    logging_steps: float = option(10, "Log every N steps.")
    logging_first_step: bool = option(True, "Log the first step too.")
    logging_nan_inf_filter: bool = option(False, "Hide NaN and infinite losses from the log.")
    remove_unused_columns: bool = option(False, "Must stay off: batches are nested.")
    # The first step of a rank may wait for hours of another's encoding; half an hour would end the run.
    ddp_timeout: int = option(86_400, "Seconds that a process waits for the others.")
    resume_from_checkpoint: str | None = option(
        None, "A checkpoint folder, or 'last': the newest complete one of output_dir, if any."
    )

    def __post_init__(self) -> None:
        """Check what transformers does not, and choose the device.

        The CPU is used where there is no accelerator; one process never uses several GPUs.
        """
        self._check_values()
        if not torch.accelerator.is_available():
            self.use_cpu = True  # otherwise two CPU processes would be set up for NCCL
        if self.use_cpu:
            self.dataloader_pin_memory = False
        super().__post_init__()
        if self.n_gpu > 1:
            # transformers would wrap the model into DataParallel
            warning = "one process uses one of %d GPUs; start with accelerate launch to use all"
            logger.warning(warning, self.n_gpu)
            self._n_gpu = 1
        refuse_impossible(self, vision_cache=self.vision_cache is not None)
        refuse_uninstalled(self)
        prepare_deepspeed(self)

    def _check_values(self) -> None:
        """Refuse values that would surface as a traceback, or as NaN, in the middle of training."""
        if self.output_dir is None:
            raise InputError(
                "no output_dir: say where the run goes, for example --output_dir runs/first"
            )
        refuse_unusable(self)
        # Numbers: finite, and within what numpy and the loop over batches take.
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{name} is {value}: give a finite number")
        for name in ("seed", "data_seed"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 2**32:
                raise InputError(f"{name} is {value}: numpy takes 0 .. 2^32 - 1")
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: give at least 1")
        # Losses: something must be trained.
        weights = (self.contrastive_weight, self.lm_weight)
        if min(weights) < 0 or sum(weights) == 0:
            raise InputError(
                f"contrastive_weight {self.contrastive_weight} and lm_weight {self.lm_weight}: "
                "neither may be negative and one must be above 0"
            )
        # Sizes that may be 0.
        if self.group_size < 0:
            given = f"got {self.group_size}"
            raise InputError(
                f"group_size must be at least 1, or 0 for a complete micro-batch, {given}"
            )
        if self.chunk_tokens < 0:
            given = f"got {self.chunk_tokens}"
            raise InputError(
                f"chunk_tokens must be positive, or 0 for no gradient caching, {given}"
            )

    @property
    def folder(self) -> Path:
        """The run folder, `output_dir`."""
        assert self.output_dir is not None, "refused by __post_init__"
        return Path(self.output_dir)

    @property
    def groups_by_length(self) -> bool:
        """Whether rows of similar length share a batch."""
        return self.train_sampling_strategy == "group_by_length"

    @property
    def shards_parameters(self) -> bool:
        """Whether each process holds only a part of every weight (ZeRO-3, FSDP)."""
        return shards_parameters(self)

    def aux_weights(self) -> dict[str, float]:
        """Return the weight of each loss in a head's `aux`; a recipe whose head has others extends it."""
        return {"lm": self.lm_weight}


@dataclass
class DataArguments(CirArguments):
    """Arguments of every recipe that trains a checkpoint on a benchmark's split."""

    model: str | None = option(
        None, "Checkpoint folder or hub name, or the run folder of an earlier stage."
    )
    benchmark: Literal[tuple(BENCHMARKS)] = option(  # type: ignore[valid-type]  # names of a table
        "folder", "Kind of dataset."
    )
    root: str | None = option(None, "Folder of the dataset.")
    split: str = option("train", "Split to train on.")
    category: str | None = option(None, "FashionIQ: one category only.")
    mix: list[str] | None = option(
        None,
        "Further datasets of the same run, each as KIND:WEIGHT:DIR, such as cirr:0.5:data/cirr. An epoch has WEIGHT "
        "times its rows: a half of them, a new one each epoch, or with 2 each row twice.",
    )
    # Evaluation during training, with --eval_strategy steps --eval_steps N.
    eval_split: str | None = option(None, "Split to evaluate on during training.")
    eval_benchmark: str | None = option(None, "Kind of that dataset; default: that of training.")
    eval_root: str | None = option(None, "Folder of that dataset; default: that of training.")
    eval_queries: int | None = option(
        500, "Sample of each benchmark's queries, drawn by the seed; the gallery stays complete."
    )
    drop_missing: bool = option(
        False, "Leave out rows whose picture is missing (dead links), and print their number."
    )
    overwrite: bool = option(
        False, "Replace the trained retriever and the checkpoints that output_dir holds."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.load_best_model_at_end and self.shards_parameters:
            raise InputError(
                "load_best_model_at_end with ZeRO-3 or FSDP: sharded weights are not replaced at the "
                "end; leave it out and use the best checkpoint's folder"
            )
        for name, example in {"model": "checkpoints/base", "root": "data/mine"}.items():
            if getattr(self, name) is None:
                flag = f"--{name} {example}"
                raise InputError(
                    f"no {name}: give it in the config or on the command line, as {flag}"
                )


@dataclass
class ClipArguments(DataArguments):
    """Arguments of both recipes on CLIP, with the defaults that CLIP4Cir's two stages share."""

    pad_ratio: float | None = option(
        None, "Pad longer pictures to this ratio, 0: never; default: that of stage 1, or 1.25."
    )
    temperature: float = option(0.01, "Temperature of InfoNCE.")  # CLIP4Cir: 100 times the cosine
    warmup_steps: float = option(0.0, "Warm-up: steps, or a share of all steps when below 1.")
    lr_scheduler_type: str = option("constant", "Learning-rate schedule.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise InputError(f"temperature {self.temperature} is not above 0; CLIP4Cir's is 0.01")

    def aux_weights(self) -> dict[str, float]:
        """Return no weight: these heads have no loss beside InfoNCE, for they write no chain."""
        return {}


@dataclass
class QwenArguments(DataArguments):
    """Arguments of every recipe that trains a head on a Qwen-VL."""

    # Adapter. ReCALL: rank 16 beats 32, 64 and full fine-tuning, dropout 0.1; TRACE: alpha twice
    # the rank, vision tower frozen.
    lora_r: int = option(16, "LoRA rank; 0 trains all weights.")
    lora_alpha: int = option(32, "LoRA alpha.")
    lora_dropout: float = option(0.1, "Dropout of the adapters' inputs.")
    train_vision: bool = option(False, "Train the vision tower too, with --lora_r 0.")
    # Loading of the base.
    quantization: Literal["nf4", "int8"] | None = option(
        None, "Load the base in 4 or 8 bits (QLoRA)."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = option(
        "float32",
        "Data type of the base's frozen weights. What is trained is kept in float32; a bfloat16 base is computed with "
        "in bfloat16 (--bf16).",
    )
    attn: str = option("sdpa", "Attention: sdpa, eager or flash_attention_2.")
    min_pixels: int | None = option(
        None, "Smallest area of a picture after resizing; default: the checkpoint's."
    )
    max_pixels: int | None = option(
        None, "Largest area of a picture after resizing; default: the checkpoint's."
    )
    # Memory. The chunk size is ours: work enough for one GPU, and the activations that a 7B keeps
    # of it with --recompute are a few GB.
    chunk_tokens: int = option(
        16384,
        "Gradient caching: tokens, padding included, in one forward pass; a larger batch is "
        "processed in chunks (same loss and gradients, a third slower). 0: never.",
    )
    recompute: bool = option(
        False, "Recompute activations in the backward pass: a third slower, far less memory."
    )
    # Readout of the embedding.
    readout: Literal["ret", "before_ret"] | None = option(
        None, "Token whose hidden state is the query embedding" + HELP
    )
    projection: int | None = option(None, "Dimension of a linear projection of that state" + HELP)
    temperature: float | None = option(None, "Temperature of InfoNCE, or its initial value" + HELP)
    learn_temperature: bool | None = option(None, "Train the temperature" + HELP)

    def __post_init__(self) -> None:
        # Trained weights are float32: only autocast gives the precision that was asked for.
        if self.dtype == "bfloat16" and not self.fp16:
            self.bf16 = True
        if self.dtype == "float16" and self.lora_r == 0:
            raise InputError(
                "dtype float16 trains no complete model; give --dtype bfloat16, or --dtype float32 --fp16 true"
            )
        super().__post_init__()
        if self.gradient_checkpointing:
            raise InputError("gradient_checkpointing goes by the name --recompute here")
        refuse_impossible(self, self.quantization, self.train_vision, self.vision_cache is not None)
