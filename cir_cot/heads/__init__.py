"""Retrieval methods, one file each, that implement the protocol of `cir_cot.retriever`."""

from pathlib import Path
from typing import Any

from cir_cot.errors import InputError
from cir_cot.retriever import Retriever, read_settings

from .base import Head
from .clip import ClipRetriever
from .cot import CotRetriever
from .moe import MoeRetriever
from .prompt_pool import PromptPoolRetriever

HEADS: dict[str, type[Head]] = {
    "cot": CotRetriever,
    "prompt_pool": PromptPoolRetriever,
    "clip": ClipRetriever,
    "moe": MoeRetriever,
}


def load_retriever(folder: str | Path, **options: Any) -> Retriever:
    """Load a trained retriever for inference.

    Args:
        folder: the folder that training wrote.
        options: `device` and `dtype`, and for heads on a Qwen-VL what `load_backbone` takes, such as `attn`.

    Raises:
        InputError: the folder is no finished retriever, or its kind is unknown to this version.

    Example:
        retriever = load_retriever("runs/model", device="cuda", dtype="bfloat16")
        query = retriever.encode_query([image], ["the same, but red"])
    """
    metadata = read_settings(folder)
    if metadata["kind"] not in HEADS:
        raise InputError(
            f"{folder}: a retriever of kind {metadata['kind']!r}; this version has {', '.join(HEADS)}"
        )
    return HEADS[metadata["kind"]].load(folder, metadata, **options)
