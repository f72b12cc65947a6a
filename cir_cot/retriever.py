"""What every method is downstream: the Retriever protocol, and the folder that a trained one is saved in."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import safetensors.torch
import torch
from PIL.Image import Image
from torch import Tensor, nn

from . import __version__
from .files import read_json
from .loading import load_tensors
from .prompts import PROMPTS_VERSION
from .records import InputError

FORMAT = 1
SETTINGS_FILE, HEAD_FILE = "retriever.json", "head.safetensors"


@dataclass(frozen=True)
class QueryOutput:
    """Query vectors (B, D), float32 and unit, and for each row an explanation and a flag ("" = nothing to report).

    `choices`, of a head that routes each query through some of its parts, holds every part's share of the row, by name:
    they sum to 1, and a part that was not chosen has 0.
    """

    embeddings: Tensor
    explanations: list[str]
    flags: list[str] = field(default_factory=list)
    choices: list[dict[str, float]] = field(default_factory=list)


def concatenate(parts: Sequence[QueryOutput], dim: int = 0) -> QueryOutput:
    """Join the outputs of batches; none of them give (0, dim)."""
    vectors = torch.cat([part.embeddings.float().cpu() for part in parts]) if parts else torch.zeros(0, dim)
    flags = [flag for part in parts for flag in part.flags or [""] * len(part.explanations)]
    choices = [choice for part in parts for choice in part.choices]
    return QueryOutput(vectors, [text for part in parts for text in part.explanations], flags, choices)


class Retriever(Protocol):
    """All that index, evaluation, submission and demo may use. Raw pictures and words go in."""

    dim: int

    def encode_query(self, images: Sequence[Image], texts: Sequence[str]) -> QueryOutput:
        """Encode B composed queries, reference picture + modification text."""
        ...

    def encode_target(self, images: Sequence[Image]) -> Tensor:
        """Encode N candidate pictures -> (N, D), float32 and unit, in the space of the queries."""
        ...


class Head(nn.Module):
    """What every head has in common: it works in batches, and is saved and filled again like a checkpoint."""

    batch_size = 64

    def batches(self, count: int) -> list[slice]:
        """Cut `count` rows into slices of `batch_size`."""
        return [slice(at, at + self.batch_size) for at in range(0, count, self.batch_size)]

    def save(self, folder: str | Path) -> None:
        """Save as a retriever folder; `load` and `cir_cot.heads.load_retriever` read it."""
        save_retriever(self, folder)

    def load_weights(self, folder: str | Path) -> None:
        """Take the weights of a saved folder of the same settings, e.g. to resume."""
        self.backbone.load_weights(folder)
        load_head_weights(self, folder)


def save_retriever(head: Head, folder: str | Path) -> None:
    """Write a head as a folder: backbone weights or adapter, head.safetensors, processor, card, retriever.json last.

    Of a frozen backbone nothing is written but its name.

    A folder without retriever.json is an unfinished save, and `read_settings` says so.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS_FILE).unlink(missing_ok=True)
    head.backbone.save(folder)
    own = {name: value.contiguous() for name, value in own_weights(head).items()}
    safetensors.torch.save_file(own, folder / HEAD_FILE)
    facts = {
        "format": FORMAT,
        "kind": head.kind,
        "backbone": head.base if head.backbone.adapted or head.backbone.frozen else ".",
        "frozen": head.backbone.frozen,
        "dim": head.dim,
        "prompts": PROMPTS_VERSION,
        "settings": head.settings(),
        "version": __version__,
    }
    (folder / "README.md").write_text(model_card(facts), encoding="utf-8")
    (folder / SETTINGS_FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def read_settings(folder: str | Path) -> dict:
    """Return retriever.json of a saved folder; InputError when it is no retriever, unfinished, or of another format."""
    path = Path(folder) / SETTINGS_FILE
    if not path.exists():
        raise InputError(f"{folder}: no {SETTINGS_FILE} here; give the folder that training wrote")
    facts = read_json(path)
    wanted = {"format": int, "kind": str, "backbone": str, "dim": int, "prompts": str, "settings": dict}
    for key, kind in wanted.items():
        if not isinstance(facts, dict) or type(facts.get(key)) is not kind:
            raise InputError(f"{path}: {key!r} is missing or no {kind.__name__}; save the retriever again")
    if type(facts.get("frozen", False)) is not bool:
        raise InputError(f"{path}: 'frozen' is {facts['frozen']!r}, neither true nor false; save the retriever again")
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


def own_weights(head) -> dict[str, Tensor]:
    """Return a head's own weights: neither its backbone's nor those of a foreign encoder that its settings name."""
    return {name: value for name, value in head.state_dict().items() if not name.startswith(("backbone.", "foreign."))}


def load_head_weights(head, folder: str | Path, without: tuple[str, ...] = ()) -> None:
    """Load head.safetensors of a saved folder into a head; InputError names what does not fit.

    Tensors whose names begin as one of `without` stay as they are.
    """
    path = Path(folder) / HEAD_FILE
    if not path.is_file():
        raise InputError(f"{path}: missing; give the folder that training wrote")
    stored = load_tensors(path)
    stored, own = (
        {name: value for name, value in weights.items() if not name.startswith(without)}
        for weights in (stored, own_weights(head))
    )
    if odd := sorted(stored.keys() ^ own.keys()):
        raise InputError(f"{path}: tensors {', '.join(odd)} do not fit a {head.kind!r} head; use its own checkpoint")
    for name, value in stored.items():
        value = value.reshape(1) if value.dim() == 0 else value  # a temperature of before it had a dimension
        if value.shape != own[name].shape:
            raise InputError(f"{path}: {name} is {tuple(value.shape)}, the head's is {tuple(own[name].shape)}")
        with torch.no_grad():
            own[name].copy_(value)


def model_card(facts: dict) -> str:
    """Return the README.md of a saved retriever."""
    rows = "\n".join(
        f"| {key} | `{value}` |" for key, value in {**facts, **facts["settings"]}.items() if key != "settings"
    )
    return f"""---
library_name: cir-cot
base_model: {json.dumps(facts["backbone"])}
tags: [composed-image-retrieval, chain-of-thought]
---
# A `{facts["kind"]}` retriever for composed image retrieval

Trained with cir-cot. A reference image and a modification text go in, a query vector and an explanation come out.

| setting | value |
|---|---|
{rows}

```python
from cir_cot.heads import load_retriever

retriever = load_retriever("this folder")
query = retriever.encode_query([image], ["the same, but red"])
scores = query.embeddings @ retriever.encode_target(gallery).T
```
"""
