"""The backbone on tiny models: padding, cache, adapters, the retrieval token's row, and what is refused."""

import functools
import inspect
import json
import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cir_cot import compat  # noqa: F401  # isort: skip
import peft
import transformers
from peft.tuners.trainable_tokens import TrainableTokensLayer

from cir_cot.errors import InputError
from cir_cot.models.backbone import Backbone, cache_argument, linear_layers, load_backbone
from cir_cot.models.chat import ChatEncoder
from cir_cot.models.tiny_qwen import tiny_model, tiny_processor, tiny_tokenizer, write_tiny
from cir_cot.prompts import RET

TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
SMALL = {"hidden": 64, "layers": 2, "intermediate": 96, "vision_hidden": 32}
LORA = {"r": 4, "dropout": 0.0}
TEXTS = ("red", "a blue shirt, and no sleeves at all", "keep")
SHAPES = ((84, 84), (84, 56), (28, 56))  # height, width


def build(model_type: str = "qwen2_5_vl", tie: bool = True, **options) -> Backbone:
    tokenizer = tiny_tokenizer()
    return load_backbone(
        (
            tiny_model(model_type, tokenizer, tie=tie, **SMALL),
            tiny_processor(model_type, tokenizer),
        ),
        **options,
    )


def encode(
    backbone: Backbone, side: str = "right", rows: slice = slice(None)
) -> dict[str, torch.Tensor]:
    """Rows of different lengths and picture sizes, each ending in the retrieval token."""
    processor, random = backbone.processor, np.random.default_rng(0)
    pictures = [
        Image.fromarray(random.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in SHAPES
    ]
    content = [[{"type": "image"}, {"type": "text", "text": text}] for text in TEXTS]
    chats = [
        processor.apply_chat_template([{"role": "user", "content": part}], tokenize=False)
        for part in content
    ]
    processor.tokenizer.padding_side = side
    texts = [chat + RET for chat in chats][rows]
    return dict(processor(text=texts, images=pictures[rows], return_tensors="pt", padding=True))


def nudge(backbone: Backbone, seed: int = 0) -> None:
    """Move every trainable weight, so that adapters (which start as zero) do something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in backbone.parameters():
            if weight.requires_grad:
                weight += 0.05 * torch.randn(weight.shape, generator=generator)


@torch.no_grad()
def hidden_rows(backbone: Backbone, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Hidden states of each row without its padding."""
    return [
        row[mask.bool()]
        for row, mask in zip(backbone(inputs), inputs["attention_mask"], strict=True)
    ]


# Positions, padding, cache


@pytest.mark.parametrize("model_type", TYPES)
def test_padding_does_not_matter(model_type):
    backbone = build(model_type)
    right, left = (hidden_rows(backbone, encode(backbone, side)) for side in ("right", "left"))
    for row in range(3):
        (alone,) = hidden_rows(backbone, encode(backbone, rows=slice(row, row + 1)))
        assert alone.shape[1] == backbone.hidden_size == 64
        torch.testing.assert_close(right[row], alone, rtol=0, atol=1e-5)
        torch.testing.assert_close(left[row], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_are_those_of_the_row_alone(model_type, side):
    backbone = build(model_type)
    inputs = encode(backbone, side)
    positions = backbone.positions(inputs)
    for row in range(3):
        alone = backbone.positions(encode(backbone, rows=slice(row, row + 1)))[:, 0]
        mask = inputs["attention_mask"][row].bool()
        assert torch.equal(positions[:, row, mask], alone)
        assert not positions[:, row, ~mask].any()
    del inputs["mm_token_type_ids"]
    assert torch.equal(backbone.positions(inputs), positions)


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("reserved", [0, 3])
def test_the_encoder_counts_positions_as_the_model_does(model_type, side, reserved):
    backbone = build(model_type)
    encoder = ChatEncoder(backbone.processor, backbone.ret_id, side, reserved)
    pictures = [Image.new("RGB", (width, height)) for height, width in SHAPES]
    answers = encoder.answer_token_ids(["<caption>a</caption>", "", "b"])
    inputs, _ = encoder.query(pictures, TEXTS, answers)
    counted = backbone.positions(inputs)
    del inputs["rope_positions"]
    assert torch.equal(counted, backbone.positions(inputs))
    assert counted.unique().numel() > 10


def test_saving_and_loading_a_folder_shows_no_bars_and_downloads_keep_theirs(tmp_path, capfd):
    build().save(tmp_path)
    load_backbone(tmp_path)
    said = capfd.readouterr()
    assert "Loading weights" not in said.err
    assert "Writing model shards" not in said.err
    assert transformers.utils.logging.is_progress_bar_enabled()


def test_positions_of_a_picture_count_rows_and_columns():
    backbone = build()
    inputs = encode(backbone, rows=slice(1))  # one row, 3 x 3 visual tokens
    time, height, width = backbone.positions(inputs)[:, 0]
    image = inputs["input_ids"][0] == backbone.image_token_id
    start = int(image.nonzero()[0])
    assert (time[image] - start).tolist() == [0] * 9
    assert (height[image] - start).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert (width[image] - start).tolist() == [0, 1, 2] * 3
    following = backbone.next_positions(backbone.positions(inputs)[:, :, : start + 9])
    assert following.tolist() == [[[start + 3]]] * 3
    after = time[start + 9 :]
    assert after.tolist() == list(
        range(start + 3, start + 3 + len(after))
    )  # text goes on after the largest


@torch.no_grad()
def check_decoding(backbone: Backbone, side: str, tolerance: float = 1e-5) -> None:
    """Decode three given tokens with the cache, the second row leaving after the first: same as one full forward."""
    inputs = encode(backbone, side)
    new = torch.tensor([[5, 70, backbone.ret_id], [300, 6, 7], [8, backbone.ret_id, 9]])
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(new)], dim=1)
    kinds = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(new)], dim=1)
    ids = torch.cat([inputs["input_ids"], new], dim=1)
    full = backbone(
        {**inputs, "input_ids": ids, "attention_mask": mask, "mm_token_type_ids": kinds}
    )
    cache, positions, rows = backbone.new_cache(), backbone.positions(inputs), torch.arange(3)
    backbone(inputs, positions, cache)
    length = inputs["input_ids"].shape[1]
    for step in range(3):
        positions = backbone.next_positions(positions)
        step_inputs = {
            "input_ids": new[rows, step, None],
            "attention_mask": mask[rows, : length + step + 1],
        }
        hidden = backbone(step_inputs, positions, cache)
        torch.testing.assert_close(hidden[:, 0], full[rows, length + step], rtol=0, atol=tolerance)
        if step == 0:
            rows = torch.tensor([0, 2])
            backbone.keep_rows(cache, rows)
            positions = positions[:, rows]


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_decoding_with_the_cache_equals_the_full_forward(model_type, side):
    backbone = build(model_type, lora=LORA)
    nudge(backbone)
    check_decoding(backbone, side)


@torch.no_grad()
def test_a_filled_cache_needs_positions():
    backbone = build()
    inputs, cache = encode(backbone), backbone.new_cache()
    first = backbone(inputs, cache=cache)
    torch.testing.assert_close(first, backbone(inputs))
    with pytest.raises(ValueError, match="next_positions"):
        backbone(
            {"input_ids": torch.tensor([[1]] * 3), "attention_mask": torch.ones(3, 99)}, cache=cache
        )


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("tie", [True, False])
@torch.no_grad()
def test_logits_are_those_of_transformers(model_type, tie):
    backbone = build(model_type, tie, lora=LORA)
    nudge(backbone)
    inputs = encode(backbone)
    expected = backbone.model(**inputs).logits
    torch.testing.assert_close(backbone.logits(backbone(inputs)), expected, rtol=0, atol=1e-5)


def test_the_cache_is_passed_under_the_name_that_the_forward_has():
    def old(input_ids, past_key_values=None, **kwargs):
        """Forward up to transformers 5.23."""

    def new(input_ids, cache=None, **kwargs):
        """Forward since transformers 5.24."""

    assert cache_argument(old) == "past_key_values"
    assert cache_argument(new) == "cache"
    assert (
        cache_argument(functools.wraps(new)(lambda *args, **kwargs: None)) == "cache"
    )  # decorated, as theirs is
    backbone = build()
    assert (
        backbone.cache_argument in inspect.signature(type(backbone.plain.model).forward).parameters
    )


# The retrieval token


@pytest.mark.parametrize("tie", [True, False])
def test_the_token_takes_a_spare_row_at_the_mean_of_the_others(tie):
    tokenizer = tiny_tokenizer()
    count, model = len(tokenizer), tiny_model("qwen2_5_vl", tokenizer, tie=tie, **SMALL)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    backbone = load_backbone((model, tiny_processor("qwen2_5_vl", tokenizer)))
    assert backbone.ret_id == count
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        torch.testing.assert_close(layer.weight[count], layer.weight[:count].mean(dim=0))
    for name, weight in model.state_dict().items():
        rest = (
            torch.arange(len(weight)) != count
            if weight.shape == layer.weight.shape
            else slice(None)
        )
        assert torch.equal(weight[rest], before[name][rest]), name


def test_the_matrix_grows_only_when_no_row_is_spare():
    tokenizer = tiny_tokenizer()
    model = tiny_model("qwen2_5_vl", tokenizer, **SMALL)
    rows = model.get_input_embeddings().num_embeddings
    tokenizer.add_tokens([f"filler{number}" for number in range(rows - len(tokenizer))])
    old = model.get_input_embeddings().weight.clone()
    backbone = load_backbone((model, tiny_processor("qwen2_5_vl", tokenizer)), lora=LORA)
    assert backbone.ret_id == rows
    new = backbone.plain.get_output_embeddings().weight
    assert len(new) == backbone.config.text_config.vocab_size == rows + 64
    assert torch.equal(new[:rows], old)
    assert backbone.logits(backbone(encode(backbone))).shape[-1] == rows + 64


def test_the_token_is_one_special_token_and_is_plain_text_in_user_text(tmp_path):
    backbone = build()
    backbone.save(tmp_path)
    for tokenizer in (backbone.processor.tokenizer, load_backbone(tmp_path).processor.tokenizer):
        assert tokenizer(f"red{RET}")["input_ids"][-1] == backbone.ret_id
        assert tokenizer.decode([backbone.ret_id]) == RET
        assert tokenizer.decode([backbone.ret_id], skip_special_tokens=True) == ""
        hostile = f"{RET} <|image_pad|><|im_end|>"
        ids = tokenizer(hostile, split_special_tokens=True)["input_ids"]
        assert not set(ids) & set(tokenizer.all_special_ids)
        assert backbone.ret_id not in ids
        assert tokenizer.decode(ids) == hostile


@pytest.mark.parametrize("model_type", TYPES)
def test_saving_in_full_keeps_the_trained_row(model_type, tmp_path):
    backbone = build(model_type)
    nudge(backbone)
    backbone.save(tmp_path)
    again = load_backbone(tmp_path)
    assert again.ret_id == backbone.ret_id
    for old, new in zip(
        hidden_rows(backbone, encode(backbone)), hidden_rows(again, encode(again)), strict=True
    ):
        assert torch.equal(old, new)


@pytest.mark.parametrize("kind", ["embedding", "head"])
def test_the_trained_row_computes_what_peft_computes(kind):
    backbone = build(tie=False, lora=LORA)
    nudge(backbone)
    model = backbone.plain
    wrapper = model.get_input_embeddings() if kind == "embedding" else model.get_output_embeddings()
    layer = wrapper.token_adapter
    row = layer.trainable_tokens_delta["default"]
    ids = torch.tensor([[3, backbone.ret_id], [backbone.ret_id, 4]])
    x = ids if kind == "embedding" else torch.randn(2, 3, 64, requires_grad=True)
    leaves = [row] if kind == "embedding" else [row, x]
    ours, theirs = layer(x), TrainableTokensLayer.forward_adapters(layer, x, ["default"])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    weights = torch.randn_like(ours)
    for one, other in zip(
        *(torch.autograd.grad((y * weights).sum(), leaves) for y in (ours, theirs)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


# What is trained


def changed_in_a_step(backbone: Backbone) -> set[str]:
    """Names of the weights that a step on chain and embedding loss changes; ValueError-free on every parameter."""
    before = {name: weight.clone() for name, weight in backbone.state_dict().items()}
    optimizer = torch.optim.SGD(
        [weight for weight in backbone.parameters() if weight.requires_grad], lr=0.1
    )
    backbone.train()
    for _ in range(2):  # LoRA's A has no gradient until B has moved from zero
        hidden = backbone(encode(backbone))
        (backbone.logits(hidden).logsumexp(dim=-1).mean() + hidden[..., 0].mean()).backward()
        optimizer.step()
    return {
        name
        for name, weight in backbone.state_dict().items()
        if not torch.equal(weight, before[name])
    }


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("tie", [True, False])
def test_with_lora_only_the_adapters_and_the_row_change(model_type, tie):
    backbone = build(model_type, tie, lora=LORA)
    expected = {name for name, weight in backbone.named_parameters() if weight.requires_grad}
    rows = {name for name in expected if "lora_" not in name}
    assert len(expected) - len(rows) == 2 * 2 * 7  # A and B, layers, linear layers of a block
    assert all(".language_model.layers." in name for name in expected - rows)
    matrices = ["embed_tokens"] if tie else ["embed_tokens", "lm_head"]
    assert sorted(name.split(".token_adapter.")[0].rsplit(".")[-1] for name in rows) == matrices
    # A tied head's entry of the state dict is the embedding's row under a second name.
    twins = {
        name
        for name in backbone.state_dict()
        if tie and "lm_head.token_adapter.trainable_tokens_delta" in name
    }
    assert changed_in_a_step(backbone) == expected | twins


def test_without_train_token_only_the_adapters_change():
    backbone = build(lora=LORA, train_token=False)
    assert all("lora_" in name for name in changed_in_a_step(backbone))


@pytest.mark.parametrize("freeze", [True, False])
def test_full_fine_tuning_changes_all_but_a_frozen_tower(freeze):
    backbone = build(freeze_vision=freeze)
    vision = {name for name in backbone.state_dict() if ".visual." in name}
    changed = changed_in_a_step(backbone)
    assert bool(changed & vision) == (not freeze)
    assert changed - vision == set(backbone.state_dict()) - vision


def test_lora_targets_can_be_chosen():
    backbone = build(lora={"r": 2, "alpha": 4, "targets": ["q_proj", "down_proj"]})
    names = {name for name, module in backbone.named_modules() if name.endswith("lora_A")}
    assert {name.split(".")[-2] for name in names} == {"q_proj", "down_proj"}
    assert len(names) == 4


def test_trained_weights_are_float32_on_a_bfloat16_model(tmp_path):
    write_tiny(tmp_path, **SMALL)
    backbone = load_backbone(tmp_path, lora=LORA, dtype="bfloat16")
    kinds = {(weight.requires_grad, weight.dtype) for weight in backbone.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    hidden = backbone(encode(backbone))
    assert hidden.dtype == torch.bfloat16
    backbone.logits(hidden).float().logsumexp(dim=-1).mean().backward()
    assert all(weight.grad is not None for weight in backbone.parameters() if weight.requires_grad)


@pytest.mark.parametrize("model_type", TYPES)
def test_gradient_checkpointing_leaves_gradients_as_they_are(model_type):
    backbone = build(model_type, lora=LORA).train()
    nudge(backbone)
    inputs, calls = encode(backbone), []
    block = backbone.plain.model.language_model.layers[0].mlp
    block.register_forward_pre_hook(
        lambda *_: calls.append(None)
    )  # the second run stops early, inside
    gradients = []
    for on in (True, False):
        backbone.checkpoint_activations(on)
        calls.clear()
        trained = [weight for weight in backbone.parameters() if weight.requires_grad]
        gradients.append(
            torch.autograd.grad(backbone(inputs).square().mean(), trained, allow_unused=True)
        )
        gradients.append(len(calls))
    assert (gradients[1], gradients[3]) == (2, 1)  # computed again in the backward pass, or not
    for one, other in zip(gradients[0], gradients[2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def build_qwen35() -> Backbone:
    """A tiny Qwen3.5 (three recurrent blocks, one of attention) with an adapter."""
    tokenizer = tiny_tokenizer()
    base = tiny_model("qwen3_vl", tokenizer, **SMALL).config
    rope = base.text_config.rope_parameters | {"partial_rotary_factor": 1.0}
    text = {
        "num_hidden_layers": 4,
        "head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    }
    text |= {
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "vocab_size": base.text_config.vocab_size,
    }
    text |= {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "patch_size": 14,
    }
    vision |= {"out_hidden_size": 64, "num_position_embeddings": 64}
    ids = {
        name: value
        for name, value in base.to_dict().items()
        if name.endswith("_token_id") and value
    }
    config = transformers.Qwen3_5Config(
        text_config=text | {"rope_parameters": rope},
        vision_config=vision,
        tie_word_embeddings=True,
        **ids,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.Qwen3_5ForConditionalGeneration(config)
    backbone = load_backbone((model, tiny_processor("qwen3_vl", tokenizer)), lora=LORA)
    nudge(backbone)
    return backbone


@pytest.mark.skipif(
    "qwen3_5" not in transformers.CONFIG_MAPPING, reason="the installed transformers has no Qwen3.5"
)
def test_qwen35_with_its_recurrent_layers():
    backbone = build_qwen35()
    names = [
        name.split(".")[-2] for name, module in backbone.named_modules() if name.endswith("lora_A")
    ]
    assert {name: names.count(name) for name in names} == {
        **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), 1),
        **dict.fromkeys(("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"), 3),
        **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), 4),
    }
    right, left = (hidden_rows(backbone, encode(backbone, side)) for side in ("right", "left"))
    for one, other in zip(right, left, strict=True):
        torch.testing.assert_close(
            one, other, rtol=0, atol=1e-4
        )  # its recurrence adds up more rounding
    check_decoding(
        backbone, "left", 1e-4
    )  # a recurrent state would also remember padding on the right


# Saving, loading, merging


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("tie", [True, False])
def test_an_adapter_reloads_exactly_and_merges(model_type, tie, tmp_path):
    write_tiny(tmp_path / "base", model_type, tie=tie, **SMALL)
    backbone = load_backbone(tmp_path / "base", lora=LORA)
    nudge(backbone)
    backbone.save(tmp_path / "adapter")
    weights = sorted(
        file for file in os.listdir(tmp_path / "adapter") if file.startswith("adapter")
    )
    assert weights == ["adapter_config.json", "adapter_model.safetensors"]
    assert not list((tmp_path / "adapter").rglob("*.bin"))
    inputs = encode(backbone)
    with torch.no_grad():
        hidden = backbone(inputs)
        logits, plain = backbone.logits(hidden), load_backbone(tmp_path / "base")
        assert (plain(inputs) - hidden).abs().max() > 1e-2
        again = plain.load_adapter(tmp_path / "adapter")
        assert torch.equal(again(inputs), hidden)
        assert torch.equal(again.logits(hidden), logits)
        assert not any(weight.requires_grad for weight in again.parameters())
        again.double()  # in float32 the order of sums, which the machine chooses, is as large as the bound
        hidden = again(inputs)
        logits, merged = again.logits(hidden), again.merge()
        assert isinstance(merged.model, transformers.PreTrainedModel)
        merged.save(tmp_path / "merged")
        for whole in (merged, load_backbone(tmp_path / "merged").double()):
            torch.testing.assert_close(whole(inputs), hidden, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(whole.logits(hidden), logits, rtol=0, atol=1e-5)
            assert (whole.plain.lm_head.weight is whole.plain.get_input_embeddings().weight) == tie
    files = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "merged"))
    assert {k: v.shape for k, v in next(files).items()} == {
        k: v.shape for k, v in next(files).items()
    }


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_the_adapter_files_are_pefts_own(tmp_path):
    write_tiny(tmp_path / "base", **SMALL)
    backbone = load_backbone(tmp_path / "base", lora=LORA)
    nudge(backbone)
    backbone.save(tmp_path / "adapter")
    plain = load_backbone(tmp_path / "base", lora=None).plain
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter")
    inputs = encode(backbone)
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(**inputs).logits, backbone.model(**inputs).logits, rtol=0, atol=1e-5
        )


def test_training_goes_on_from_a_loaded_adapter(tmp_path):
    write_tiny(tmp_path / "base", **SMALL)
    backbone = load_backbone(tmp_path / "base", lora=LORA)
    nudge(backbone)
    backbone.save(tmp_path / "adapter")
    again = load_backbone(tmp_path / "base").load_adapter(tmp_path / "adapter", trainable=True)
    trained = {name: weight for name, weight in backbone.named_parameters() if weight.requires_grad}
    assert {name for name, weight in again.named_parameters() if weight.requires_grad} == set(
        trained
    )
    assert all(
        torch.equal(weight, trained[name])
        for name, weight in again.named_parameters()
        if name in trained
    )


def test_gathered_weights_are_saved_instead_of_the_models_own(tmp_path):
    for name, backbone in (("adapter", build(lora=LORA)), ("full", build())):
        gathered = {
            key: torch.full_like(value, 2.0) for key, value in backbone.model.state_dict().items()
        }
        backbone.save(tmp_path / name, gathered)
    for name in ("adapter/adapter_model.safetensors", "full/model.safetensors"):
        assert all(
            torch.equal(value, torch.full_like(value, 2.0))
            for value in load_file(tmp_path / name).values()
        )


@pytest.mark.parametrize("options", [{"lora": LORA}, {}])
def test_weights_are_taken_over_from_a_saved_folder(options, tmp_path):
    trained, fresh = build(**options), build(**options)
    nudge(trained)
    trained.save(tmp_path)
    assert any(
        not torch.equal(old, new)
        for old, new in zip(trained.parameters(), fresh.parameters(), strict=True)
    )
    fresh.load_weights(tmp_path)
    assert all(
        torch.equal(old, new)
        for old, new in zip(trained.parameters(), fresh.parameters(), strict=True)
    )
    wider = build(lora=LORA | {"r": 8}) if options else build("qwen2_vl")
    with pytest.raises(InputError if options else RuntimeError):
        wider.load_weights(tmp_path)


def test_pixel_bounds_are_set_and_saved(tmp_path):
    write_tiny(tmp_path / "base", **SMALL)
    backbone = load_backbone(tmp_path / "base", min_pixels=784, max_pixels=56 * 56)
    backbone.save(tmp_path / "saved")
    for one in (backbone, load_backbone(tmp_path / "saved")):
        assert encode(one)["image_grid_thw"].tolist() == [[1, 4, 4], [1, 4, 2], [1, 2, 4]]
    with pytest.raises(InputError, match="min_pixels 9999 exceeds max_pixels 3136"):
        load_backbone(tmp_path / "saved", min_pixels=9999)
    with pytest.raises(
        InputError, match="max_pixels 783 is less than one visual token: give at least 784"
    ):
        load_backbone(tmp_path / "base", min_pixels=1, max_pixels=783)
    one = load_backbone(tmp_path / "base", min_pixels=784, max_pixels=784)
    assert encode(one)["image_grid_thw"].tolist() == [[1, 2, 2]] * 3


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "half"}, "'half'.*bfloat16"),
        ({"lora": {"rank": 8}}, "'rank'.*alpha"),
        ({"lora": {"targets": ["qkv"]}}, "qkv.*q_proj"),
        ({"lora": {"targets": []}}, r"\[\].*q_proj"),
        ({"lora": {"targets": "q_proj"}}, "must be a list"),
        ({"lora": {}, "freeze_vision": False}, "full fine-tuning"),
        ({"quantization": "nf4"}, "saved checkpoint"),
        ({"min_pixels": 9000}, "exceeds"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        build(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attn": "fast"}, "'fast'.*sdpa"),
        ({"quantization": "fp3", "lora": {}}, "'fp3'.*nf4"),
        ({"quantization": "nf4", "lora": {}}, "bitsandbytes"),
        ({"quantization": "int8", "lora": {}}, r"pip install 'cir-cot\[quant\]'"),
    ],
)
def test_bad_loading_options_are_refused(options, message, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    write_tiny(tmp_path, **SMALL)
    with pytest.raises(InputError, match=message):
        load_backbone(tmp_path, **options)


def test_other_model_types_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InputError, match="'bert' is not supported.*qwen2_vl, qwen2_5_vl, qwen3_vl"):
        load_backbone(tmp_path)
    with pytest.raises(InputError, match="'llava'"):
        linear_layers("llava")


def spoil_pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def spoil_lacking(folder):
    weights = load_file(folder / "model.safetensors")
    del weights[next(name for name in weights if name.endswith("model.norm.weight"))]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def spoil_truncated(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def spoil_processor(folder):
    for file in folder.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            file.unlink()


def spoil_config(folder):
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_pickle, "checkpoint cannot be loaded"),
        (spoil_lacking, "lacks 1 weights, .*norm.weight"),
        (spoil_truncated, "checkpoint cannot be loaded"),
        (spoil_processor, "processor cannot be loaded"),
        (spoil_config, "no checkpoint could be read"),
    ],
)
def test_a_broken_checkpoint_is_one_clear_error(spoil, message, tmp_path):
    write_tiny(tmp_path, **SMALL)
    spoil(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        load_backbone(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_one_clear_error(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        load_backbone(tmp_path / "nowhere")


def test_a_foreign_adapter_is_refused(tmp_path):
    write_tiny(tmp_path / "base", **SMALL)
    adapter = tmp_path / "adapter"
    load_backbone(tmp_path / "base", lora=LORA).save(adapter)
    with pytest.raises(InputError, match="adapter_config.json is missing"):
        load_backbone(tmp_path / "base").load_adapter(tmp_path / "base")
    with pytest.raises(InputError, match="already has an adapter"):
        load_backbone(tmp_path / "base", lora=LORA).load_adapter(adapter)
    write_tiny(tmp_path / "deep", **SMALL | {"layers": 3})
    with pytest.raises(InputError, match=r"does not fit this base, .*layers\.2.* differs"):
        load_backbone(tmp_path / "deep").load_adapter(adapter)
    write_tiny(tmp_path / "wide", **SMALL | {"intermediate": 128})
    with pytest.raises(InputError, match="does not fit this base, .*mlp.* differs"):
        load_backbone(tmp_path / "wide").load_adapter(adapter)
    write_tiny(tmp_path / "words", corpus=["quite other words"], **SMALL)
    with pytest.raises(InputError, match="the retrieval token is .* another base"):
        load_backbone(tmp_path / "words").load_adapter(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "IA3"}))
    with pytest.raises(InputError, match="'IA3'"):
        load_backbone(tmp_path / "base").load_adapter(adapter)


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantised_bases_train_and_refuse_to_merge(quantization, tmp_path):
    pytest.importorskip("bitsandbytes")
    write_tiny(
        tmp_path / "base", **SMALL | {"intermediate": 128}
    )  # bitsandbytes' CPU kernels take whole blocks of 64
    backbone = load_backbone(tmp_path / "base", lora=LORA, quantization=quantization)
    nudge(backbone)
    kinds = {
        type(module).__name__
        for name, module in backbone.named_modules()
        if name.endswith("base_layer")
    }
    assert kinds >= {"nf4": {"Linear4bit"}, "int8": {"Linear8bitLt"}}[quantization]
    assert all(
        not type(module).__module__.startswith("bitsandbytes")
        for module in backbone.plain.model.visual.modules()
    )
    hidden = backbone(encode(backbone))
    backbone.logits(hidden).logsumexp(dim=-1).mean().backward()
    backbone.save(tmp_path / "adapter")
    again = load_backbone(tmp_path / "base", quantization=quantization)
    assert not any(weight.requires_grad for weight in again.parameters())
    # Trainable, because without gradients bitsandbytes takes another CPU kernel, which computes in bfloat16.
    again.load_adapter(tmp_path / "adapter", trainable=True)
    torch.testing.assert_close(again(encode(backbone)), hidden)
    with pytest.raises(InputError, match="quantization=None"):
        backbone.merge()
