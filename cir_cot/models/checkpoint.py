"""Read checkpoints safely: safetensors only, no code from the checkpoint, one clear error when a file is damaged.

A checkpoint is a folder, a name on the hub with or without `@revision`, or TINY_BASE, which the package ships.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cir_cot import compat  # noqa: F401  # isort: skip
import transformers

from cir_cot.errors import InputError
from cir_cot.hub import SHIPPED, TINY_BASE, asking, hub_address

from .loading import loading, without_bars
from .resizing import token_side

if TYPE_CHECKING:
    from .resizing import ImageProcessor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ATTENTION = ("sdpa", "eager", "flash_attention_2")


def read_model_type(path: str) -> str:
    """Return `model_type` of a checkpoint's config.json, "" where it has none.

    InputError where there is no checkpoint, or where its config.json is incomplete.
    """
    where, version = _located(path)
    with loading(f"{path}: no checkpoint could be read here"), asking(path):
        config, _ = transformers.PretrainedConfig.get_config_dict(where, **version)
        model_type = str(config.get("model_type", ""))
    # Of an empty part transformers would build a model of its default sizes, 7B and more, before it failed.
    for part in ("text_config", "vision_config"):
        if part in config and not (isinstance(config[part], dict) and config[part]):
            raise InputError(
                f"{path}: {part} of config.json is {config[part]!r:.100}; restore the file"
            )
    return model_type


def load_model(
    path: str, kind: type[Any] = transformers.AutoModelForImageTextToText, **options: Any
) -> transformers.PreTrainedModel:
    """Load the model of a checkpoint.

    Args:
        path: A folder, a hub name, or TINY_BASE.
        kind: An Auto class of transformers, or a model class; these have no common base with `from_pretrained`.
        options: Further arguments of `from_pretrained`.

    InputError where a weight is missing or cannot be read.
    """
    where, version = _located(path)
    quiet = without_bars() if Path(where).is_dir() else nullcontext()
    # safetensors alone: other formats can run code.
    with loading(f"{path}: the checkpoint cannot be loaded"), asking(path), quiet:
        model, info = kind.from_pretrained(
            where, use_safetensors=True, output_loading_info=True, **version, **options
        )
    # transformers would go on with random weights.
    if missing := sorted(info["missing_keys"]):
        raise InputError(
            f"{path}: the checkpoint lacks {len(missing)} weights, {missing[0]} among them; "
            "restore its safetensors files"
        )
    return model


def load_processor(path: str) -> transformers.ProcessorMixin:
    """Load the processor of a checkpoint, with its tokenizer and chat template."""
    where, version = _located(path)
    with loading(f"{path}: the processor cannot be loaded"), asking(path):
        processor = transformers.AutoProcessor.from_pretrained(where, **version)
    # transformers falls back to a bare tokenizer where a file is missing.
    for part in ("image_processor", "tokenizer"):
        if not hasattr(processor, part):
            raise InputError(f"{path}: the processor has no {part}; restore processor_config.json")
    return processor


def check_training_options(
    lora: Mapping[str, object] | None, freeze_vision: bool, dtype: str, frozen: bool
) -> None:
    """Raise InputError for options of `load_backbone` that are unknown or exclude each other."""
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if frozen and (lora is not None or not freeze_vision):
        raise InputError(
            "a frozen base has neither an adapter nor a vision tower to train: leave one of them out"
        )
    if lora is not None and not freeze_vision:
        raise InputError(
            "freeze_vision=False needs full fine-tuning: an adapter does not hold the vision tower"
        )


def model_options(dtype: torch.dtype, attn: str, quantization: str | None) -> dict[str, Any]:
    """Return options for `load_model`; InputError for unknown values, or for a package that is missing."""
    if attn not in ATTENTION:
        raise InputError(f"attn {attn!r} is not one of {', '.join(ATTENTION)}")
    if attn == "flash_attention_2" and not transformers.utils.is_flash_attn_2_available():
        raise InputError("attn flash_attention_2 needs the package flash-attn and a GPU; use sdpa")
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attn}
    if quantization is not None:
        options["quantization_config"] = _quantization(quantization, dtype)
    return options


def bound_pixels(images: ImageProcessor, low: int | None, high: int | None) -> None:
    """Bound the area of a resized picture, in place, in pixels; None leaves a bound as it is.

    InputError where the bounds contradict each other, or where no visual token would remain.
    """
    # Qwen's image processors read both bounds from `size`, under names of edges; they are areas all the same.
    bounds = {"shortest_edge": low, "longest_edge": high}
    size = dict(images.size)
    # Damaged files are refused, also where both bounds are replaced.
    if not all(isinstance(size.get(key), int) for key in bounds):
        raise InputError(
            f"the image processor's size is {size}: no pair of areas; restore the processor's files"
        )
    size |= {key: value for key, value in bounds.items() if value is not None}
    if size["shortest_edge"] > size["longest_edge"]:
        raise InputError(
            f"min_pixels {size['shortest_edge']} exceeds max_pixels {size['longest_edge']}; lower min_pixels"
        )
    # A picture becomes one visual token at least.
    with loading("the image processor's patch_size and merge_size cannot be used"):
        area = token_side(images) ** 2
    if size["longest_edge"] < area:
        raise InputError(
            f"max_pixels {size['longest_edge']} is less than one visual token: give at least {area}"
        )
    images.size = size


def _quantization(kind: str, dtype: torch.dtype) -> transformers.BitsAndBytesConfig:
    """Return QLoRA's settings (arXiv 2305.14314); the vision tower and the output head keep `dtype`."""
    if kind not in ("nf4", "int8"):
        raise InputError(f"quantization {kind!r} is not one of nf4, int8")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            f"quantization={kind!r} needs the package bitsandbytes: pip install 'cir-cot[quant]'"
        )
    # transformers applies this list to 4 bits as well, whatever its name says.
    unquantised = ["model.visual", "lm_head"]
    if kind == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=unquantised)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,  # quantises the scales as well
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=unquantised,
    )


def _located(path: str) -> tuple[str, dict[str, str]]:
    """Return what `from_pretrained` takes for a checkpoint: a folder or repository, and any revision."""
    if path == TINY_BASE:
        return str(SHIPPED), {}
    address = hub_address(path)
    if address is None or address.revision is None:
        return path, {}
    return address.repository, {"revision": address.revision}
