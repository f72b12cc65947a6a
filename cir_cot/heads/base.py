"""What every head provides, what it returns in training, and how it is saved and loaded."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, NamedTuple, Protocol, Self

import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from cir_cot import __version__
from cir_cot.errors import InputError
from cir_cot.models.loading import load_tensors
from cir_cot.prompts import PROMPTS_VERSION
from cir_cot.records import Record
from cir_cot.retriever import FORMAT, HEAD_FILE, SETTINGS_FILE, QueryOutput

from .card import is_generated, model_card, read_runs


@dataclass(frozen=True)
class TrainingRow:
    """One training row: a record with its images.

    Attributes:
        record: texts, chain and image ids.
        reference: reference image, or its feature vector (D,) where features are cached.
        target: target image, or its feature vector (D,).
        draw: random number drawn with the row; every random choice about the row comes from it.
        negatives: hard negatives, as many for each row of a batch: image ids with their images.
    """

    record: Record
    reference: Image.Image | Tensor
    target: Image.Image | Tensor
    draw: int
    negatives: tuple[tuple[str, Image.Image | Tensor], ...] = ()


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
        negative: embeddings (B, K, D) of each row's hard negatives, split from `target` by the trainer.
        negative_ids: `image_hash` (B, K) of these.
    """

    query: Tensor
    target: Tensor | None
    temperature: Tensor | float
    aux: dict[str, Tensor]
    rows: dict[str, Tensor]
    stats: dict[str, Tensor]
    negative: Tensor | None = None
    negative_ids: Tensor | None = None


class Encoder(Protocol):
    """Pretrained model below a head: a Qwen-VL `Backbone` or a `ClipEncoder`."""

    frozen: bool

    @property
    def adapted(self) -> bool:
        """Whether it has a LoRA adapter."""
        ...

    def save(self, folder: str | Path) -> None:
        """Save its trained weights, if it has any, and its processor."""
        ...

    def load_weights(self, folder: str | Path) -> None:
        """Load the weights that `save` wrote."""
        ...


class Head(nn.Module, ABC):
    """Retrieval method around a pretrained model: trained by `CirTrainer`, used as a `Retriever`.

    A new method subclasses it in a file of its own, is added to `cir_cot.heads.HEADS`, and is then tested by
    tests/contract.

    Attributes:
        kind: name of the method in retriever.json, a key of `cir_cot.heads.HEADS`.
        backbone: the pretrained model. Its weights are saved by itself, those of the head in head.safetensors.
        base: checkpoint that the backbone was loaded from.
        dim: D of the embeddings.
        depth: blocks between input and embedding, by which rounding errors grow.
        batch_size: rows that `encode_query` and `encode_target` send through the model together.
        trained_in: precision of the training's forward passes; None where it is not known.
    """

    kind: ClassVar[str]
    backbone: Encoder
    base: str
    dim: int
    depth: int = 1
    batch_size: int = 64
    trained_in: str | None = None

    @abstractmethod
    def settings(self) -> dict:
        """Return the keyword arguments that build this head again; retriever.json stores them."""

    @abstractmethod
    def collator(self) -> Callable[[Sequence[TrainingRow]], dict]:
        """Return the function that turns training rows into a batch.

        It runs in loading workers: it may hold the processor, never the model. The batch has "query" and "target"
        (model inputs), "ids" (B, P) (`target_ids` of the rows) and, for a head that generates chains, "labels" (B, T).
        """

    @abstractmethod
    def forward(
        self,
        query: dict[str, Tensor],
        target: dict[str, Tensor] | None = None,
        labels: Tensor | None = None,
    ) -> HeadOutput:
        """Encode a collated batch for training; without `target` only the queries."""

    @abstractmethod
    def encode_query(self, images: Sequence[Image.Image], texts: Sequence[str]) -> QueryOutput:
        """Encode B composed queries, each a reference image and a modification text."""

    @abstractmethod
    def encode_target(self, images: Sequence[Image.Image]) -> Tensor:
        """Encode N candidate images -> (N, D), float32 and unit, on the CPU."""

    @classmethod
    @abstractmethod
    def load(
        cls, folder: str | Path, metadata: dict, device: str | None = None, dtype: str = "float32"
    ) -> Self:
        """Load a saved folder for inference; `metadata` is its retriever.json, already checked."""

    def batch_losses(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return losses that need all rows of a batch -> scalars by name; none by default.

        Args:
            rows: `HeadOutput.rows`, gathered from all processes.
        """
        return {}

    def save(self, folder: str | Path) -> None:
        """Save as a retriever folder, which `load` and `cir_cot.heads.load_retriever` read."""
        save_retriever(self, folder)

    def push_to_hub(
        self,
        repo_id: str,
        private: bool = False,
        token: str | None = None,
        revision: str | None = None,
        results: Sequence[str | Path] = (),
    ) -> str:
        """Upload the retriever to the hub, with a model card -> its address; see `cir_cot.heads.publish.push`."""
        from .publish import push

        with TemporaryDirectory() as folder:
            self.save(folder)
            return push(folder, repo_id, private, token, revision, results).address

    def load_weights(self, folder: str | Path) -> None:
        """Load the weights of a saved folder with the same settings, for example to resume training."""
        self.backbone.load_weights(folder)
        load_head_weights(self, folder)


def save_retriever(head: Head, folder: str | Path) -> None:
    """Write a head as a folder: backbone weights or adapter, head.safetensors, processor, model card, retriever.json.

    Of a frozen backbone only the name is stored. retriever.json is written last: a folder without it is an unfinished
    save, and `read_settings` says so.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # From here until the end the folder counts as unfinished.
    (folder / SETTINGS_FILE).unlink(missing_ok=True)
    # Weights.
    head.backbone.save(folder)
    # safetensors stores contiguous tensors only.
    own = {name: value.contiguous() for name, value in own_weights(head).items()}
    safetensors.torch.save_file(own, folder / HEAD_FILE)
    # Metadata: "." stands for a complete backbone in the same folder.
    complete = not (head.backbone.adapted or head.backbone.frozen)
    metadata = {
        "format": FORMAT,
        "kind": head.kind,
        "backbone": "." if complete else head.base,
        "frozen": head.backbone.frozen,
        "dim": head.dim,
        "prompts": PROMPTS_VERSION,
        "settings": head.settings(),
        "trained_in": head.trained_in,
        "version": __version__,
    }
    # A card that a person wrote or edited stays.
    card = folder / "README.md"
    if not card.exists() or is_generated(card.read_text(encoding="utf-8", errors="replace")):
        text = model_card(metadata, runs=read_runs(folder))
        card.write_text(text, encoding="utf-8")
    (folder / SETTINGS_FILE).write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")


def own_weights(head: Head) -> dict[str, Tensor]:
    """Return the weights of a head without those of its backbone or of a foreign encoder that its settings name."""
    return {
        name: value
        for name, value in head.state_dict().items()
        if not name.startswith(("backbone.", "foreign."))
    }


def load_head_weights(head: Head, folder: str | Path, without: tuple[str, ...] = ()) -> None:
    """Load head.safetensors of a saved folder into a head.

    Args:
        head: the head, built with the settings of the folder.
        folder: the saved folder.
        without: prefixes of the names of tensors that stay as they are.

    Raises:
        InputError: the file is missing, or a tensor does not fit the head.
    """
    path = Path(folder) / HEAD_FILE
    if not path.is_file():
        raise InputError(f"{path}: missing; give the folder that training wrote")
    # Both sides must have the same names, but for those that stay as they are.
    stored = _unless_prefixed(load_tensors(path), without)
    own = _unless_prefixed(own_weights(head), without)
    if odd := sorted(stored.keys() ^ own.keys()):
        raise InputError(
            f"{path}: tensors {', '.join(odd)} do not fit a {head.kind!r} head; use its own checkpoint"
        )
    for name, value in stored.items():
        # Older checkpoints store the temperature as a 0-d tensor.
        value = value.reshape(1) if value.dim() == 0 else value
        # Copy in place: an optimizer may already hold the parameter.
        if value.shape != own[name].shape:
            raise InputError(
                f"{path}: {name} is {tuple(value.shape)}, the head's is {tuple(own[name].shape)}"
            )
        with torch.no_grad():
            own[name].copy_(value)


def _unless_prefixed(weights: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if not name.startswith(prefixes)}


def target_ids(rows: Sequence[TrainingRow]) -> Tensor:
    """Return the `image_hash` of all correct targets of each row -> (B, P).

    The first column is the target that the row trains on. Fewer than P targets are filled up with it.
    """
    hashes = [[image_hash(image) for image in row.record.targets] for row in rows]
    most = max(map(len, hashes))
    return torch.tensor([[*row, *row[:1] * (most - len(row))] for row in hashes])


def pad_target_ids(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate target ids (B, P) of batches with different P, filled up as `target_ids` does."""
    tables = [part.reshape(len(part), -1) for part in parts]
    most = max(table.shape[1] for table in tables)
    filled = [
        torch.cat([table, table[:, :1].expand(-1, most - table.shape[1])], 1) for table in tables
    ]
    return torch.cat(filled)


def image_hash(image: str) -> int:
    """Return a number for an image id, the same in every process; its 63 bits fit int64."""
    return int.from_bytes(hashlib.blake2b(image.encode(), digest_size=8).digest(), "big") >> 1
