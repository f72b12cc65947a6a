"""Hold the published configurations of Qwen2.5-VL-3B and -7B, and build models of these sizes.

The numbers are those of the config.json files on the hub, in their own flat form. Models of the real size can thus be
built without a checkpoint, with random weights, to count parameters or to measure speed.
"""

from typing import Any

import torch

from cir_cot import compat  # noqa: F401  # isort: skip
import transformers

VISION: dict[str, Any] = {
    "depth": 32,
    "hidden_act": "silu",
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "in_chans": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "spatial_patch_size": 14,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "tokens_per_second": 2,
    "temporal_patch_size": 2,
}
COMMON: dict[str, Any] = {
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 128000,
    "model_type": "qwen2_5_vl",
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "use_cache": True,
    "use_sliding_window": False,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
}
SIZES: dict[str, dict[str, Any]] = {
    "3B": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_attention_heads": 16,
        "num_hidden_layers": 36,
        "num_key_value_heads": 2,
        "max_window_layers": 70,
        "tie_word_embeddings": True,
        "vocab_size": 151936,
    },
    "7B": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "max_window_layers": 28,
        "tie_word_embeddings": False,
        "vocab_size": 152064,
    },
}


def published_config(size: str, layers: int | None = None) -> transformers.Qwen2_5_VLConfig:
    """Return the configuration of Qwen2.5-VL of `size` (3B, 7B), optionally with fewer layers in both towers."""
    text = dict(SIZES[size])
    vision = VISION | {"out_hidden_size": text["hidden_size"]}
    if layers is not None:
        text |= {"num_hidden_layers": layers, "max_window_layers": layers}
        vision |= {"depth": layers, "fullatt_block_indexes": [layers - 1]}
    return transformers.Qwen2_5_VLConfig(**COMMON, **text, vision_config=vision)


def published_model(
    size: str,
    tokenizer: transformers.PreTrainedTokenizerFast,
    device: torch.device,
    dtype: torch.dtype,
    layers: int | None = None,
) -> transformers.PreTrainedModel:
    """Build a model of `published_config` with random weights, directly on a device.

    Args:
        size: 3B or 7B.
        tokenizer: Has Qwen's special tokens. It may be smaller than Qwen's: the matrices keep all their rows.
        device: Where the weights are drawn.
        dtype: Type of the weights.
        layers: Fewer layers in both towers.
    """
    # Point the special tokens at the ids of this tokenizer.
    config = published_config(size, layers)
    tokens = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    tokens |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    for name, token in tokens.items():
        setattr(config, name, tokenizer.convert_tokens_to_ids(token))
    # Draw the weights in their final type: float32 ones of 7B would need twice the memory.
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(before)
