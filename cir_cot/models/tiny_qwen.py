"""Build tiny Qwen2-VL, Qwen2.5-VL and Qwen3-VL checkpoints with their real processors: no download, under a second.

`write_tiny` saves what `from_pretrained` loads. Tests and the quickstart use these checkpoints, and so go through the
same code as Qwen2.5-VL-7B. With the default sizes, a picture of 84 x 84 pixels becomes 3 x 3 visual tokens, one for
each cell of a 3 x 3 scene, and is not resampled.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cir_cot import compat  # noqa: F401  # isort: skip
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from cir_cot.errors import InputError

from .special_tokens import named_tokenizer, token_id

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# A tag ('</caption>'), a word with its leading space and its hyphens (' top-left'), punctuation, white space.
PIECES = (
    r"</?[A-Za-z][\w-]*>| ?[\p{L}\p{N}]+(?:-[\p{L}\p{N}]+)*| ?[^\s\p{L}\p{N}<]+|<|\s+(?!\S)|\s+"
)
CORPUS = (
    "<caption>a red shirt</caption><reasoning>keep the shirt, change its colour</reasoning>"
    "<conclusion>a blue shirt</conclusion>",
    "system user assistant\nDescribe this image.",
)
# Qwen's turns without a default system prompt (as Qwen3-VL's): a tiny model pays for every token.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPARE_ROWS = (
    16  # least number of rows beyond the tokenizer; the real checkpoints have spare rows, too
)


@dataclass(frozen=True)
class Sizes:
    """Hold every size of a tiny model; `hidden` / `heads` must be a multiple of 8."""

    hidden: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 384
    tie: bool = True
    vision_hidden: int = 64
    vision_depth: int = 2
    vision_heads: int = 4
    vision_intermediate: int = 128
    window: int = 56  # pixels, of Qwen2.5-VL: 2 visual tokens, so that 3 x 3 have several windows
    patch: int = 14
    merge: int = 2
    init_std: float = 0.02


def tiny_tokenizer(
    corpus: Iterable[str] = CORPUS, vocab_size: int = 2048
) -> transformers.PreTrainedTokenizerFast:
    """Learn byte-level BPE from `corpus`, with Qwen's special tokens at its end -> tokenizer; it encodes any text.

    Words (with their leading space, hyphens inside) and tags are single tokens as far as `vocab_size` allows, not
    counting special tokens. The result depends on the corpus and `vocab_size` only.
    """
    # Split text into pieces, which no token crosses, and pieces into bytes.
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    # Every byte is a token, so that no text is unknown.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=1, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(corpus, trainer)
    bpe.add_special_tokens(list(SPECIALS))
    return named_tokenizer(bpe, CHAT_TEMPLATE)


def tiny_processor(
    model_type: str,
    tokenizer: transformers.PreTrainedTokenizerFast,
    patch: int = 14,
    merge: int = 2,
    min_pixels: int = 28 * 28,
    max_pixels: int = 84 * 84,
) -> transformers.ProcessorMixin:
    """Build the processor of `model_type` around a tokenizer, of the class that a real checkpoint has.

    A picture is resampled only if a side is no multiple of patch x merge pixels, or its area lies outside
    min_pixels..max_pixels; 84 x 84 stays as it is.
    """
    sizes: dict[str, Any] = {"patch_size": patch, "merge_size": merge, "temporal_patch_size": 2}
    sizes["size"] = {"shortest_edge": min_pixels, "longest_edge": max_pixels}  # areas, both
    # The generations differ in their classes; Qwen3-VL also normalises to [-1, 1].
    kind: type[Any]
    video: type[Any] = transformers.Qwen2VLVideoProcessor
    if model_type == "qwen2_vl":
        kind = transformers.Qwen2VLProcessor
    elif model_type == "qwen2_5_vl":
        kind = transformers.Qwen2_5_VLProcessor
    elif model_type == "qwen3_vl":
        kind = transformers.Qwen3VLProcessor
        video = transformers.Qwen3VLVideoProcessor
        sizes |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    else:
        raise _unknown(model_type)
    images = transformers.Qwen2VLImageProcessor(**sizes)
    videos = video(**sizes)
    return kind(images, tokenizer, videos, chat_template=tokenizer.chat_template)


def tiny_model(
    model_type: str, tokenizer: transformers.PreTrainedTokenizerFast, seed: int = 0, **sizes: Any
) -> transformers.PreTrainedModel:
    """Build a randomly initialised model of `model_type` for a tokenizer, float32, in eval mode.

    `sizes` are fields of Sizes. The vocabulary is the tokenizer's plus at least 16 spare rows, a multiple of 64. The
    global random state is left as it was.
    """
    chosen = Sizes(**sizes)
    kind, config_class, vision = _generation(model_type, chosen)
    config = config_class(
        text_config=_text(model_type, chosen, tokenizer),
        vision_config=vision,
        tie_word_embeddings=chosen.tie,
        image_token_id=token_id(tokenizer, "<|image_pad|>"),
        video_token_id=token_id(tokenizer, "<|video_pad|>"),
        vision_start_token_id=token_id(tokenizer, "<|vision_start|>"),
        vision_end_token_id=token_id(tokenizer, "<|vision_end|>"),
    )
    # Draw the weights from the seed alone.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.eval()


def write_tiny(
    folder: str | Path,
    model_type: str = "qwen2_5_vl",
    corpus: Iterable[str] = CORPUS,
    vocab_size: int = 2048,
    seed: int = 0,
    max_pixels: int = 84 * 84,
    **sizes: Any,
) -> Path:
    """Save a tiny checkpoint with its processor, as `from_pretrained` expects them -> the folder.

    Example:
        backbone = load_backbone(write_tiny("tiny", "qwen3_vl", hidden=64))
    """
    tokenizer = tiny_tokenizer(corpus, vocab_size)
    chosen = Sizes(**sizes)
    model = tiny_model(model_type, tokenizer, seed, **sizes)
    processor = tiny_processor(
        model_type, tokenizer, chosen.patch, chosen.merge, max_pixels=max_pixels
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


def _generation(model_type: str, sizes: Sizes) -> tuple[type, Callable[..., Any], dict[str, Any]]:
    """Return the classes of model and configuration, and the vision configuration."""
    if model_type == "qwen2_vl":
        kind: type = transformers.Qwen2VLForConditionalGeneration
        return kind, transformers.Qwen2VLConfig, _vision2(sizes)
    if model_type == "qwen2_5_vl":
        kind = transformers.Qwen2_5_VLForConditionalGeneration
        return kind, transformers.Qwen2_5_VLConfig, _vision25(sizes)
    if model_type == "qwen3_vl":
        kind = transformers.Qwen3VLForConditionalGeneration
        return kind, transformers.Qwen3VLConfig, _vision3(sizes)
    raise _unknown(model_type)


def _unknown(model_type: str) -> InputError:
    """Return the error for a model_type without a tiny model."""
    return InputError(
        f"model_type {model_type!r} has no tiny model: use qwen2_vl, qwen2_5_vl or qwen3_vl"
    )


def _text(model_type: str, sizes: Sizes, tokenizer: transformers.PreTrainedTokenizerFast) -> dict:
    """Return the text configuration; M-RoPE splits half a head into (time, height, width) as the real models do."""
    half = sizes.hidden // sizes.heads // 2
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e6}
    extra = {}
    # Height and width get equal sections, and time the rest: about a quarter, or a third where they are interleaved.
    if model_type == "qwen3_vl":
        side = half // 3  # interleaved: every third frequency, so no section may exceed a third
        rope["mrope_interleaved"] = True
        extra = {"head_dim": 2 * half}
    else:
        side = (half - half // 4) // 2
    rope["mrope_section"] = [half - 2 * side, side, side]
    # Pad the vocabulary to a multiple of 64 rows, as the real checkpoints do.
    rows = len(tokenizer) + SPARE_ROWS
    return {
        "vocab_size": -(-rows // 64) * 64,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "rope_parameters": rope,
        "initializer_range": sizes.init_std,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **extra,
    }


def _vision(sizes: Sizes) -> dict[str, Any]:
    """Return what the vision configurations of all generations have in common."""
    return {
        "depth": sizes.vision_depth,
        "num_heads": sizes.vision_heads,
        "patch_size": sizes.patch,
        "spatial_merge_size": sizes.merge,
        "temporal_patch_size": 2,
        "initializer_range": sizes.init_std,
    }


def _vision2(sizes: Sizes) -> dict[str, Any]:
    """Return Qwen2-VL's, where embed_dim is the tower's width and hidden_size the language model's."""
    ratio = -(-sizes.vision_intermediate // sizes.vision_hidden)
    return _vision(sizes) | {
        "embed_dim": sizes.vision_hidden,
        "hidden_size": sizes.hidden,
        "mlp_ratio": ratio,
    }


def _vision25(sizes: Sizes) -> dict[str, Any]:
    """Return Qwen2.5-VL's, whose last block alone attends beyond windows."""
    return _vision(sizes) | {
        "hidden_size": sizes.vision_hidden,
        "intermediate_size": sizes.vision_intermediate,
        "out_hidden_size": sizes.hidden,
        "window_size": sizes.window,
        "fullatt_block_indexes": [sizes.vision_depth - 1],
    }


def _vision3(sizes: Sizes) -> dict[str, Any]:
    """Return Qwen3-VL's, where the first block's output is added to the first language layer (deepstack)."""
    return _vision(sizes) | {
        "hidden_size": sizes.vision_hidden,
        "intermediate_size": sizes.vision_intermediate,
        "out_hidden_size": sizes.hidden,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
