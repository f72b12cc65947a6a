"""The published configurations of Qwen2.5-VL-3B and -7B, on the meta device: where LoRA lands, counts, the spare row.

The numbers are those of the config.json files on the hub, in their own flat form. The real tokenizer is not at hand:
one with as many entries (151,643 words and bytes, 22 added tokens) stands in for it.
"""

import pytest
import torch
from tokenizers import Tokenizer, models

from cir_cot import _torchvision  # noqa: F401  # isort: skip
import transformers

from cir_cot.backbone import Backbone, load_backbone
from cir_cot.tiny import tiny_processor

VISION = {
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
COMMON = {
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
SIZES = {
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
PARAMETERS = {"3B": 3_754_622_976, "7B": 8_292_166_656}  # as the hub counts their safetensors files
ENTRIES = 151_665


def entries() -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of 151,665 entries, Qwen2.5-VL's image and video tokens at their ids."""
    words = {f"w{number}": number for number in range(151_643)}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "w0")))
    names = {12: "<|image_pad|>", 13: "<|video_pad|>"}
    tokenizer.add_tokens([names.get(number, f"<|{number}|>") for number in range(22)], special_tokens=True)
    return tokenizer


def real(size: str, **options) -> Backbone:
    config = transformers.Qwen2_5_VLConfig(
        **COMMON, **SIZES[size], vision_config=VISION | {"out_hidden_size": SIZES[size]["hidden_size"]}
    )
    with torch.device("meta"):
        model = transformers.Qwen2_5_VLForConditionalGeneration(config)
        return load_backbone((model, tiny_processor("qwen2_5_vl", entries())), **options)


def count(backbone: Backbone, trained: bool = False) -> int:
    return sum(weight.numel() for weight in backbone.parameters() if weight.requires_grad or not trained)


@pytest.mark.parametrize("size", SIZES)
def test_the_token_takes_a_spare_row(size):
    backbone = real(size)
    assert backbone.ret_id == ENTRIES < SIZES[size]["vocab_size"]
    assert len(backbone.processor.tokenizer) == ENTRIES + 1
    for layer in (backbone.plain.get_input_embeddings(), backbone.plain.get_output_embeddings()):
        assert layer.weight.shape == (SIZES[size]["vocab_size"], SIZES[size]["hidden_size"])
    assert (backbone.image_token_id, backbone.merge_size) == (151655, 2)
    assert backbone.hidden_size == SIZES[size]["hidden_size"]


@pytest.mark.parametrize("size", SIZES)
def test_parameter_counts(size):
    backbone = real(size)
    assert count(backbone) == PARAMETERS[size]
    tower = sum(weight.numel() for weight in backbone.plain.model.visual.parameters())
    assert count(backbone, trained=True) == PARAMETERS[size] - tower
    assert tower == {"3B": 668_684_288, "7B": 676_550_144}[size]
    assert count(real(size, freeze_vision=False), trained=True) == PARAMETERS[size]


@pytest.mark.parametrize("size", SIZES)
def test_lora_hits_the_language_models_linear_layers_and_nothing_else(size):
    rank, sizes = 16, SIZES[size]
    backbone = real(size, lora={"r": rank})
    width, wide, blocks = sizes["hidden_size"], sizes["intermediate_size"], sizes["num_hidden_layers"]
    narrow = width // sizes["num_attention_heads"] * sizes["num_key_value_heads"]
    shapes = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (width, narrow),
        "self_attn.v_proj": (width, narrow),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (width, wide),
        "mlp.up_proj": (width, wide),
        "mlp.down_proj": (wide, width),
    }
    path = "model.base_model.model.model.language_model.layers"
    expected = {f"{path}.{block}.{name}" for block in range(blocks) for name in shapes}
    found = {name.removesuffix(".lora_A") for name, _ in backbone.named_modules() if name.endswith(".lora_A")}
    assert found == expected
    assert len(found) == {"3B": 252, "7B": 196}[size]
    rows = 1 if sizes["tie_word_embeddings"] else 2  # of the retrieval token: embedding, and an untied head
    adapters = blocks * rank * sum(one + other for one, other in shapes.values())
    assert count(backbone, trained=True) == adapters + rows * width
    assert adapters == {"3B": 29_933_568, "7B": 40_370_176}[size]


def test_the_tower_has_layers_of_the_same_names():
    """Why LoRA's target is a path: the vision tower's MLP has the names of the language model's."""
    names = {name.rsplit(".")[-1] for name, _ in real("3B").plain.model.visual.named_modules()}
    assert {"gate_proj", "up_proj", "down_proj"} <= names
