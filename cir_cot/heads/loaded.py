"""Say in a line what a loaded retriever computes with."""

from collections.abc import Mapping
from pathlib import Path

from .qwen import QwenHead


def loaded_line(retriever: object, folder: str | Path) -> str:
    """Return a line with a retriever's kind, its precision, and how large its pictures are.

    Args:
        retriever: what `load_retriever` returned.
        folder: where from.

    Example:
        loaded_line(retriever, "runs/model")
        # runs/model: cot in bfloat16 (trained in bfloat16), pictures of 3,136 to 147,456 pixels
    """
    facts: Mapping = retriever.conditions() if isinstance(retriever, QwenHead) else {}
    line = f"{folder}: {getattr(retriever, 'kind', 'a retriever')}"
    if "dtype" in facts:
        line += f" in {facts['dtype']}"
    if facts.get("trained_in"):
        line += f" (trained in {facts['trained_in']})"
    if "max_pixels" in facts:
        line += f", pictures of {facts['min_pixels']:,} to {facts['max_pixels']:,} pixels"
    return line
