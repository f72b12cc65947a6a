"""Reading a checkpoint: safetensors only, no code from the checkpoint, every weight there, one clear line when not.

A checkpoint is a folder, a name on the hub, or TINY_BASE, which the package ships.
"""

import importlib.util
from pathlib import Path

import torch

from cir_cot import compat  # noqa: F401  # isort: skip
import transformers

from cir_cot.errors import InputError

from .loading import loading
from .resizing import token_side

TINY_BASE = "cir-cot/tiny-base"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ATTENTION = ("sdpa", "eager", "flash_attention_2")


def read_model_type(path: str) -> str:
    """`model_type` of the checkpoint's config.json, "" when it has none; InputError when there is no checkpoint."""
    with loading(f"{path}: no checkpoint could be read here"):
        config, _ = transformers.PretrainedConfig.get_config_dict(_located(path))
        kind = str(config.get("model_type", ""))
    for part in ("text_config", "vision_config"):
        if part in config and not (isinstance(config[part], dict) and config[part]):
            # transformers would build a model of its default sizes, 7B and more, before it found out
            raise InputError(
                f"{path}: {part} of config.json is {config[part]!r:.100}; restore the file"
            )
    return kind


def load_model(
    path: str, kind: type = transformers.AutoModelForImageTextToText, **options: object
) -> transformers.PreTrainedModel:
    """The model of a checkpoint; `options` go to from_pretrained. InputError when a weight is missing or unreadable."""
    with loading(f"{path}: the checkpoint cannot be loaded"):
        model, info = kind.from_pretrained(
            _located(path), use_safetensors=True, output_loading_info=True, **options
        )
    if missing := sorted(info["missing_keys"]):  # transformers would go on with random weights
        raise InputError(
            f"{path}: the checkpoint lacks {len(missing)} weights, {missing[0]} among them"
        )
    return model


def load_processor(path: str) -> transformers.ProcessorMixin:
    """The processor of a checkpoint, with its tokenizer and chat template."""
    with loading(f"{path}: the processor cannot be loaded"):
        processor = transformers.AutoProcessor.from_pretrained(_located(path))
    for part in ("image_processor", "tokenizer"):  # transformers falls back to a bare tokenizer
        if not hasattr(processor, part):
            raise InputError(f"{path}: the processor has no {part}; restore processor_config.json")
    return processor


def model_options(dtype: torch.dtype, attn: str, quantization: str | None) -> dict[str, object]:
    """Options of `load_model`; InputError for values that are unknown or need what is not installed."""
    if attn not in ATTENTION:
        raise InputError(f"attn {attn!r} is not one of {', '.join(ATTENTION)}")
    if attn == "flash_attention_2" and not transformers.utils.is_flash_attn_2_available():
        raise InputError("attn flash_attention_2 needs the package flash-attn and a GPU; use sdpa")
    options = {"dtype": dtype, "attn_implementation": attn}
    return (
        options
        if quantization is None
        else options | {"quantization_config": _quantization(quantization, dtype)}
    )


def bound_pixels(
    images: transformers.image_processing_utils.BaseImageProcessor,
    low: int | None,
    high: int | None,
):
    """Set the bounds of a picture's area in the one place where Qwen's image processors read them."""
    bounds = {"shortest_edge": low, "longest_edge": high}  # areas, whatever Qwen calls them
    size = dict(images.size) | {key: value for key, value in bounds.items() if value is not None}
    if not all(isinstance(size.get(key), int) for key in bounds):
        raise InputError(
            f"the image processor's size is {size}: no pair of areas; restore the processor's files"
        )
    if size["shortest_edge"] > size["longest_edge"]:
        raise InputError(
            f"min_pixels {size['shortest_edge']} exceeds max_pixels {size['longest_edge']}"
        )
    with loading("the image processor's patch_size and merge_size cannot be used"):
        area = token_side(images) ** 2
    if size["longest_edge"] < area:
        raise InputError(
            f"max_pixels {size['longest_edge']} is less than one visual token: give at least {area}"
        )
    images.size = size


def _quantization(kind: str, dtype: torch.dtype) -> transformers.BitsAndBytesConfig:
    """QLoRA's settings (arXiv 2305.14314) for the language model; the vision tower and the head keep `dtype`."""
    if kind not in ("nf4", "int8"):
        raise InputError(f"quantization {kind!r} is not one of nf4, int8")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            f"quantization={kind!r} needs the package bitsandbytes: pip install 'cir-cot[quant]'"
        )
    whole = ["model.visual", "lm_head"]
    if kind == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=whole)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=whole,
    )


def _located(path: str) -> str:
    return str(Path(__file__).parent.parent / "assets" / "tiny_base") if path == TINY_BASE else path
