"""CLIP and SigLIP: pictures and words -> features of one space, with CLIP4Cir's padding of long pictures.

Features are those of the checkpoint's own projections, not normalised: CLIP4Cir adds them as they are. Text of users is
tokenised as plain text, so no sentence can end itself, and with it the position that CLIP reads, by a special token.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from cir_cot import compat  # noqa: F401  # isort: skip
import transformers

from cir_cot.errors import InputError
from cir_cot.retriever import SETTINGS_FILE, read_settings

from .checkpoint import DTYPES, load_model, load_processor, model_options, read_model_type

# model_type -> padding of its texts: CLIP reads the end-of-text token, SigLIP the last of a fixed number of positions
PADDING = {"clip": "longest", "siglip": "max_length"}


PAD_RATIO = 1.25  # CLIP4Cir's


def target_pad(picture: Image.Image, ratio: float) -> Image.Image:
    """Pad a picture longer than `ratio` : 1 with black on both short sides until it is just that -> picture.

    CLIP4Cir's "targetpad", rounding included: the centre crop that follows then loses less of it.
    """
    width, height = picture.size
    if not ratio or max(width, height) / min(width, height) < ratio:
        return picture
    wanted = max(width, height) / ratio
    across, down = (max(int((wanted - side) / 2), 0) for side in (width, height))
    return ImageOps.expand(picture, (across, down, across, down), fill=0)


class ClipInputs:
    """From pictures and words to a tower's tensors; holds the processor, never the model: workers can pickle it.

    `pad_ratio` is that of `target_pad`, 0 = the checkpoint's own preprocessing; `length` the most tokens of a text.
    """

    def __init__(
        self, processor: transformers.ProcessorMixin, padding: str, length: int, pad_ratio: float
    ):
        if pad_ratio and pad_ratio < 1:
            raise InputError(
                f"pad_ratio {pad_ratio}: a side ratio is at least 1 (CLIP4Cir: 1.25), or 0 for no padding"
            )
        self.processor, self.padding, self.length, self.pad_ratio = (
            processor,
            padding,
            length,
            pad_ratio,
        )

    def pictures(self, pictures: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Preprocess B pictures -> pixel_values (B, 3, S, S)."""
        padded = [target_pad(picture.convert("RGB"), self.pad_ratio) for picture in pictures]
        return {
            "pixel_values": self.processor.image_processor(images=padded, return_tensors="pt")[
                "pixel_values"
            ]
        }

    def texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Tokenise B texts, cut at `length` tokens -> input_ids (B, T), and attention_mask (B, T) where it matters."""
        encoded = self.processor.tokenizer(
            list(texts),
            padding=self.padding,
            max_length=self.length,
            truncation=True,
            split_special_tokens=True,
            return_tensors="pt",
        )
        names = ("input_ids", "attention_mask") if self.padding == "longest" else ("input_ids",)
        return {name: encoded[name] for name in names}

    def settings(self) -> dict:
        """Return all that decides what a tower is given, for the identity of cached features."""
        images = {
            k: v
            for k, v in self.processor.image_processor.to_dict().items()
            if not k.startswith("_")
        }
        return {
            "images": images,
            "padding": self.padding,
            "length": self.length,
            "pad_ratio": self.pad_ratio,
        }


class ClipEncoder(nn.Module):
    """Both towers of a CLIP or SigLIP checkpoint; build it with `load_clip`.

    A frozen one is used under no_grad and not saved with a head: the head names its checkpoint. It is always in eval
    mode, while it is fine-tuned too, as in CLIP4Cir.
    """

    adapted = False

    def __init__(self, model: transformers.PreTrainedModel, inputs: ClipInputs, frozen: bool):
        super().__init__()
        self.model, self.inputs, self.frozen = model, inputs, frozen
        for (
            name,
            parameter,
        ) in model.named_parameters():  # the scale of CLIP's own loss takes no part here
            parameter.requires_grad_(not frozen and not name.startswith("logit_"))
        config = model.config
        self.dim = (
            config.projection_dim
            if config.model_type == "clip"
            else config.vision_config.hidden_size
        )
        self.train()

    def train(self, mode: bool = True) -> "ClipEncoder":
        """Stay in eval mode."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    def images(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Features (B, D) of preprocessed pictures, float32, not normalised."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            pixels = inputs["pixel_values"].to(self.device, self.model.dtype)
            return self.model.get_image_features(pixel_values=pixels).pooler_output.float()

    def texts(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Features (B, D) of tokenised texts, float32, not normalised."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            names = [name for name in ("input_ids", "attention_mask") if name in inputs]
            tokens = {name: inputs[name].to(self.device) for name in names}
            return self.model.get_text_features(**tokens).pooler_output.float()

    @torch.no_grad()
    def encode_images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Features (N, D) of pictures, on the CPU, in one batch."""
        return self.images(self.inputs.pictures(pictures)).cpu()

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Features (N, D) of texts, on the CPU, in one batch."""
        return self.texts(self.inputs.texts(texts)).cpu()

    def identity(self) -> str:
        """Digest of all that decides a feature: every weight, the preprocessing, the tokenizer, the weights' type."""
        digest = hashlib.blake2b(digest_size=16)
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        digest.update(json.dumps(self.inputs.settings(), sort_keys=True, default=str).encode())
        digest.update(
            json.dumps(sorted(self.inputs.processor.tokenizer.get_vocab().items())).encode()
        )
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Save a fine-tuned checkpoint with its processor; of a frozen one nothing, its own folder has it."""
        if not self.frozen:
            self.model.save_pretrained(folder)
            self.inputs.processor.save_pretrained(folder)

    def load_weights(self, folder: str | Path) -> None:
        """Take the weights that `save` wrote from this very model into place, e.g. to resume training."""
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
    """Load a CLIP or SigLIP checkpoint: a folder, a hub name, or the run folder of `cir-cot clip` -> ClipEncoder.

    `pad_ratio` None is what the run folder was trained with, and `fallback` for any other checkpoint.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    kind = read_model_type(path)
    if kind not in PADDING:
        raise InputError(
            f"{path}: model_type {kind!r} is no text-image encoder that this knows: {', '.join(PADDING)}"
        )
    if pad_ratio is None:
        ours = (Path(path) / SETTINGS_FILE).is_file()
        pad_ratio = read_settings(path)["settings"].get("pad_ratio", fallback) if ours else fallback
    model = load_model(path, transformers.AutoModel, **model_options(DTYPES[dtype], "sdpa", None))
    length = model.config.text_config.max_position_embeddings
    return ClipEncoder(
        model, ClipInputs(load_processor(path), PADDING[kind], length, pad_ratio), frozen
    )
