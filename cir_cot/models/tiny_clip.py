"""Tiny CLIP and SigLIP with their real processors, built from code: checkpoints like any other, saved in a second."""

from collections.abc import Iterable
from pathlib import Path

import torch

from cir_cot import compat  # noqa: F401  # isort: skip
import transformers

from cir_cot.errors import InputError

from .tiny_qwen import CORPUS

LENGTH = 48  # tokens of a text
# Each byte that can end a character, at the end of a word: like the real vocabulary, a tiny one then knows every text.
# Where it did not, the unknown token would stand, and that is the one that ends a text.
ENDINGS = tuple(map(chr, (*range(33, 127), *range(0x4E00, 0x4E40))))


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

    `dim` is the width of the shared space of CLIP; SigLIP's is `hidden`. `init` scales the random weights. A picture of
    `pixels` x `pixels` is not resampled. Deterministic in its arguments.
    """
    tokenizer = transformers.CLIPTokenizer().train_new_from_iterator(
        [*corpus, *ENDINGS], vocab_size
    )
    tower = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers}
    tower |= {"num_attention_heads": 4}
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": LENGTH}
    text |= {name: getattr(tokenizer, name) for name in names}
    vision = {"image_size": pixels, "patch_size": patch}
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    if model_type == "clip":
        config = transformers.CLIPConfig(
            text_config=tower | text,
            vision_config=tower | vision,
            projection_dim=dim,
            initializer_factor=init,
        )
        sizes = {
            "size": {"shortest_edge": pixels},
            "crop_size": {"height": pixels, "width": pixels},
        }
        kind, images = transformers.CLIPModel, transformers.CLIPImageProcessor(**sizes)
        processor = transformers.CLIPProcessor(images, tokenizer)
    elif model_type == "siglip":
        config = transformers.SiglipConfig(text_config=tower | text, vision_config=tower | vision)
        size = {"height": pixels, "width": pixels}
        kind, images = (
            transformers.SiglipModel,
            transformers.SiglipImageProcessor(size=size, **half),
        )
        processor = transformers.SiglipProcessor(images, tokenizer)
    else:
        raise InputError(f"model_type {model_type!r} has no tiny model here: use clip or siglip")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)
