"""The cache of vision features: what the model reads is unchanged, the tower runs once a picture, ever."""

import pytest
import torch
import training
from torch import nn

from cir_cot.backbone import load_backbone
from cir_cot.collate import ChatEncoder
from cir_cot.records import InputError
from cir_cot.tiny import tiny_model, tiny_processor, tiny_tokenizer
from cir_cot.vision_cache import IDENTITY, VisionCache, _lanes, content_keys, tower_identity

NAMES = ("red-blue", "green-cyan", "red-blue", "blue-yellow")  # three pictures


def tower_of(head) -> nn.Module:
    return head.backbone.plain.model.visual


def patches_read(tower: nn.Module) -> list[int]:
    """How many patches each pass of the tower reads, from now on."""
    read = []
    tower.patch_embed.register_forward_hook(lambda _, inputs, out: read.append(len(out)))
    return read


def pictures(names=NAMES) -> list:
    return [training.Pictures().load(name) for name in names]


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_hidden_states_are_those_without_a_cache(kind, tmp_path):
    tokenizer = tiny_tokenizer()
    backbone = load_backbone((tiny_model(kind, tokenizer, **training.SIZES), tiny_processor(kind, tokenizer)))
    inputs = ChatEncoder(backbone.processor, backbone.ret_id).target(pictures())
    tower = backbone.plain.model.visual
    with torch.no_grad():
        wanted, read = backbone(inputs), patches_read(tower)
        with VisionCache(tower, tmp_path).open({}).attached() as cache:
            first, second = backbone(inputs), backbone(inputs)
            cache.flush()
            from_disk = backbone(inputs)
        with VisionCache(tower, tmp_path).open({}).attached():
            later = backbone(inputs)
    for hidden in (first, second, from_disk, later):
        torch.testing.assert_close(hidden, wanted, atol=1e-5, rtol=1e-5)
    assert read == [3 * 16]  # three of the four pictures are different, 4 x 4 patches each
    assert backbone(inputs).requires_grad  # and the tower is itself again
    assert read == [3 * 16, 4 * 16]


def test_training_and_gallery_share_what_is_on_the_disk(tmp_path):
    """Epochs, queries, targets, later runs and the gallery: every picture of the data is read once."""
    options = {"rows": 12, "num_train_epochs": 2, "learning_rate": 1e-3}
    plain = training.trainer(tmp_path / "plain", **options)
    plain.train()
    cached = training.trainer(tmp_path / "cached", vision_cache=str(tmp_path / "features"), **options)
    read = patches_read(tower_of(cached.model))
    cached.train()
    names = {name for row in cached.train_dataset.records for name in (row.reference, *row.targets)}
    assert sum(read) == 16 * len(names)
    losses = [[e["loss"] for e in run.state.log_history if "loss" in e] for run in (plain, cached)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    again = training.trainer(tmp_path / "again", vision_cache=str(tmp_path / "features"), chunk_tokens=400, **options)
    read = patches_read(tower_of(again.model))
    again.train()
    with again.vision.attached():
        gallery = again.model.encode_target(pictures(sorted(names)))
    assert read == []
    torch.testing.assert_close(gallery, again.model.encode_target(pictures(sorted(names))), atol=1e-5, rtol=1e-5)


def test_a_tower_that_trains_is_refused(tmp_path):
    head = training.tiny_head(lora=False)
    tower_of(head).requires_grad_(True)
    with pytest.raises(InputError, match="frozen vision tower"):
        training.trainer(tmp_path, head, vision_cache=str(tmp_path / "features"))


def test_augmented_pictures_are_refused(tmp_path):
    head, turned = training.tiny_head(), iter(range(1000))

    class Augmented(training.Pictures):
        def load(self, name):
            return super().load(name).rotate(next(turned))

    run = training.trainer(tmp_path, head, rows=8, num_train_epochs=3, vision_cache=str(tmp_path / "features"))
    run.train_dataset.images = Augmented()
    with pytest.raises(InputError, match="augmented"):
        run.train()


def test_another_tower_or_processor_is_refused(tmp_path):
    head = training.tiny_head()
    tower, processor = tower_of(head), head.backbone.processor.image_processor
    identity = tower_identity(tower, processor, "float32")
    VisionCache(tower, tmp_path).open(identity)
    VisionCache(tower, tmp_path).open(tower_identity(tower, processor, "float32"))
    with torch.no_grad():
        next(tower.parameters()).flatten()[0] += 1e-3
    with pytest.raises(InputError, match="another vision tower"):
        VisionCache(tower, tmp_path).open(tower_identity(tower, processor, "float32"))
    processor.size = dict(processor.size) | {"longest_edge": 56 * 56}
    with pytest.raises(InputError, match="another processor"):
        VisionCache(tower, tmp_path).open(identity | tower_identity(tower, processor, "float32")
                                          | {"vision tower": identity["vision tower"]})  # fmt: skip
    assert (tmp_path / IDENTITY).is_file()


def test_a_run_is_not_resumed_with_other_features(tmp_path):
    options = {"rows": 8, "save_strategy": "steps", "save_steps": 1, "vision_cache": str(tmp_path / "features")}
    training.trainer(tmp_path / "run", **options).train()
    with pytest.raises(InputError, match="vision_cache"):
        training.trainer(tmp_path / "run", bf16=True, **options | {"vision_cache": str(tmp_path / "other")}).train(
            resume_from_checkpoint="last"
        )


def test_a_torn_file_is_named_and_an_unfinished_one_ignored(tmp_path):
    tower = tower_of(training.tiny_head())
    (tmp_path / ".features-0-x.12").write_bytes(b"half")
    assert len(VisionCache(tower, tmp_path).open({})) == 0
    (tmp_path / "features-0-x.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match="features-0-x.safetensors: not readable"):
        VisionCache(tower, tmp_path).open({})


def test_keys_tell_pictures_and_shapes_apart():
    one = torch.randn(16, 6)
    other = one.clone()
    other[7, 3] = torch.nextafter(other[7, 3], torch.tensor(9.0))
    swapped = one.clone()
    swapped[[0, 1]] = one[[1, 0]]
    square, long = torch.tensor([[1, 4, 4]]), torch.tensor([[1, 2, 8]])
    keys = {content_keys([block], grid)[0] for block in (one, other, swapped, one[:, :5]) for grid in (square, long)}
    assert len(keys) == 8
    assert content_keys([one, other], torch.cat([square, long])) == [
        content_keys([one.clone()], square)[0],
        content_keys([other], long)[0],
    ]


def test_numbers_of_longer_rows_begin_with_those_of_shorter_ones():
    """Otherwise a picture's key would depend on what was hashed before it."""
    assert torch.equal(_lanes(64, "cpu"), _lanes(256, "cpu")[:, :64])
    assert _lanes(256, "cpu").unique().numel() == 512


def test_without_a_folder_nothing_outlives_forget():
    head = training.tiny_head()
    inputs = head.encoder().target(pictures())
    with torch.no_grad(), VisionCache(tower_of(head)).attached() as cache:
        head.backbone(inputs)
        assert len(cache) == 3
        cache.forget()
        assert len(cache) == 0
