"""TODO."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from cir_cot import __version__
from cir_cot.errors import InputError
from cir_cot.models.loading import load_tensors
from cir_cot.prompts import PROMPTS_VERSION
from cir_cot.records import Record
from cir_cot.retriever import FORMAT, HEAD_FILE, SETTINGS_FILE


class HeadOutput(NamedTuple):
    """Embeddings and losses that a head's `forward` returns for one batch.

    This is a named tuple because the wrappers of distributed training look for tensors inside tuples and dicts only:
    in a dataclass, ZeRO-3 and FSDP would not see the tensors that their backward hooks belong to.

    Attributes:
        query: embeddings (B, D) of the composed queries, float32 and unit.
        target: embeddings (B, D) of the target images, or None if `forward` was given none.
        temperature: temperature of InfoNCE; a scalar tensor where it is learned.
        aux: losses that are means over rows or, as `lm`, over supervised tokens -> scalars by name.
        rows: tensors (B, ...) of which `batch_losses` computes losses that need all rows of a batch.
        stats: values to log, means over rows -> scalars by name.
    """

    query: Tensor
    target: Tensor | None
    temperature: Tensor | float
    aux: dict[str, Tensor]
    rows: dict[str, Tensor]
    stats: dict[str, Tensor]


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


def own_weights(head) -> dict[str, Tensor]:
    """Return a head's own weights: neither its backbone's nor those of a foreign encoder that its settings name."""
    return {
        name: value
        for name, value in head.state_dict().items()
        if not name.startswith(("backbone.", "foreign."))
    }


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
        raise InputError(
            f"{path}: tensors {', '.join(odd)} do not fit a {head.kind!r} head; use its own checkpoint"
        )
    for name, value in stored.items():
        value = (
            value.reshape(1) if value.dim() == 0 else value
        )  # a temperature of before it had a dimension
        if value.shape != own[name].shape:
            raise InputError(
                f"{path}: {name} is {tuple(value.shape)}, the head's is {tuple(own[name].shape)}"
            )
        with torch.no_grad():
            own[name].copy_(value)


def model_card(facts: dict) -> str:
    """Return the README.md of a saved retriever."""
    rows = "\n".join(
        f"| {key} | `{value}` |"
        for key, value in {**facts, **facts["settings"]}.items()
        if key != "settings"
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


@dataclass(frozen=True)
class TrainingRow:
    """One training row; `draw` is a random number drawn with it, the source of every random choice made about it.

    A picture that has been encoded before is its vector (D,).
    """

    record: Record
    reference: Image.Image | Tensor
    target: Image.Image | Tensor
    draw: int


def image_hash(image: str) -> int:
    """Return a 63-bit number that stands for an image id, the same in every process."""
    return int.from_bytes(hashlib.blake2b(image.encode(), digest_size=8).digest(), "big") >> 1
