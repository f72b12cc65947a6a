"""Build tiny CLIP and SigLIP checkpoints with their real processors: no download, saved in a second."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from cir_cot import compat  # noqa: F401  # isort: skip
import transformers

from cir_cot.errors import InputError

from .tiny_qwen import CORPUS

LENGTH = 48  # tokens of a text
# Every byte that can end a character, as the end of a word. A tiny vocabulary then encodes every text, as the real one
# does. Otherwise such a byte would be the unknown token, which is also the token that ends a text.
ENDINGS = tuple(map(chr, (*range(33, 127), *range(0x4E00, 0x4E40))))

# A configuration, the class of its model, and a processor.
Parts = tuple[
    transformers.PretrainedConfig, type[transformers.PreTrainedModel], transformers.ProcessorMixin
]


def write_tiny_clip(
    folder: str | Path,
    model_type: str = "clip",
    corpus: Iterable[str] = CORPUS,
    vocab_size: int = 1024,
    seed: int = 0,
    dim: int = 32,
    hidden: int = 64,
    layers: int = 2,
    pixels: int = 84,
    patch: int = 14,
    init: float = 1.0,
) -> Path:
    """Save a tiny CLIP ("clip") or SigLIP ("siglip") with its processor -> the folder.

    Args:
        folder: Where the checkpoint goes.
        model_type: clip or siglip.
        corpus: Texts that the tokenizer is trained on.
        vocab_size: Largest size of its vocabulary.
        seed: Of the random weights.
        dim: Width of CLIP's shared space; SigLIP's is `hidden`.
        hidden: Width of both towers.
        layers: Layers of each tower.
        pixels: Side of a picture that is not resampled.
        patch: Side of a patch in pixels.
        init: Factor on CLIP's random weights.

    The result depends on the arguments only.
    """
    tokenizer = transformers.CLIPTokenizer().train_new_from_iterator(
        [*corpus, *ENDINGS], vocab_size
    )
    # Sizes of both towers.
    tower = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers}
    tower["num_attention_heads"] = 4
    text = tower | {"vocab_size": len(tokenizer), "max_position_embeddings": LENGTH}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        text[name] = getattr(tokenizer, name)
    vision = tower | {"image_size": pixels, "patch_size": patch}
    # Configuration, model and processor of the chosen kind.
    if model_type == "clip":
        config, kind, processor = _clip(text, vision, tokenizer, dim, init)
    elif model_type == "siglip":
        config, kind, processor = _siglip(text, vision, tokenizer)
    else:
        raise InputError(f"model_type {model_type!r} has no tiny model here: use clip or siglip")
    # Draw the weights from the seed alone.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


def _clip(
    text: dict[str, Any], vision: dict[str, Any], tokenizer: Any, dim: int, init: float
) -> Parts:
    """Return the parts of a CLIP checkpoint."""
    config = transformers.CLIPConfig(
        text_config=text, vision_config=vision, projection_dim=dim, initializer_factor=init
    )
    side = vision["image_size"]
    images = transformers.CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    return config, transformers.CLIPModel, transformers.CLIPProcessor(images, tokenizer)


def _siglip(text: dict[str, Any], vision: dict[str, Any], tokenizer: Any) -> Parts:
    """Return the parts of a SigLIP checkpoint, which normalises pixels to [-1, 1]."""
    config = transformers.SiglipConfig(text_config=text, vision_config=vision)
    side = vision["image_size"]
    images = transformers.SiglipImageProcessor(
        size={"height": side, "width": side}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return config, transformers.SiglipModel, transformers.SiglipProcessor(images, tokenizer)
