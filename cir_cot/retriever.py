"""What every method is downstream: the Retriever protocol, and the folder that a trained one is saved in."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .errors import InputError
from .files import read_json
from .prompts import PROMPTS_VERSION

ALIKE = 0.999  # cosine of two encodings of one picture by one model; bfloat16 against float32 stays above
SIDE = 224  # of the probe pictures, pixels


FORMAT = 1
SETTINGS_FILE, HEAD_FILE = "retriever.json", "head.safetensors"


@dataclass(frozen=True)
class QueryOutput:
    """Query vectors (B, D), float32 and unit, and for each row an explanation and a flag ("" = nothing to report).

    `routing`, of a head that routes each query through some of its parts, holds every part's share of the row, by name:
    they sum to 1, and a part that was not chosen has 0.
    """

    embeddings: Tensor
    explanations: list[str]
    flags: list[str] = field(default_factory=list)
    routing: list[dict[str, float]] = field(default_factory=list)


def concatenate_outputs(parts: Sequence[QueryOutput], dim: int = 0) -> QueryOutput:
    """Join the outputs of batches; none of them give (0, dim)."""
    vectors = (
        torch.cat([part.embeddings.float().cpu() for part in parts])
        if parts
        else torch.zeros(0, dim)
    )
    flags = [flag for part in parts for flag in part.flags or [""] * len(part.explanations)]
    routing = [shares for part in parts for shares in part.routing]
    return QueryOutput(
        vectors, [text for part in parts for text in part.explanations], flags, routing
    )


class Retriever(Protocol):
    """All that index, evaluation, submission and demo may use. Raw pictures and words go in."""

    dim: int

    def encode_query(self, images: Sequence[Image.Image], texts: Sequence[str]) -> QueryOutput:
        """Encode B composed queries, reference picture + modification text."""
        ...

    def encode_target(self, images: Sequence[Image.Image]) -> Tensor:
        """Encode N candidate pictures -> (N, D), float32 and unit, in the space of the queries."""
        ...


def read_settings(folder: str | Path) -> dict:
    """Return retriever.json of a saved folder; InputError when it is no retriever, unfinished, or of another format."""
    path = Path(folder) / SETTINGS_FILE
    if not path.exists():
        raise InputError(f"{folder}: no {SETTINGS_FILE} here; give the folder that training wrote")
    facts = read_json(path)
    wanted = {
        "format": int,
        "kind": str,
        "backbone": str,
        "dim": int,
        "prompts": str,
        "settings": dict,
    }
    for key, kind in wanted.items():
        if not isinstance(facts, dict) or type(facts.get(key)) is not kind:
            raise InputError(
                f"{path}: {key!r} is missing or no {kind.__name__}; save the retriever again"
            )
    if type(facts.get("frozen", False)) is not bool:
        raise InputError(
            f"{path}: 'frozen' is {facts['frozen']!r}, neither true nor false; save the retriever again"
        )
    if facts["format"] != FORMAT:
        raise InputError(
            f"{path}: format {facts['format']}, this version reads {FORMAT}; use the version that wrote it"
        )
    if facts["prompts"] != PROMPTS_VERSION:
        raise InputError(
            f"{path}: trained with prompts {facts['prompts']!r}, this version writes {PROMPTS_VERSION!r}; "
            "use the version that trained it, or train again"
        )
    return facts


def fingerprint(retriever: Retriever) -> np.ndarray:
    """Return the vectors (3, D) of three made pictures: the fingerprint of what a retriever makes of candidates."""
    colours = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    pictures = [
        Image.fromarray(part).resize((SIDE, SIDE), Image.Resampling.NEAREST) for part in colours
    ]
    with inference(retriever):
        return retriever.encode_target(pictures).float().cpu().numpy()


def check_fingerprint(stored: Sequence[Sequence[float]], retriever: Retriever, where: str) -> None:
    """Refuse a retriever that encodes pictures otherwise than the one that the stored probe (3, D) is of."""
    theirs, ours = np.array(stored, dtype=np.float64), fingerprint(retriever).astype(np.float64)
    alike = (theirs * ours).sum(axis=1).min() if theirs.shape == ours.shape else -1.0
    if not alike >= ALIKE:
        how = (
            f"cosine {alike:.3f}"
            if theirs.shape == ours.shape
            else f"{theirs.shape[1]} and {ours.shape[1]} numbers"
        )
        raise InputError(
            f"{where}: encoded by another retriever ({how} for the same picture); give the checkpoint that it was "
            "encoded with, or encode the gallery into a new folder"
        )


@contextmanager
def inference(retriever: Retriever) -> Iterator[None]:
    """Without gradients and without dropout; a model in training goes on as it was."""
    modes = (
        {module: module.training for module in retriever.modules()}
        if isinstance(retriever, torch.nn.Module)
        else {}
    )
    for module in modes:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
