"""CLIP4Cir's first stage: the sum of an image's and a text's CLIP features is the query.

CLIP4Cir (Baldrati et al., TOMM 2023): query = L2(image + text) on un-normalised features, target = L2(image), in-batch
cross-entropy at logits of 100 times the cosine. `combine` is what the second stage replaces (`heads/moe.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, cast

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional

from cir_cot.devices import pick_device
from cir_cot.inputs import Picture
from cir_cot.models.clip import ClipEncoder, ClipInputs, load_clip
from cir_cot.models.loading import loading
from cir_cot.retriever import SETTINGS_FILE, QueryOutput

from .base import Head, HeadOutput, TrainingRow, load_head_weights, target_ids
from .parts import encode_pictures, encode_queries


class ClipCollator:
    """Collate rows for heads on CLIP: query and target inputs, ids (B,).

    Args:
        inputs: preprocessing of images and texts.
        texts: feature vectors (D,) of all texts, where rows hold feature vectors of their images instead of images.
    """

    def __init__(self, inputs: ClipInputs, texts: Mapping[str, Tensor] | None = None):
        self.inputs = inputs
        self.texts = texts

    def __call__(self, rows: Sequence[TrainingRow]) -> dict:
        texts = [row.record.text for row in rows]
        references = [row.reference for row in rows]
        targets = [row.target for row in rows]
        ids = target_ids(rows)  # (B, P)
        if self.texts is None:
            # Images and texts, preprocessed.
            query = self.inputs.pictures(cast(list[Image], references)) | self.inputs.texts(texts)
            target = self.inputs.pictures(cast(list[Image], targets))
        else:
            # Cached features (B, D).
            text_features = torch.stack([self.texts[text] for text in texts])
            query = {"image": torch.stack(cast(list[Tensor], references)), "text": text_features}
            target = {"image": torch.stack(cast(list[Tensor], targets))}
        return {"query": query, "target": target, "ids": ids}


@dataclass
class Combination:
    """Features of composed queries, with what a Combiner reports beside them.

    Attributes:
        features: (B, D), not normalised.
        aux, rows, stats: as in HeadOutput.
        text_weight: (B,) mean weight of the text against the image, or None where both weigh the same.
        shares: (B, E) each row's weights of the experts, or None without experts.
    """

    features: Tensor
    aux: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
    stats: dict[str, Tensor] = field(default_factory=dict)
    text_weight: Tensor | None = None
    shares: Tensor | None = None


class ClipRetriever(Head):
    """Sum of CLIP features; embeddings are (B, D), float32 and unit.

    Args:
        backbone: both towers of a CLIP or SigLIP.
        base: checkpoint that they were loaded from.
        temperature: fixed temperature of InfoNCE.

    Example:
        head = ClipRetriever(load_clip("openai/clip-vit-base-patch32"), "openai/clip-vit-base-patch32")
        scores = head.encode_query([image], ["in red"]).embeddings @ head.encode_target(gallery).T
    """

    kind = "clip"
    backbone: ClipEncoder

    def __init__(self, backbone: ClipEncoder, base: str, temperature: float = 0.01):
        super().__init__()
        self.backbone = backbone
        self.base = base
        self.temperature = temperature  # fixed, so no parameter
        self.dim = backbone.dim
        # Feature vectors of all training texts, where rows hold feature vectors.
        self.texts: Mapping[str, Tensor] | None = None

    def settings(self) -> dict:
        """Return the keyword arguments that build this head and its encoder again."""
        return {"temperature": self.temperature, "pad_ratio": self.backbone.inputs.pad_ratio}

    def collator(self) -> ClipCollator:
        """Return the function that turns training rows into a batch; it holds the processor, never the model."""
        return ClipCollator(self.backbone.inputs, self.texts)

    def forward(
        self,
        query: dict[str, Tensor],
        target: dict[str, Tensor] | None = None,
        labels: Tensor | None = None,
    ) -> HeadOutput:
        """Encode a batch of images and texts, or of their cached features; `labels` are for heads with chains."""
        text = query["text"] if "text" in query else self.backbone.texts(query)  # (B, D)
        combined = self.combine(self._image(query), text)  # features (B, D)
        return HeadOutput(
            query=_unit(combined.features),
            target=None if target is None else _unit(self._image(target)),
            temperature=self.temperature,
            aux=combined.aux,
            rows=combined.rows,
            stats=combined.stats,
        )

    def _image(self, inputs: dict[str, Tensor]) -> Tensor:
        return inputs["image"] if "image" in inputs else self.backbone.images(inputs)  # (B, D)

    def combine(self, image: Tensor, text: Tensor) -> Combination:
        """Combine features (B, D) of images and texts."""
        return Combination(image + text)

    @torch.no_grad()
    def encode_target(
        self,
        images: Picture | Sequence[Picture],
        batch_size: int | None = None,
        show_progress: bool = False,
    ) -> Tensor:
        """Encode N candidate images, or one: pictures or their files -> (N, D)."""
        size = batch_size or self.batch_size
        return encode_pictures(
            lambda part: _unit(self.backbone.encode_images(part)),
            images,
            size,
            self.dim,
            show_progress,
        )

    @torch.no_grad()
    def encode_query(
        self,
        images: Picture | Sequence[Picture],
        texts: str | Sequence[str],
        batch_size: int | None = None,
        show_progress: bool = False,
    ) -> QueryOutput:
        """Encode B composed queries, with the explanations of `explain`."""
        size = batch_size or self.batch_size
        return encode_queries(self._encode_part, images, texts, size, self.dim, show_progress)

    def _encode_part(self, images: list[Image], texts: list[str]) -> QueryOutput:
        # Features (B, D) of both.
        image = self.backbone.images(self.backbone.inputs.pictures(images))
        text = self.backbone.texts(self.backbone.inputs.texts(texts))
        # Combine, describe and normalise them.
        combined = self.combine(image, text)
        explanations, routing = self.explain(combined)
        vectors = _unit(combined.features).cpu()
        return QueryOutput(vectors, explanations, [""] * len(vectors), routing)

    def explain(self, combined: Combination) -> tuple[list[str], list[dict[str, float]]]:
        """Describe how `combine` treated each of B rows -> explanations and routing, as in QueryOutput."""
        return [""] * len(combined.features), []

    @classmethod
    def load(
        cls, folder: str | Path, metadata: dict, device: str | None = None, dtype: str = "float32"
    ) -> Self:
        """Load a saved folder for inference."""
        place = pick_device(device)  # an unknown device is refused before weights are read
        settings = dict(metadata["settings"])
        frozen = metadata.get("frozen", False)  # older folders lack the entry
        # A frozen encoder is not in the folder, which only names it.
        base = metadata["backbone"] if frozen else str(folder)
        encoder = load_clip(base, settings.pop("pad_ratio", None), dtype, frozen)
        with loading(f"{Path(folder) / SETTINGS_FILE}: no such head can be built"):
            head = cls(encoder, metadata["backbone"], **settings)
        load_head_weights(head, folder)
        return head.to(place).eval()


def _unit(vectors: Tensor) -> Tensor:
    return functional.normalize(vectors.float(), dim=-1)
