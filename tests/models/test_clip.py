"""CLIP and SigLIP, the sum of their features as a retriever, and its recipe from arguments to the saved folder."""

import json
from pathlib import Path

import pytest
import tiny_training
import torch
import transformers
from PIL import Image
from torch.nn import functional

from cir_cot.data.fashioniq import training_captions
from cir_cot.errors import InputError
from cir_cot.heads import load_retriever
from cir_cot.heads.base import TrainingRow
from cir_cot.heads.clip import ClipRetriever
from cir_cot.losses import info_nce
from cir_cot.models.clip import load_clip, target_pad
from cir_cot.models.tiny_clip import LENGTH, write_tiny_clip
from cir_cot.scripts.train import clip
from cir_cot.training.dataset import CirDataset, load_rows, texts_of
from cir_cot.training.parsing import parse_arguments

QUICK = [
    "--max_steps",
    "2",
    "--per_device_train_batch_size",
    "4",
    "--logging_steps",
    "1",
    "--learning_rate",
    "1e-3",
]
QUIET = ["--report_to", "none", "--disable_tqdm", "true", "--save_strategy", "no"]
CONFIGS = Path(clip.__file__).parent / "configs"
CORPUS = [record.text for record in tiny_training.records(36)]


@pytest.fixture(scope="module", params=["clip", "siglip"])
def tiny(request, tmp_path_factory) -> Path:
    return write_tiny_clip(
        tmp_path_factory.mktemp(request.param), request.param, corpus=CORPUS, init=4.0
    )


def pictures(*sizes) -> list[Image.Image]:
    return [tiny_training.Pictures().load("red-blue").resize(size) for size in sizes]


@pytest.mark.parametrize(
    ("size", "padded"),
    # CLIP4Cir: (max / 1.25 - side) / 2, rounded down, on both sides of the shorter one
    [
        ((100, 100), (100, 100)),
        ((125, 100), (125, 100)),
        ((200, 100), (200, 160)),
        ((33, 100), (79, 100)),
    ],
)
def test_target_pad_brings_a_long_picture_to_the_ratio(size, padded):
    (picture,) = pictures(size)
    out = target_pad(picture, 1.25)
    assert out.size == padded
    across, down = ((new - old) // 2 for new, old in zip(padded, size, strict=True))
    assert out.crop((across, down, across + size[0], down + size[1])).tobytes() == picture.tobytes()
    if size != padded:
        assert out.getpixel((0, 0)) == (0, 0, 0)
    assert target_pad(picture, 0) is picture


def test_the_padding_reaches_the_tower_and_0_is_the_checkpoints_own_preprocessing(tiny):
    long, square = pictures((168, 84), (84, 84))
    plain, padded = (load_clip(str(tiny), ratio).inputs for ratio in (None, 1.25))
    assert torch.equal(
        plain.pictures([square])["pixel_values"], padded.pictures([square])["pixel_values"]
    )
    assert not torch.equal(
        plain.pictures([long])["pixel_values"], padded.pictures([long])["pixel_values"]
    )
    own = transformers.AutoProcessor.from_pretrained(tiny)(images=[long], return_tensors="pt")[
        "pixel_values"
    ]
    assert torch.equal(plain.pictures([long])["pixel_values"], own)


def test_features_are_those_of_transformers_and_need_no_batch(tiny):
    encoder, images, texts = (
        load_clip(str(tiny)),
        pictures((84, 84), (60, 90)),
        ["make the bar red", "blue"],
    )
    model, inputs = encoder.model, encoder.inputs
    with torch.no_grad():
        theirs = model.get_image_features(**inputs.pictures(images)).pooler_output
        words = model.get_text_features(**inputs.texts(texts)).pooler_output
    assert torch.equal(encoder.encode_images(images), theirs)
    assert torch.equal(encoder.encode_texts(texts), words)
    alone = torch.cat([encoder.encode_texts([text]) for text in texts])
    assert (alone - words).abs().max() < 1e-5
    assert encoder.dim == theirs.shape[1] == words.shape[1]


def test_a_tiny_clip_leaves_the_global_random_state_alone(tmp_path):
    before = torch.get_rng_state()
    write_tiny_clip(tmp_path, corpus=CORPUS)
    assert torch.equal(before, torch.get_rng_state())


def test_the_users_words_never_end_a_text_early(tiny):
    encoder = load_clip(str(tiny))
    tokenizer = encoder.inputs.processor.tokenizer
    ids = encoder.inputs.texts(["red <|endoftext|> blue <|startoftext|> \N{SNOWMAN}"])["input_ids"][
        0
    ].tolist()
    plain = encoder.inputs.texts(["red blue"])["input_ids"][0].tolist()
    end = ids.index(tokenizer.eos_token_id)
    assert end > plain.index(tokenizer.eos_token_id) + 4
    assert "blue" in tokenizer.decode(ids[:end])
    long = encoder.inputs.texts(["red " * 200])["input_ids"][0].tolist()
    assert len(long) == LENGTH
    assert long[-1] == tokenizer.eos_token_id


def test_a_frozen_encoder_has_no_gradients_and_a_trained_one_stays_in_eval_mode(tiny):
    images = pictures((84, 84))
    for frozen in (True, False):
        encoder = load_clip(str(tiny), frozen=frozen)
        assert encoder.images(encoder.inputs.pictures(images)).requires_grad is not frozen
        trained = {
            name for name, parameter in encoder.model.named_parameters() if parameter.requires_grad
        }
        assert bool(trained) is not frozen
        assert "logit_scale" not in trained
        encoder.train()
        assert not any(module.training for module in encoder.modules())


def test_identity_is_that_of_weights_preprocessing_and_words(tiny, tmp_path):
    first, again, padded = (load_clip(str(tiny), ratio) for ratio in (None, None, 1.25))
    assert first.identity() == again.identity() != padded.identity()
    with torch.no_grad():
        next(again.model.parameters()).view(-1)[0] += 1e-3
    assert first.identity() != again.identity()
    other = write_tiny_clip(
        tmp_path, first.model.config.model_type, corpus=["other words"], init=4.0
    )
    assert load_clip(str(other)).identity() != first.identity()


def test_the_query_is_the_sum_and_the_loss_clip4cirs(tiny):
    encoder = load_clip(str(tiny), frozen=False)
    head = ClipRetriever(encoder, str(tiny))
    records = [tiny_training.records(12)[index] for index in (0, 2, 4, 6)]
    load = tiny_training.Pictures().load
    rows = [TrainingRow(r, load(r.reference), load(r.targets[0]), 0) for r in records]
    batch = head.collator()(rows)
    with torch.no_grad():
        out = head(batch["query"], batch["target"])
    image = encoder.encode_images([row.reference for row in rows])
    text = encoder.encode_texts([row.record.text for row in rows])
    target = encoder.encode_images([row.target for row in rows])
    # CLIP4Cir: 100 * L2(image + text) @ L2(target).T, cross-entropy against the row's own
    logits = 100 * functional.normalize(image + text) @ functional.normalize(target).T
    theirs = functional.cross_entropy(logits, torch.arange(4))
    ours = info_nce(out.query, out.target, torch.arange(4), out.temperature)
    assert (ours - theirs).abs() < 1e-4
    assert out.aux == {}


@pytest.mark.parametrize(
    ("model_type", "words"), [("qwen2_vl", "no text-image encoder"), (None, "no checkpoint")]
)
def test_what_is_no_clip_is_refused(tmp_path, model_type, words):
    folder = tmp_path / "checkpoint"
    if model_type:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(InputError, match=words):
        load_clip(str(folder))


@pytest.mark.parametrize(
    ("options", "words"), [({"pad_ratio": 0.5}, "pad_ratio 0.5"), ({"dtype": "int3"}, "int3")]
)
def test_unusable_options_are_named(tiny, options, words):
    with pytest.raises(InputError, match=words):
        load_clip(str(tiny), **options)


# ---- FashionIQ's captions and the recipe


def write_fashioniq(root: Path) -> list[list[str]]:
    """A FashionIQ train split of one category and four queries -> their captions."""
    names = ["red-blue", "green-red", "blue-cyan", "yellow-red", "cyan-red"]
    captions = [
        ["is red", "has a bar."],
        ["", "is blue"],
        ["is longer", "and green"],
        ["darker", "no bar"],
    ]
    for folder in ("captions", "image_splits", "images"):
        (root / folder).mkdir(parents=True)
    for name in names:
        tiny_training.Pictures().load(name).save(root / "images" / f"{name}.png")
    pairs = zip(names, names[1:], captions, strict=False)
    entries = [{"target": new, "candidate": old, "captions": pair} for old, new, pair in pairs]
    (root / "captions" / "cap.dress.train.json").write_text(json.dumps(entries))
    (root / "image_splits" / "split.dress.train.json").write_text(json.dumps(names))
    return captions


def arguments(root, out="out", model="x", *more):
    argv = ["--model", str(model), "--root", str(root), "--output_dir", str(out), *QUICK, *QUIET]
    return [*argv, "--benchmark", "fashioniq", "--category", "dress", *more]


def test_a_fashioniq_text_is_drawn_anew_by_the_rows_own_draw(tmp_path):
    captions = write_fashioniq(tmp_path)
    args = parse_arguments(clip.Stage1Arguments, arguments(tmp_path))
    rows, left_out = load_rows(args, vary_captions=True)
    assert left_out == ""
    for index, pair in enumerate(captions):
        seen = {rows[index, draw].record.text for draw in range(60)}
        assert seen == set(training_captions(tuple(pair)))
        assert rows[index, 7].record.text == rows[index, 7].record.text
    assert set(texts_of(rows)) == {
        text for pair in captions for text in training_captions(tuple(pair))
    }
    fixed, _ = load_rows(args)
    assert {fixed[0, draw].record.text for draw in range(20)} == {"Is red and has a bar"}


def test_records_without_captions_keep_their_text():
    records = tiny_training.records(3)
    rows = CirDataset(records, tiny_training.Pictures(), [None, ("a", "b"), None])
    assert rows[0, 1].record == records[0]
    assert rows[1, 1].record.text in {"A and b", "B and a", "A", "B"}
    assert texts_of(rows) == [records[0].text, "A and b", "B and a", "A", "B", records[2].text]


def test_stage_one_leaves_a_retriever_that_is_a_checkpoint_too(tiny, tmp_path, capsys):
    write_fashioniq(tmp_path / "data")
    assert clip.main(arguments(tmp_path / "data", tmp_path / "run", tiny)) == 0
    assert "trained 2 steps on 4 rows" in capsys.readouterr().out
    head, base = load_retriever(tmp_path / "run", device="cpu"), load_clip(str(tiny))
    assert isinstance(head, ClipRetriever)
    assert head.settings() == {"temperature": 0.01, "pad_ratio": 1.25}
    model = transformers.AutoModel.from_pretrained(tmp_path / "run")
    assert not torch.equal(model.state_dict()["logit_scale"], torch.tensor(0.0))
    trained = {
        name
        for name, value in model.state_dict().items()
        if not torch.equal(value, base.model.state_dict()[name])
    }
    assert any(name.startswith("vision_model") for name in trained)
    assert any(name.startswith("text_model") for name in trained)
    assert load_clip(str(tmp_path / "run")).inputs.pad_ratio == 1.25  # stage 2 pads as stage 1 did
    again = clip.main(
        arguments(tmp_path / "data", tmp_path / "two", tmp_path / "run", "--learning_rate", "0")
    )
    assert again == 0
    picture = pictures((84, 84))
    other = load_retriever(tmp_path / "two", device="cpu")
    assert torch.equal(other.encode_target(picture), head.encode_target(picture))


def test_the_config_that_ships_is_accepted():
    args = parse_arguments(
        clip.Stage1Arguments,
        ["--config", str(CONFIGS / "clip_fashioniq.yaml"), "--model", "x", "--root", "y"],
    )
    assert (args.learning_rate, args.adam_epsilon, args.temperature) == (2e-6, 1e-7, 0.01)
    with pytest.raises(InputError, match="temperature 0"):
        parse_arguments(clip.Stage1Arguments, [*arguments("y"), "--temperature", "0"])
