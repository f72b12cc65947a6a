"""The chain head in a foreign target space: frozen CLIP vectors as targets, encoded once."""

import json
from pathlib import Path

import pytest
import tiny_training
import torch
from safetensors.torch import load_file
from torch.nn import functional
from torch.nn.modules.module import register_module_forward_hook

from cir_cot.errors import InputError
from cir_cot.heads import load_retriever
from cir_cot.heads.base import TrainingRow
from cir_cot.heads.cot import CotRetriever
from cir_cot.models.backbone import load_backbone
from cir_cot.models.clip import load_clip
from cir_cot.models.tiny_clip import write_tiny_clip
from cir_cot.models.tiny_qwen import write_tiny
from cir_cot.scripts.train import sft

TEXTS = [
    f"{r.text} {r.cot.caption} {r.cot.reasoning} {r.cot.conclusion}"
    for r in tiny_training.records(36)
    if r.cot
]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_tiny(
        tmp_path_factory.mktemp("base"), corpus=TEXTS, vocab_size=400, **tiny_training.SIZES
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_tiny_clip(tmp_path_factory.mktemp("clip"), "siglip", corpus=TEXTS, init=4.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    tiny_training.write_dataset(root, tiny_training.records(22))
    return root


def train(model, root, out, *more: str) -> dict[str, int]:
    """Run two steps of eight rows -> forward passes of the language model and of the foreign tower."""
    counts = {"Backbone": 0, "SiglipVisionModel": 0}

    def count(module, inputs, output):
        if type(module).__name__ in counts:
            counts[type(module).__name__] += 1

    options = [
        "--max_steps",
        "2",
        "--per_device_train_batch_size",
        "8",
        "--lora_r",
        "4",
        "--learning_rate",
        "1e-2",
    ]
    options += ["--report_to", "none", "--disable_tqdm", "true", "--save_strategy", "no"]
    argv = ["--model", str(model), "--root", str(root), "--output_dir", str(out), *options, *more]
    hook = register_module_forward_hook(count)
    try:
        assert sft.main(argv) == 0
    finally:
        hook.remove()
    return counts


def test_training_costs_the_query_side_alone_and_targets_are_encoded_once(
    base, clip, data, tmp_path
):
    foreign = ["--target_encoder", str(clip), "--features", str(tmp_path / "features")]
    assert (
        train(base, data, tmp_path / "own")["Backbone"] == 6
    )  # both sides: the estimate before the run, two steps
    first = train(base, data, tmp_path / "first", *foreign)
    assert first == {"Backbone": 3, "SiglipVisionModel": 1}
    assert train(base, data, tmp_path / "second", *foreign) == {
        "Backbone": 3,
        "SiglipVisionModel": 0,
    }
    # what was trained is saved without the encoder, which its settings name, and loads to the same vectors
    stored = load_file(tmp_path / "first" / "head.safetensors")
    assert set(stored) == {"project.weight", "log_temperature"}
    assert stored["project.weight"].shape == (64, 32)
    assert json.loads((tmp_path / "first" / "retriever.json").read_text())["settings"][
        "target_encoder"
    ] == str(clip)
    head, other = (load_retriever(tmp_path / name, device="cpu") for name in ("first", "second"))
    pictures = [tiny_training.Pictures().load(name) for name in ("red-blue", "green-red")]
    expected = functional.normalize(load_clip(str(clip)).encode_images(pictures), dim=-1)
    assert torch.equal(head.encode_target(pictures), expected)
    texts = ["make the bar red", "make the bar blue"]
    ours, theirs = (
        retriever.encode_query(pictures, texts, "fast").embeddings for retriever in (head, other)
    )
    assert ours.shape == (2, 64)
    assert torch.equal(ours, theirs)


def test_cached_vectors_pictures_and_inference_agree(base, clip, tmp_path):
    torch.manual_seed(0)
    head = CotRetriever(load_backbone(base), str(base), target_encoder=str(clip)).eval()
    load, records = tiny_training.Pictures().load, tiny_training.records(4)
    rows = [TrainingRow(r, load(r.reference), load(r.targets[0]), 0) for r in records]
    vectors = head.foreign.encode_images([row.target for row in rows])
    cached = [
        TrainingRow(r, row.reference, vector, 0)
        for r, row, vector in zip(records, rows, vectors, strict=True)
    ]
    with torch.no_grad():
        from_pictures, from_vectors = (
            head(batch["query"], batch["target"]).target
            for batch in (head.collator()(rows), head.collator()(cached))
        )
    assert (from_pictures - from_vectors).abs().max() < 1e-6
    assert (head.encode_target([row.target for row in rows]) - from_vectors).abs().max() < 1e-6


def test_a_first_stage_without_this_space_keeps_its_chain_and_gets_a_new_projection(
    base, clip, data, tmp_path
):
    train(base, data, tmp_path / "stage1", "--contrastive_weight", "0", "--projection", "16")
    train(
        tmp_path / "stage1",
        data,
        tmp_path / "stage2",
        "--target_encoder",
        str(clip),
        "--learning_rate",
        "0",
    )
    before, after = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("stage1", "stage2")
    )
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert load_file(tmp_path / "stage2" / "head.safetensors")["project.weight"].shape == (64, 32)


def test_a_projection_to_elsewhere_is_refused(base, clip, data, tmp_path):
    with pytest.raises(InputError, match="projection 16: vectors of .* have 64"):
        train(base, data, tmp_path, "--target_encoder", str(clip), "--projection", "16")
