"""Describe how the supported Qwen-VL generations differ, and what they have in common.

Only this module looks at a checkpoint's `model_type`. A further generation is one entry in LINEAR.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from cir_cot import compat  # noqa: F401  # isort: skip
import transformers

from cir_cot.errors import InputError

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
# Qwen3.5's gated delta nets, which take the place of attention in most of its blocks.
_RECURRENT = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj")
LINEAR = {  # model_type -> linear layers of a block of the language model
    "qwen2_vl": _ATTENTION + _MLP,
    "qwen2_5_vl": _ATTENTION + _MLP,
    "qwen3_vl": _ATTENTION + _MLP,
    "qwen3_5": _ATTENTION + _RECURRENT + _MLP,
}


if TYPE_CHECKING:

    class QwenVL(transformers.PreTrainedModel):
        """Members that the four Qwen-VL classes share; for the type checker only.

        transformers gives these classes no common base, and torch types every submodule as `Tensor | Module`. Their
        configurations and inner models are therefore `Any` here.
        """

        config: Any
        model: Any  # with `visual`, `language_model` and `get_rope_index`

        def get_input_embeddings(self) -> nn.Embedding:
            """Return the embedding matrix (V, H)."""

        def get_output_embeddings(self) -> nn.Linear:
            """Return the output head (V, H)."""

    class QwenProcessor(transformers.ProcessorMixin):
        """Parts that the processors of the Qwen-VL classes share; for the type checker only."""

        tokenizer: transformers.PreTrainedTokenizerFast
        image_processor: Any
        image_token: str


def linear_layers(model_type: str) -> tuple[str, ...]:
    """Return the names of the linear layers in a block of the language model.

    InputError for a model_type that is not supported, by this library or by the installed transformers.
    """
    known = [name for name in LINEAR if name in transformers.CONFIG_MAPPING]
    if model_type not in known:
        raise InputError(
            f"model_type {model_type!r} is not supported; with transformers {transformers.__version__} "
            f"supported are {', '.join(known)}"
        )
    return LINEAR[model_type]


def cache_argument(forward: Callable) -> str:
    """Return the name of the argument that takes the key-value cache.

    transformers renamed it in 5.24, and warns about the old name since.
    """
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"
