"""Tiny Qwen2-VL, Qwen2.5-VL and Qwen3-VL with their real processors, built from code: no download, under a second.

They are checkpoints like any other: `write_tiny` saves what `from_pretrained` loads. Tests and the quickstart use
them, so that both go through the same code as Qwen2.5-VL-7B. With the default sizes a picture of 84 x 84 pixels
becomes 3 x 3 visual tokens, one for each cell of a 3 x 3 scene, and is not resampled.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from cir_cot import compat  # noqa: F401  # isort: skip
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from cir_cot.errors import InputError

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
SPARE_ROWS = 16  # at least so many rows beyond the tokenizer, as in the real checkpoints


@dataclass(frozen=True)
class Sizes:
    """Every size of a tiny model. `heads` must divide `hidden` into heads of a multiple of 8 dimensions."""

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
    window: int = (
        56  # Qwen2.5-VL, pixels: two visual tokens, so that a 3 x 3 picture has several windows
    )
    patch: int = 14
    merge: int = 2
    init_std: float = 0.02


def tiny_tokenizer(
    corpus: Iterable[str] = CORPUS, vocab_size: int = 2048
) -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE learned from `corpus`, with Qwen's special tokens at its end -> tokenizer; any text encodes.

    Words (with their leading space, hyphens inside) and tags are single tokens as far as `vocab_size` allows,
    the special tokens not counted. Deterministic in the corpus and `vocab_size`.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=1, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(corpus, trainer)
    bpe.add_special_tokens(list(SPECIALS))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_start_token": "<|vision_start|>",
            "vision_end_token": "<|vision_end|>",
        },
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def tiny_processor(
    model_type: str,
    tokenizer: transformers.PreTrainedTokenizerFast,
    patch: int = 14,
    merge: int = 2,
    min_pixels: int = 28 * 28,
    max_pixels: int = 84 * 84,
) -> transformers.ProcessorMixin:
    """Processor of `model_type` around `tokenizer`, the class a real checkpoint has.

    A picture is resampled only when a side is no multiple of patch x merge pixels, or its area lies outside
    min_pixels..max_pixels (84 x 84 stays as it is).
    """
    pixels = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    sizes = {"patch_size": patch, "merge_size": merge, "temporal_patch_size": 2, "size": pixels}
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    if model_type == "qwen2_vl":
        kind, video, norm = transformers.Qwen2VLProcessor, transformers.Qwen2VLVideoProcessor, {}
    elif model_type == "qwen2_5_vl":
        kind, video, norm = transformers.Qwen2_5_VLProcessor, transformers.Qwen2VLVideoProcessor, {}
    elif model_type == "qwen3_vl":
        kind, video, norm = transformers.Qwen3VLProcessor, transformers.Qwen3VLVideoProcessor, half
    else:
        raise _unknown(model_type)
    images = transformers.Qwen2VLImageProcessor(**sizes, **norm)
    videos = video(**sizes, **norm)
    return kind(images, tokenizer, videos, chat_template=tokenizer.chat_template)


def tiny_model(
    model_type: str, tokenizer: transformers.PreTrainedTokenizerFast, seed: int = 0, **sizes: object
) -> transformers.PreTrainedModel:
    """Randomly initialised model of `model_type` for `tokenizer`, float32, in eval mode; `sizes` are those of Sizes.

    Its vocabulary is the tokenizer's plus at least 16 spare rows, a multiple of 64. The global random state is
    left as it was.
    """
    chosen = Sizes(**sizes)
    if model_type == "qwen2_vl":
        kind, vision = transformers.Qwen2VLForConditionalGeneration, _vision2(chosen)
    elif model_type == "qwen2_5_vl":
        kind, vision = transformers.Qwen2_5_VLForConditionalGeneration, _vision25(chosen)
    elif model_type == "qwen3_vl":
        kind, vision = transformers.Qwen3VLForConditionalGeneration, _vision3(chosen)
    else:
        raise _unknown(model_type)
    config = kind.config_class(
        text_config=_text(model_type, chosen, tokenizer),
        vision_config=vision,
        tie_word_embeddings=chosen.tie,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
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
    **sizes: object,
) -> Path:
    """Saves a tiny checkpoint with its processor, as `from_pretrained` expects them -> the folder."""
    tokenizer = tiny_tokenizer(corpus, vocab_size)
    chosen = Sizes(**sizes)
    model = tiny_model(model_type, tokenizer, seed, **sizes)
    processor = tiny_processor(
        model_type, tokenizer, chosen.patch, chosen.merge, max_pixels=max_pixels
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


def _unknown(model_type: str) -> InputError:
    return InputError(
        f"model_type {model_type!r} has no tiny model: use qwen2_vl, qwen2_5_vl or qwen3_vl"
    )


def _text(model_type: str, sizes: Sizes, tokenizer: transformers.PreTrainedTokenizerFast) -> dict:
    """Text configuration; M-RoPE splits half a head into (time, height, width) as the real models do."""
    half = sizes.hidden // sizes.heads // 2
    rope = {"rope_type": "default", "rope_theta": 1e6}
    extra = {}
    if model_type == "qwen3_vl":
        side = half // 3  # interleaved: every third frequency, so no part may exceed a third
        rope |= {"mrope_section": [half - 2 * side, side, side], "mrope_interleaved": True}
        extra = {"head_dim": 2 * half}
    else:
        side = (half - half // 4) // 2
        rope |= {"mrope_section": [half - 2 * side, side, side]}
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


def _vision(sizes: Sizes) -> dict:
    return {
        "depth": sizes.vision_depth,
        "num_heads": sizes.vision_heads,
        "patch_size": sizes.patch,
        "spatial_merge_size": sizes.merge,
        "temporal_patch_size": 2,
        "initializer_range": sizes.init_std,
    }


def _vision2(sizes: Sizes) -> dict:
    """Qwen2-VL names the tower's width embed_dim and the language model's hidden_size."""
    ratio = -(-sizes.vision_intermediate // sizes.vision_hidden)
    return _vision(sizes) | {
        "embed_dim": sizes.vision_hidden,
        "hidden_size": sizes.hidden,
        "mlp_ratio": ratio,
    }


def _vision25(sizes: Sizes) -> dict:
    return _vision(sizes) | {
        "hidden_size": sizes.vision_hidden,
        "intermediate_size": sizes.vision_intermediate,
        "out_hidden_size": sizes.hidden,
        "window_size": sizes.window,
        "fullatt_block_indexes": [sizes.vision_depth - 1],
    }


def _vision3(sizes: Sizes) -> dict:
    """Qwen3-VL adds the first block's output to the first language layer (deepstack)."""
    return _vision(sizes) | {
        "hidden_size": sizes.vision_hidden,
        "intermediate_size": sizes.vision_intermediate,
        "out_hidden_size": sizes.hidden,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
