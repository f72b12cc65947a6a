"""The methods, one file each, behind the protocol of `cir_cot.retriever`."""

from pathlib import Path

from cir_cot.errors import InputError
from cir_cot.retriever import Retriever, read_settings

from .clip import ClipRetriever
from .cot import CotRetriever
from .moe import MoeRetriever
from .prompt_pool import PromptPoolRetriever

HEADS = {
    "cot": CotRetriever,
    "prompt_pool": PromptPoolRetriever,
    "clip": ClipRetriever,
    "moe": MoeRetriever,
}


def load_retriever(folder: str | Path, **options) -> Retriever:
    """Load what training saved in `folder`; `options` (device, dtype, attn, batch_size) go to the head's `load`."""
    facts = read_settings(folder)
    if facts["kind"] not in HEADS:
        raise InputError(
            f"{folder}: a retriever of kind {facts['kind']!r}; this version has {', '.join(HEADS)}"
        )
    return HEADS[facts["kind"]].load(folder, facts, **options)
