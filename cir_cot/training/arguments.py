"""What every training recipe shares: its arguments, where they come from, and the run.json that says what was run."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NoReturn, TypeVar

import torch

from cir_cot.data import BENCHMARKS

from cir_cot import compat  # noqa: F401  # isort: skip
from transformers import HfArgumentParser, TrainingArguments

from cir_cot.errors import InputError

from .config import names, nearest, read_config
from .distributed import prepare_deepspeed, refuse_impossible, shards_parameters

READOUT = ("readout", "projection", "temperature", "learn_temperature")
HELP = "; default: that of the checkpoint, or the head's"


LAST = "last"

logger = logging.getLogger(__name__)


@dataclass
class CirArguments(TrainingArguments):
    """Arguments of every recipe: transformers' TrainingArguments, the weights of the loss, the grouping of batches."""

    contrastive_weight: float = field(
        default=1.0,  # TRACE (arXiv 2603.02929) weighs both losses 1:1 and found 0.5 and 2 worse
        metadata={
            "help": "Weight of InfoNCE. 0 trains the chain alone (stage 1): targets are not even encoded."
        },
    )
    lm_weight: float = field(
        default=1.0,  # see above: CIRR R@5 is 53.2 / 55.9 / 57.0 / 55.7 at 0 / 0.5 / 1 / 2
        metadata={"help": "Weight of the cross-entropy of the chain. 0 trains retrieval alone."},
    )
    group_by: Literal["none", "reference", "category"] = field(
        default="none",  # distinct pictures a step decide how fast chains are learned; contrastive stages group
        metadata={"help": "Hard negatives: a batch is made of blocks of rows that share this."},
    )
    group_size: int = field(
        default=4,  # ours: half of the default batch, so that one batch still holds several groups
        metadata={
            "help": "Rows of a block; divides the rows of a micro-batch over all processes. 0: all of them."
        },
    )
    train_sampling_strategy: Literal["random", "group_by_length"] = field(
        default="random",
        metadata={
            "help": "group_by_length: rows of like length share a batch, so that little of it is padding."
        },
    )
    chunk_tokens: int = field(
        default=0,
        metadata={"help": "Gradient caching: tokens, padding included, that go through the model at once; 0: all of a "
                          "batch. Same loss and gradients, memory of one chunk, a third to a half slower."},
    )  # fmt: skip
    vision_cache: str | None = field(
        default=None,
        metadata={
            "help": "Folder that keeps the frozen vision tower's features for later epochs and runs."
        },
    )
    learning_rate: float = field(
        default=2e-4, metadata={"help": "Peak learning rate."}
    )  # TRACE, LoRA
    num_train_epochs: float = field(
        default=1.0, metadata={"help": "Passes over the data."}
    )  # TRACE
    warmup_steps: float = field(
        default=0.1,  # ReCALL (arXiv 2602.01639)
        metadata={"help": "Warm-up: steps, or a share of all steps when below 1."},
    )
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW."})  # ReCALL
    lr_scheduler_type: str = field(
        default="cosine",  # ours; the tiny-model measurements all used it
        metadata={"help": "Learning-rate schedule."},
    )
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps."})
    logging_first_step: bool = field(default=True, metadata={"help": "Log the first step, too."})
    logging_nan_inf_filter: bool = field(
        default=False,  # transformers would replace a NaN by a mean of earlier losses: it must be seen
        metadata={"help": "Hide NaN and infinite losses from the log."},
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay off: batches are nested."}
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "A checkpoint folder, or 'last': the newest complete one of output_dir, if there is any."
        },
    )

    def __post_init__(self):
        """Check what transformers cannot, and choose the device: the CPU without an accelerator, never DataParallel."""
        if self.output_dir is None:
            raise InputError(
                "no output_dir: say where the run goes, for example --output_dir runs/first"
            )
        self._check_numbers()
        if (
            self.contrastive_weight < 0
            or self.lm_weight < 0
            or self.contrastive_weight + self.lm_weight == 0
        ):
            raise InputError(
                f"contrastive_weight {self.contrastive_weight} and lm_weight {self.lm_weight}: neither may be negative "
                "and one must be above 0"
            )
        if self.group_size < 0:
            raise InputError(
                f"group_size must be at least 1, or 0 for a whole micro-batch, got {self.group_size}"
            )
        if self.chunk_tokens < 0:
            raise InputError(
                f"chunk_tokens must be positive, or 0 for no gradient caching, got {self.chunk_tokens}"
            )
        if not torch.accelerator.is_available():
            self.use_cpu = True  # otherwise two CPU processes would be set up for NCCL
        if self.use_cpu:
            self.dataloader_pin_memory = False
        super().__post_init__()
        if self.n_gpu > 1:
            logger.warning(
                "one process uses one of %d GPUs; start with accelerate launch to use all",
                self.n_gpu,
            )
            self._n_gpu = 1
        refuse_impossible(self, vision_cache=self.vision_cache is not None)
        prepare_deepspeed(self)

    def _check_numbers(self) -> None:
        """Refuse numbers that would only surface as a traceback, or as NaN, in the middle of training."""
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

    @property
    def groups_by_length(self) -> bool:
        """Whether rows of like length share a batch."""
        return self.train_sampling_strategy == "group_by_length"

    @property
    def shards_parameters(self) -> bool:
        """Whether a process holds a part of each weight only (ZeRO-3, FSDP)."""
        return shards_parameters(self)

    def aux_weights(self) -> dict[str, float]:
        """Weight of each entry of a head's "aux"; a recipe whose head has others adds them here."""
        return {"lm": self.lm_weight}


Arguments = TypeVar("Arguments", bound=CirArguments)


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def parse_arguments(cls: type[Arguments], argv: Sequence[str]) -> Arguments:
    """Read `--config file.yaml` and `--name value` arguments into a recipe's dataclass.

    The file sets defaults and the command line overrides them. Unknown keys, wrong types and values that the dataclass
    refuses raise InputError, which names the key and, where there is one, the known key it looks like.
    """
    parser = _Parser(cls, allow_abbrev=False, description=cls.__doc__)
    parser.add_argument(
        "--config", metavar="FILE", help="A YAML file of these arguments; others override it."
    )
    config = _Parser(add_help=False, allow_abbrev=False)
    config.add_argument("--config")
    path = config.parse_known_args(list(argv))[0].config
    namespace = parser.parse_args([])
    for key, value in (read_config(cls, path) if path else {}).items():
        setattr(namespace, key, value)
    namespace, unknown = parser.parse_known_args(list(argv), namespace)
    if unknown:
        raise InputError(
            f"unknown argument {unknown[0]!r}{nearest(unknown[0].lstrip('-').partition('=')[0], cls)}"
        )
    try:
        return cls(**{name: getattr(namespace, name) for name in names(cls)})
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error)) from error


def option(default, text: str):
    """A field of the arguments with its help."""
    return field(default=default, metadata={"help": text})


@dataclass
class DataArguments(CirArguments):
    """Arguments of every recipe that starts from a checkpoint and trains on a benchmark's split."""

    model: str | None = option(
        None, "Checkpoint folder or hub name, or the run folder of an earlier stage."
    )
    benchmark: Literal[tuple(BENCHMARKS)] = option("folder", "Kind of dataset.")
    root: str | None = option(None, "Folder of the dataset.")
    split: str = option("train", "Split to train on.")
    category: str | None = option(None, "FashionIQ: one category only.")
    drop_missing: bool = option(
        False, "Leave out rows whose picture is missing (dead links), and say how many."
    )
    overwrite: bool = option(
        False, "Replace the trained retriever and the checkpoints that output_dir holds."
    )

    def __post_init__(self):
        super().__post_init__()
        for name, example in {"model": "checkpoints/base", "root": "data/mine"}.items():
            if getattr(self, name) is None:
                raise InputError(
                    f"no {name}: give it in the config or on the command line, as --{name} {example}"
                )


@dataclass
class ClipArguments(DataArguments):
    """Arguments of both recipes on CLIP, with the defaults that CLIP4Cir's two stages share."""

    pad_ratio: float | None = option(
        None, "Pad longer pictures to this ratio, 0: never; default: of stage 1, or 1.25."
    )
    temperature: float = option(
        0.01, "Temperature of InfoNCE."
    )  # CLIP4Cir: logits are 100 times the cosine
    warmup_steps: float = option(0.0, "Warm-up: steps, or a share of all steps when below 1.")
    lr_scheduler_type: str = option("constant", "Learning-rate schedule.")

    def __post_init__(self):
        super().__post_init__()
        if self.temperature <= 0:
            raise InputError(f"temperature {self.temperature} is not above 0; CLIP4Cir's is 0.01")

    def aux_weights(self) -> dict[str, float]:
        """No loss beside InfoNCE: no words are written."""
        return {}


@dataclass
class QwenArguments(DataArguments):
    """Arguments of every recipe that trains a head on a Qwen-VL."""

    lora_r: int = option(
        16, "LoRA rank; 0 trains all weights."
    )  # ReCALL: 16 beats 32, 64 and full fine-tuning
    lora_alpha: int = option(32, "LoRA alpha.")  # twice the rank, as TRACE has it
    lora_dropout: float = option(0.1, "Dropout of the adapters' inputs.")  # ReCALL
    quantization: Literal["nf4", "int8"] | None = option(
        None, "Load the base in 4 or 8 bits (QLoRA)."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = option(
        "float32", "Type of the base's weights."
    )
    attn: str = option("sdpa", "Attention: sdpa, eager or flash_attention_2.")
    min_pixels: int | None = option(
        None, "Least area of a picture after resizing; default: the checkpoint's."
    )
    max_pixels: int | None = option(
        None, "Largest area of a picture after resizing; default: the checkpoint's."
    )
    train_vision: bool = option(
        False, "Train the vision tower too, with --lora_r 0."
    )  # TRACE: frozen
    chunk_tokens: int = option(
        16384,  # ours: work enough for one GPU, and what a 7B with recompute keeps of it is a few GB
        "Tokens, padding included, that go through the model at once; a larger batch is cached chunk by chunk "
        "(same loss and gradients, a third slower). 0: never.",
    )
    recompute: bool = option(
        False, "Recompute activations in the backward pass: a third slower, far less memory."
    )
    readout: Literal["ret", "before_ret"] | None = option(
        None, "Token whose hidden state is the query vector" + HELP
    )
    projection: int | None = option(None, "Dimension of a linear projection of that state" + HELP)
    temperature: float | None = option(None, "Temperature of InfoNCE, or its start" + HELP)
    learn_temperature: bool | None = option(None, "Train the temperature" + HELP)

    def __post_init__(self):
        super().__post_init__()
        if self.gradient_checkpointing:
            raise InputError("gradient_checkpointing goes by the name --recompute here")
        refuse_impossible(self, self.quantization, self.train_vision, self.vision_cache is not None)
