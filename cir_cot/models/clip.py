"""Encode pictures and texts with CLIP or SigLIP into one space, with CLIP4Cir's padding of long pictures.

Features are those of the checkpoint's own projections, not normalised: CLIP4Cir adds them as they are. Users' text is
tokenised as plain text. A special token in it could otherwise end the text early, at the position that CLIP pools.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from cir_cot import compat  # noqa: F401  # isort: skip
import transformers

from cir_cot.digests import new_digest
from cir_cot.errors import InputError
from cir_cot.hub import holds, located
from cir_cot.retriever import SETTINGS_FILE, read_settings

from .checkpoint import DTYPES, load_model, load_processor, model_options, read_model_type

# model_type -> padding of texts: CLIP pools the end-of-text token, SigLIP the last of a fixed number of positions
PADDING = {"clip": "longest", "siglip": "max_length"}

PAD_RATIO = 1.25  # CLIP4Cir's


def target_pad(picture: Image.Image, ratio: float) -> Image.Image:
    """Pad a picture longer than `ratio` : 1 to that ratio, with black along both long sides -> picture.

    This is CLIP4Cir's "targetpad", rounding included. The centre crop that follows then loses less of the picture.
    """
    width, height = picture.size
    if not ratio or max(width, height) / min(width, height) < ratio:
        return picture
    wanted = max(width, height) / ratio  # length of the short side
    across, down = (max(int((wanted - side) / 2), 0) for side in (width, height))  # of each side
    return ImageOps.expand(picture, (across, down, across, down), fill=0)


class ClipInputs:
    """Turn pictures and texts into the tensors of the two towers.

    It holds the processor and no model, so that data loading workers can pickle it.

    Args:
        processor: Of the checkpoint.
        padding: A value of PADDING.
        length: Largest number of tokens of a text; longer ones are truncated.
        pad_ratio: That of `target_pad`; 0 leaves preprocessing to the checkpoint.
    """

    def __init__(
        self, processor: transformers.ProcessorMixin, padding: str, length: int, pad_ratio: float
    ):
        if pad_ratio and pad_ratio < 1:
            raise InputError(
                f"pad_ratio {pad_ratio}: a side ratio is at least 1 (CLIP4Cir: 1.25), or 0 for no padding"
            )
        self.processor = processor
        self.padding = padding
        self.length = length
        self.pad_ratio = pad_ratio

    def pictures(self, pictures: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Preprocess B pictures -> pixel_values (B, 3, S, S)."""
        padded = [target_pad(picture.convert("RGB"), self.pad_ratio) for picture in pictures]
        processed = self.processor.image_processor(images=padded, return_tensors="pt")
        return {"pixel_values": processed["pixel_values"]}

    def texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Tokenise B texts, truncated to `length` tokens -> input_ids (B, T), and CLIP's attention_mask (B, T)."""
        encoded = self.processor.tokenizer(
            list(texts),
            padding=self.padding,
            max_length=self.length,
            truncation=True,
            split_special_tokens=True,
            return_tensors="pt",
        )
        # SigLIP was trained without a mask of its padding.
        names = ("input_ids", "attention_mask") if self.padding == "longest" else ("input_ids",)
        return {name: encoded[name] for name in names}

    def settings(self) -> dict:
        """Return every setting that changes a tower's inputs, for the identity of cached features."""
        images = self.processor.image_processor.to_dict()
        return {
            # Names with an underscore are bookkeeping of transformers, no settings.
            "images": {name: value for name, value in images.items() if not name.startswith("_")},
            "padding": self.padding,
            "length": self.length,
            "pad_ratio": self.pad_ratio,
        }


class ClipEncoder(nn.Module):
    """Run both towers of a CLIP or SigLIP checkpoint; build it with `load_clip`.

    It stays in eval mode even while it is fine-tuned, as in CLIP4Cir. A frozen one runs under no_grad, and a head saves
    the name of its checkpoint instead of its weights.

    Example:
        encoder = load_clip("openai/clip-vit-base-patch32")
        encoder.encode_images([picture]) @ encoder.encode_texts(["a red dress"]).T
    """

    adapted = False

    def __init__(self, model: transformers.PreTrainedModel, inputs: ClipInputs, frozen: bool):
        super().__init__()
        # torch types a submodule's methods as `Tensor | Module`, and the two classes have no common base.
        self.model: Any = model
        self.inputs = inputs
        self.frozen = frozen
        # The temperature and bias of CLIP's own loss play no part here.
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not frozen and not name.startswith("logit_"))
        # SigLIP's towers have the width of the shared space; CLIP projects into it.
        config: Any = model.config
        clip = config.model_type == "clip"
        self.dim: int = config.projection_dim if clip else config.vision_config.hidden_size
        self.train()

    def train(self, mode: bool = True) -> ClipEncoder:
        """Stay in eval mode."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Return where the weights are."""
        return self.model.device

    def images(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Encode preprocessed pictures -> features (B, D), float32, not normalised."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            pixels = inputs["pixel_values"].to(self.device, self.model.dtype)
            # pooler_output is the projected feature here, (B, D).
            return self.model.get_image_features(pixel_values=pixels).pooler_output.float()

    def texts(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Encode tokenised texts -> features (B, D), float32, not normalised."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            names = [name for name in ("input_ids", "attention_mask") if name in inputs]
            tokens = {name: inputs[name].to(self.device) for name in names}
            return self.model.get_text_features(**tokens).pooler_output.float()

    @torch.no_grad()
    def encode_images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Encode pictures in one batch -> features (N, D) on the CPU."""
        return self.images(self.inputs.pictures(pictures)).cpu()

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Encode texts in one batch -> features (N, D) on the CPU."""
        return self.texts(self.inputs.texts(texts)).cpu()

    def identity(self) -> str:
        """Return a digest of everything that determines a feature: weights and their type, preprocessing, tokenizer."""
        digest = new_digest()
        # Every weight, as bytes in the order of names.
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        digest.update(json.dumps(self.inputs.settings(), sort_keys=True, default=str).encode())
        vocabulary = sorted(self.inputs.processor.tokenizer.get_vocab().items())
        digest.update(json.dumps(vocabulary).encode())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Save a fine-tuned checkpoint with its processor; nothing of a frozen one, which is saved already."""
        if not self.frozen:
            self.model.save_pretrained(folder)
            self.inputs.processor.save_pretrained(folder)

    def load_weights(self, folder: str | Path) -> None:
        """Load weights that `save` wrote from this same model, in place, e.g. to resume training."""
        if not self.frozen:
            stored = load_model(str(folder), transformers.AutoModel, dtype=self.model.dtype)
            self.model.load_state_dict(stored.state_dict())


def load_clip(
    path: str,
    pad_ratio: float | None = None,
    dtype: str = "float32",
    frozen: bool = True,
    fallback: float = 0.0,
) -> ClipEncoder:
    """Load a CLIP or SigLIP checkpoint -> ClipEncoder.

    Args:
        path: A folder, a hub name, or the run folder of `cir-cot clip`.
        pad_ratio: That of `target_pad`; None takes the one that a run folder was trained with.
        dtype: Precision of the weights: float32, bfloat16 or float16.
        frozen: Whether the weights are trained.
        fallback: `pad_ratio` of a checkpoint that is no run folder.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    # Refuse other models before their weights are read.
    kind = read_model_type(path)
    if kind not in PADDING:
        raise InputError(
            f"{path}: model_type {kind!r} is no text-image encoder that is supported; use {', '.join(PADDING)}"
        )
    # A run folder keeps the padding that it was trained with.
    if pad_ratio is None:
        pad_ratio = fallback
        if holds(path, SETTINGS_FILE):
            pad_ratio = read_settings(located(path))["settings"].get("pad_ratio", fallback)
    model = load_model(path, transformers.AutoModel, **model_options(DTYPES[dtype], "sdpa", None))
    length = model.config.text_config.max_position_embeddings
    inputs = ClipInputs(load_processor(path), PADDING[kind], length, pad_ratio)
    return ClipEncoder(model, inputs, frozen)
