"""CLIP4Cir's first stage: the sum of a picture's and a sentence's CLIP features is the query.

CLIP4Cir (Baldrati et al., TOMM 2023): query = L2(image + text) on un-normalised features, target = L2(image), in-batch
cross-entropy at logits of 100 times the cosine. `combine` is what the second stage replaces (`heads/moe.py`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional

from cir_cot.devices import pick_device
from cir_cot.models.clip import ClipEncoder, ClipInputs, load_clip
from cir_cot.models.loading import loading
from cir_cot.retriever import SETTINGS_FILE, QueryOutput, concatenate_outputs

from .base import Head, HeadOutput, TrainingRow, image_hash, load_head_weights


class ClipCollator:
    """list[TrainingRow] -> {"query": inputs, "target": inputs, "ids": (B,)} for heads on CLIP.

    Rows hold pictures, or vectors of pictures; with these go `texts`, the vectors of all texts.
    """

    def __init__(self, inputs: ClipInputs, texts: Mapping[str, Tensor] | None = None):
        self.inputs, self.texts = inputs, texts

    def __call__(self, rows: Sequence[TrainingRow]) -> dict:
        texts = [row.record.text for row in rows]
        if self.texts is None:
            query = self.inputs.pictures([row.reference for row in rows]) | self.inputs.texts(texts)
            target = self.inputs.pictures([row.target for row in rows])
        else:
            words = torch.stack([self.texts[text] for text in texts])
            query = {"image": torch.stack([row.reference for row in rows]), "text": words}
            target = {"image": torch.stack([row.target for row in rows])}
        return {
            "query": query,
            "target": target,
            "ids": torch.tensor([image_hash(row.record.targets[0]) for row in rows]),
        }


class ClipRetriever(Head):
    """Sum of CLIP features; embeddings are (B, D), float32 and unit. `base` names the encoder's checkpoint."""

    kind = "clip"

    def __init__(self, backbone: ClipEncoder, base: str, temperature: float = 0.01):
        super().__init__()
        self.backbone, self.base, self.temperature = backbone, base, temperature
        self.dim, self.batch_size = backbone.dim, 64
        self.texts: Mapping[str, Tensor] | None = (
            None  # vectors of all training texts, where rows hold vectors
        )

    def settings(self) -> dict:
        """Return the keyword arguments that build this head and its encoder again."""
        return {"temperature": self.temperature, "pad_ratio": self.backbone.inputs.pad_ratio}

    def collator(self) -> ClipCollator:
        """Return what turns training rows into batches; it holds the processor, never the model."""
        return ClipCollator(self.backbone.inputs, self.texts)

    def forward(
        self, query: dict, target: dict | None = None, labels: Tensor | None = None
    ) -> HeadOutput:
        """Return query (B, D), target (B, D) unless no target is given, and what `combine` reports beside them."""
        text = query["text"] if "text" in query else self.backbone.texts(query)  # (B, D)
        combined, report = self.combine(self._image(query), text)
        return HeadOutput(
            query=_unit(combined),
            target=None if target is None else _unit(self._image(target)),
            temperature=self.temperature,
            aux=report.get("aux", {}),
            rows=report.get("rows", {}),
            stats=report.get("stats", {}),
        )

    def _image(self, inputs: dict) -> Tensor:
        return inputs["image"] if "image" in inputs else self.backbone.images(inputs)

    def combine(self, image: Tensor, text: Tensor) -> tuple[Tensor, dict]:
        """Combine features (B, D) of picture and text -> (B, D), and {} as there is nothing to report."""
        return image + text, {}

    @torch.no_grad()
    def encode_target(self, images: Sequence[Image]) -> Tensor:
        """Encode N pictures -> (N, D)."""
        parts = [self.backbone.encode_images(images[rows]) for rows in self.batches(len(images))]
        return _unit(torch.cat([torch.zeros(0, self.dim), *parts]))

    @torch.no_grad()
    def encode_query(self, images: Sequence[Image], texts: Sequence[str]) -> QueryOutput:
        """Encode B composed queries; `explain` says what each was made of."""
        parts = []
        for rows in self.batches(len(images)):
            image = self.backbone.images(self.backbone.inputs.pictures(images[rows]))
            combined, report = self.combine(
                image, self.backbone.texts(self.backbone.inputs.texts(texts[rows]))
            )
            explanations, choices = self.explain(report, len(combined))
            parts.append(
                QueryOutput(_unit(combined).cpu(), explanations, [""] * len(combined), choices)
            )
        return concatenate_outputs(parts, self.dim)

    def explain(self, report: dict, rows: int) -> tuple[list[str], list[dict[str, float]]]:
        """Put in words what `combine` did for each of B rows -> (explanations, choices)."""
        return [""] * rows, []

    @classmethod
    def load(
        cls, folder: str | Path, facts: dict, device: str | None = None, dtype: str = "float32"
    ) -> Self:
        """Load a saved folder to use it."""
        place = pick_device(device)  # before weights are read
        settings, frozen = dict(facts["settings"]), facts.get("frozen", False)
        base = facts["backbone"] if frozen else str(folder)
        encoder = load_clip(base, settings.pop("pad_ratio", None), dtype, frozen)
        with loading(f"{Path(folder) / SETTINGS_FILE}: no such head can be built"):
            head = cls(encoder, facts["backbone"], **settings)
        load_head_weights(head, folder)
        return head.to(place).eval()


def _unit(vectors: Tensor) -> Tensor:
    return functional.normalize(vectors.float(), dim=-1)
