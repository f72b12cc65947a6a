"""The published configurations of Qwen2.5-VL-3B and -7B, on the meta device: where LoRA lands, counts, the spare row.

With Qwen's own vocabulary where dashscope is installed.
"""

import pytest
import torch

from cir_cot import compat  # noqa: F401  # isort: skip
import transformers

from cir_cot.models.backbone import Backbone, load_backbone
from cir_cot.models.qwen_vocabulary import INSTALL, qwen_tokenizer, vocabulary_file
from cir_cot.models.tiny_qwen import tiny_processor
from cir_cot.profiling.qwen_sizes import SIZES, published_config

pytestmark = pytest.mark.skipif(vocabulary_file() is None, reason=f"needs dashscope: {INSTALL}")
ENTRIES = 151_665  # of the tokenizer: 151,643 words and bytes, 22 added tokens
PARAMETERS = {"3B": 3_754_622_976, "7B": 8_292_166_656}  # as the hub counts their safetensors files


def real(size: str, **options) -> Backbone:
    with torch.device("meta"):
        model = transformers.Qwen2_5_VLForConditionalGeneration(published_config(size))
        return load_backbone((model, tiny_processor("qwen2_5_vl", qwen_tokenizer())), **options)


def count(backbone: Backbone, trained: bool = False) -> int:
    return sum(
        weight.numel() for weight in backbone.parameters() if weight.requires_grad or not trained
    )


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
    width, wide, blocks = (
        sizes["hidden_size"],
        sizes["intermediate_size"],
        sizes["num_hidden_layers"],
    )
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
    found = {
        name.removesuffix(".lora_A")
        for name, _ in backbone.named_modules()
        if name.endswith(".lora_A")
    }
    assert found == expected
    assert len(found) == {"3B": 252, "7B": 196}[size]
    rows = (
        1 if sizes["tie_word_embeddings"] else 2
    )  # of the retrieval token: embedding, and an untied head
    adapters = blocks * rank * sum(one + other for one, other in shapes.values())
    assert count(backbone, trained=True) == adapters + rows * width
    assert adapters == {"3B": 29_933_568, "7B": 40_370_176}[size]


def test_the_tower_has_layers_of_the_same_names():
    """Why LoRA's target is a path: the vision tower's MLP has the names of the language model's."""
    names = {name.rsplit(".")[-1] for name, _ in real("3B").plain.model.visual.named_modules()}
    assert {"gate_proj", "up_proj", "down_proj"} <= names


def test_the_last_block_of_a_shallow_tower_sees_the_complete_picture():
    vision = published_config("7B", layers=2).vision_config
    assert (vision.depth, vision.fullatt_block_indexes) == (2, [1])
