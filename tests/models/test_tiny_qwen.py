"""The tiny models: real classes, reloadable, exact pictures, and a tokenizer made for chains."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from cir_cot import compat
from cir_cot.errors import InputError
from cir_cot.models.tiny_qwen import (
    CHAT_TEMPLATE,
    SPECIALS,
    tiny_model,
    tiny_processor,
    tiny_tokenizer,
    write_tiny,
)

CORPUS = [
    "<caption>red cube top-left, blue ball centre</caption><reasoning>remove the blue ball</reasoning>",
    "<conclusion>red cube top-left</conclusion> keep red cube",
]
CLASSES = {
    "qwen2_vl": ("Qwen2VLForConditionalGeneration", "Qwen2VLProcessor"),
    "qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLProcessor"),
    "qwen3_vl": ("Qwen3VLForConditionalGeneration", "Qwen3VLProcessor"),
}
SMALL = {"hidden": 64, "layers": 2, "intermediate": 96, "vision_hidden": 32}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(CORPUS)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_words_tags_and_hyphens_are_single_tokens(tokenizer):
    pieces = tokenizer.tokenize(CORPUS[0])
    assert pieces[:5] == ["<caption>", "red", "Ġcube", "Ġtop-left", ","]
    assert pieces[-2:] == ["Ġball", "</reasoning>"]
    assert tokenizer.tokenize(" keep</caption>") == ["Ġkeep", "</caption>"]


@pytest.mark.parametrize(
    "text", ["", "naïve 日本 🙂", " a  b\n\n c ", "a<b></c>< d >", "top-left- -x", "\x00\t<|im"]
)
def test_any_text_encodes_and_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_tags_are_ordinary_and_qwens_specials_are_special(tokenizer):
    ids = tokenizer("<caption>red</caption><|im_end|>")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<caption>red</caption>"
    assert tokenizer.convert_tokens_to_ids(list(SPECIALS)) == list(
        range(len(tokenizer) - len(SPECIALS), len(tokenizer))
    )


def test_the_tokenizer_depends_on_the_corpus_alone(tokenizer):
    assert tiny_tokenizer(CORPUS).get_vocab() == tokenizer.get_vocab()
    assert tiny_tokenizer(CORPUS + ["green"]).get_vocab() != tokenizer.get_vocab()
    assert len(tiny_tokenizer(CORPUS, vocab_size=300)) == 300 + len(SPECIALS) < len(tokenizer)


@pytest.mark.parametrize("model_type", CLASSES)
@pytest.mark.parametrize("tie", [True, False])
def test_a_written_checkpoint_loads_as_a_real_one(model_type, tie, tmp_path):
    write_tiny(tmp_path, model_type, CORPUS, tie=tie, **SMALL)
    model = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    assert (type(model).__name__, type(processor).__name__) == CLASSES[model_type]
    assert processor.chat_template == CHAT_TEMPLATE
    tokenizer = tiny_tokenizer(CORPUS)
    assert processor.tokenizer.get_vocab() == tokenizer.get_vocab()
    built = tiny_model(model_type, tokenizer, tie=tie, **SMALL).state_dict()
    assert built.keys() == model.state_dict().keys()
    assert all(torch.equal(weight, built[name]) for name, weight in model.state_dict().items())
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tie


@pytest.mark.parametrize("model_type", CLASSES)
def test_the_seed_decides_the_weights_and_the_global_state_is_left_alone(model_type, tokenizer):
    before = torch.get_rng_state()
    first, again, other = (
        tiny_model(model_type, tokenizer, seed, **SMALL).lm_head.weight for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_there_are_spare_rows(tokenizer):
    rows = tiny_model("qwen2_5_vl", tokenizer, **SMALL).get_input_embeddings().num_embeddings
    assert rows % 64 == 0
    assert rows - len(tokenizer) >= 16
    full = tiny_tokenizer(
        CORPUS, vocab_size=320 - len(SPECIALS)
    )  # 320 entries fill five times 64 rows
    assert tiny_model("qwen2_5_vl", full, **SMALL).get_input_embeddings().num_embeddings == 384


def test_sizes_are_taken(tokenizer):
    sizes = {
        "hidden": 96,
        "layers": 3,
        "heads": 3,
        "kv_heads": 1,
        "vision_depth": 3,
        "vision_hidden": 48,
    }
    config = tiny_model("qwen2_5_vl", tokenizer, **sizes).config
    text, vision = config.text_config, config.vision_config
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (96, 3, 3)
    assert (vision.depth, vision.hidden_size, vision.out_hidden_size) == (3, 48, 96)
    with pytest.raises(TypeError, match="hiden"):
        tiny_model("qwen2_5_vl", tokenizer, hiden=96)


@pytest.mark.parametrize("model_type", CLASSES)
def test_a_picture_of_84_pixels_is_nine_visual_tokens_and_not_resampled(model_type, tokenizer):
    images = tiny_processor(model_type, tokenizer).image_processor
    batch = images(images=[noise(84, 84, 0), noise(84, 84, 1)], return_tensors="pt")
    assert batch["image_grid_thw"].tolist() == [[1, 6, 6]] * 2
    # (grid rows, grid columns, row in merge, column in merge, channel, time, y, x), the same frame twice
    patches = batch["pixel_values"][:36].reshape(3, 3, 2, 2, 3, 2, 14, 14)
    assert torch.equal(patches[:, :, :, :, :, 0], patches[:, :, :, :, :, 1])
    picture = patches[:, :, :, :, :, 0].permute(0, 2, 5, 1, 3, 6, 4).reshape(84, 84, 3)
    pixels = (picture * torch.tensor(images.image_std) + torch.tensor(images.image_mean)) * 255
    assert (pixels - torch.from_numpy(np.array(noise(84, 84, 0)))).abs().max() < 1e-3
    alone = images(images=[noise(84, 84, 1)], return_tensors="pt")
    assert torch.equal(batch["pixel_values"][36:], alone["pixel_values"])


def test_visual_tokens_are_the_cells_in_reading_order(tokenizer):
    images = tiny_processor("qwen2_5_vl", tokenizer).image_processor
    plain, dotted = np.zeros((84, 84, 3), np.uint8), np.zeros((84, 84, 3), np.uint8)
    dotted[28:56, 56:84] = 255  # row 1, column 2
    first, second = (
        images(images=[Image.fromarray(a)], return_tensors="pt")["pixel_values"]
        for a in (plain, dotted)
    )
    changed = (first != second).any(dim=1).reshape(9, 4)  # (visual tokens, patches)
    assert changed.all(dim=1).nonzero().flatten().tolist() == [5]
    assert changed.any(dim=1).sum() == 1


def test_a_large_picture_is_bounded(tokenizer):
    images = tiny_processor("qwen2_5_vl", tokenizer, max_pixels=84 * 84).image_processor
    grid = images(images=[noise(640, 480)], return_tensors="pt")["image_grid_thw"][0]
    assert grid.prod() * 14 * 14 <= 84 * 84


def test_an_unknown_type_is_refused(tokenizer):
    for build in (tiny_model, tiny_processor):
        arguments = ("llava", tokenizer)
        with pytest.raises(InputError, match="'llava'.*qwen2_5_vl"):
            build(*arguments)


def test_operators_are_declared_only_for_a_cuda_torchvision_beside_a_cpu_torch():
    assert compat.declare_operators("0.28.0+cpu") is None
    assert compat.declare_operators("") is None
    build = compat.torchvision_build()
    assert build.startswith("0.")
    needed = torch.version.cuda is None and "+cu" in build
    assert (compat._LIBRARY is not None) == needed
