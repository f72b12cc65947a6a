"""Retrieval methods, one file each, that implement the protocol of `cir_cot.retriever`."""

from pathlib import Path
from typing import Any

from cir_cot.devices import fast_dtype, pick_device
from cir_cot.errors import InputError
from cir_cot.hub import located
from cir_cot.retriever import Retriever, read_settings

from .base import Head
from .clip import ClipRetriever
from .cot import CotRetriever
from .moe import MoeRetriever
from .prompt_pool import PromptPoolRetriever
from .qwen import QwenHead

HEADS: dict[str, type[Head]] = {
    "cot": CotRetriever,
    "prompt_pool": PromptPoolRetriever,
    "clip": ClipRetriever,
    "moe": MoeRetriever,
}


def load_retriever(folder: str | Path, merge: bool = False, **options: Any) -> Retriever:
    """Load a trained retriever for inference.

    Args:
        folder: the folder that training wrote, or a name on the hub: `user/name`, or `user/name@revision`.
        merge: merge a LoRA adapter into the weights, which reads faster: a layer is one product instead of three.
            Such a retriever is not for saving. An adapter of a quantised base stays apart.
        options: `device` and `dtype`, and for heads on a Qwen-VL what `load_backbone` takes, such as `attn`. Without
            a dtype a Qwen-VL is loaded in bfloat16 on a GPU that has it; everything else is float32.

    Raises:
        InputError: the folder is no finished retriever, its kind is unknown to this version, or the hub does not
            deliver it.

    Example:
        retriever = load_retriever("runs/model", device="cuda", dtype="bfloat16")
        query = retriever.encode_query([image], ["the same, but red"])
    """
    folder = located(folder)
    metadata = read_settings(folder)
    if metadata["kind"] not in HEADS:
        raise InputError(
            f"{folder}: a retriever of kind {metadata['kind']!r}; this version has {', '.join(HEADS)}"
        )
    kind = HEADS[metadata["kind"]]
    large = issubclass(kind, QwenHead)
    bounds = [name for name in ("min_pixels", "max_pixels") if options.get(name) is not None]
    if bounds and not large:
        raise InputError(
            f"{folder}: {bounds[0]} {options[bounds[0]]}: a {kind.kind!r} retriever has no such "
            "bound; leave it out"
        )
    if options.get("dtype") is None:
        options["dtype"] = fast_dtype(pick_device(options.get("device"))) if large else "float32"
    head = kind.load(folder, metadata, **options)
    head.trained_in = metadata.get("trained_in")
    if merge and isinstance(head, QwenHead) and not _quantised(head):
        head.backbone.merge()
    return head


def _quantised(head: QwenHead) -> bool:
    """Tell whether the base's weights have 4 or 8 bits, which cannot hold an adapter."""
    return getattr(head.backbone.config, "quantization_config", None) is not None
