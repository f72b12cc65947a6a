"""The cache of vision features: what the model reads is unchanged, the tower runs once a picture, ever."""

import threading

import pytest
import tiny_training
import torch
from recorded_os import recorded_os
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from cir_cot.errors import InputError
from cir_cot.models.backbone import load_backbone
from cir_cot.models.chat import ChatEncoder
from cir_cot.models.tiny_qwen import tiny_model, tiny_processor, tiny_tokenizer
from cir_cot.storage import locked
from cir_cot.training.feature_folder import IDENTITY
from cir_cot.training.vision_cache import (
    VisionCache,
    _lanes,
    content_keys,
    tower_identity,
)

NAMES = ("red-blue", "green-cyan", "red-blue", "blue-yellow")  # three pictures


def tower_of(head) -> nn.Module:
    return head.backbone.plain.model.visual


def patches_read(tower: nn.Module) -> list[int]:
    """How many patches each pass of the tower reads, from now on."""
    read = []
    tower.patch_embed.register_forward_hook(lambda _, inputs, out: read.append(len(out)))
    return read


def pictures(names=NAMES) -> list:
    return [tiny_training.Pictures().load(name) for name in names]


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_hidden_states_are_those_without_a_cache(kind, tmp_path):
    tokenizer = tiny_tokenizer()
    backbone = load_backbone(
        (tiny_model(kind, tokenizer, **tiny_training.SIZES), tiny_processor(kind, tokenizer))
    )
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
    plain = tiny_training.trainer(tmp_path / "plain", **options)
    plain.train()
    cached = tiny_training.trainer(
        tmp_path / "cached", vision_cache=str(tmp_path / "features"), **options
    )
    read = patches_read(tower_of(cached.model))
    cached.train()
    names = {name for row in cached.train_dataset.records for name in (row.reference, *row.targets)}
    assert sum(read) == 16 * len(names)
    losses = [[e["loss"] for e in run.state.log_history if "loss" in e] for run in (plain, cached)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    again = tiny_training.trainer(
        tmp_path / "again", vision_cache=str(tmp_path / "features"), chunk_tokens=400, **options
    )
    read = patches_read(tower_of(again.model))
    again.train()
    with again.vision.attached():
        gallery = again.model.encode_target(pictures(sorted(names)))
    assert read == []
    torch.testing.assert_close(
        gallery, again.model.encode_target(pictures(sorted(names))), atol=1e-5, rtol=1e-5
    )


def test_a_tower_that_trains_is_refused(tmp_path):
    head = tiny_training.tiny_head(lora=False)
    tower_of(head).requires_grad_(True)
    with pytest.raises(InputError, match="frozen vision tower"):
        tiny_training.trainer(tmp_path, head, vision_cache=str(tmp_path / "features"))


def test_augmented_pictures_are_refused(tmp_path):
    head, turned = tiny_training.tiny_head(), iter(range(1000))

    class Augmented(tiny_training.Pictures):
        def load(self, name):
            return super().load(name).rotate(next(turned))

    run = tiny_training.trainer(
        tmp_path, head, rows=8, num_train_epochs=3, vision_cache=str(tmp_path / "features")
    )
    run.train_dataset.images = Augmented()
    with pytest.raises(InputError, match="augmented"):
        run.train()


def test_another_tower_or_processor_is_refused(tmp_path):
    head = tiny_training.tiny_head()
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
    options = {
        "rows": 8,
        "save_strategy": "steps",
        "save_steps": 1,
        "vision_cache": str(tmp_path / "features"),
    }
    tiny_training.trainer(tmp_path / "run", **options).train()
    with pytest.raises(InputError, match="vision_cache"):
        tiny_training.trainer(
            tmp_path / "run", bf16=True, **options | {"vision_cache": str(tmp_path / "other")}
        ).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))


def test_a_torn_file_is_named_and_an_unfinished_one_ignored(tmp_path):
    tower = tower_of(tiny_training.tiny_head())
    (tmp_path / ".features-0-x.12").write_bytes(b"half")
    assert len(VisionCache(tower, tmp_path).open({})) == 0
    (tmp_path / "features-0-x.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match="features-0-x.safetensors: not readable"):
        VisionCache(tower, tmp_path).open({})


@pytest.fixture
def filled(tmp_path):
    """A head, its inputs, and a cache on the disk that one run has filled."""
    head = tiny_training.tiny_head()
    inputs = head.encoder().target(pictures())
    with torch.no_grad(), VisionCache(tower_of(head), tmp_path).open({}).attached() as cache:
        head.backbone(inputs)
        cache.flush()
    return head, inputs


def test_a_flipped_bit_in_stored_features_is_named_when_they_are_used(tmp_path, filled):
    head, inputs = filled
    (file,) = tmp_path.glob("features-*")
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    with torch.no_grad(), VisionCache(tower_of(head), tmp_path).open({}).attached():
        with pytest.raises(InputError, match=f"{file}: altered since it was written; delete it"):
            head.backbone(inputs)
        file.unlink()


def test_features_that_an_earlier_version_stored_without_digests_are_read(tmp_path, filled):
    head, inputs = filled
    (file,) = tmp_path.glob("features-*")
    with safe_open(file, "pt") as shard:
        content = {key: shard.get_tensor(key) for key in shard.keys()}  # noqa: SIM118
    save_file(content, file)
    read = patches_read(tower_of(head))
    with torch.no_grad(), VisionCache(tower_of(head), tmp_path).open({}).attached():
        head.backbone(inputs)
    assert read == []


def test_two_runs_at_once_store_every_picture_once(tmp_path):
    head = tiny_training.tiny_head()
    tower = tower_of(head)
    caches = [VisionCache(tower, tmp_path, name=name).open({}) for name in "01"]
    for cache, names in zip(caches, (NAMES[:2], NAMES), strict=True):
        with torch.no_grad(), cache.attached():
            head.backbone(head.encoder().target(pictures(names)))
    for cache in (*caches, caches[0]):
        cache.flush()
    stored = [set(safe_open(path, "pt").keys()) for path in sorted(tmp_path.glob("features-*"))]
    assert [len(keys) for keys in stored] == [2, 1]
    assert not stored[0] & stored[1]
    assert [len(cache) for cache in caches] == [3, 3]


def test_features_are_written_by_one_process_at_a_time_and_synced_before_they_count(tmp_path):
    head = tiny_training.tiny_head()
    cache = VisionCache(tower_of(head), tmp_path).open({})
    with torch.no_grad(), cache.attached():
        head.backbone(head.encoder().target(pictures()))
    writer = threading.Thread(target=cache.flush)
    with recorded_os(tmp_path) as events:
        with locked(tmp_path):
            writer.start()
            writer.join(0.2)
            assert writer.is_alive()
            assert list(tmp_path.glob("features-*")) == []
        writer.join()
    (file,) = tmp_path.glob("features-*")
    assert events[-3:] == [f"fsync {file.name}", f"rename {file.name}", "fsync ."]


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1, "a": 2}', "[" * 100000])
def test_a_damaged_identity_is_one_line(tmp_path, text):
    (tmp_path / IDENTITY).write_text(text)
    with pytest.raises(InputError, match="identity.json"):
        VisionCache(tower_of(tiny_training.tiny_head()), tmp_path).open({"vision tower": "a"})


def test_keys_tell_pictures_and_shapes_apart():
    one = torch.randn(16, 6)
    other = one.clone()
    other[7, 3] = torch.nextafter(other[7, 3], torch.tensor(9.0))
    swapped = one.clone()
    swapped[[0, 1]] = one[[1, 0]]
    square, long = [[1, 4, 4]], [[1, 2, 8]]
    keys = {
        content_keys([block], grid)[0]
        for block in (one, other, swapped, one[:, :5])
        for grid in (square, long)
    }
    assert len(keys) == 8
    assert content_keys([one, other], square + long) == [
        content_keys([one.clone()], square)[0],
        content_keys([other], long)[0],
    ]


def test_numbers_of_longer_rows_begin_with_those_of_shorter_ones():
    """Otherwise a picture's key would depend on what was hashed before it."""
    assert torch.equal(_lanes(64, "cpu"), _lanes(256, "cpu")[:, :64])
    assert _lanes(256, "cpu").unique().numel() == 512


def test_without_a_folder_nothing_outlives_forget():
    head = tiny_training.tiny_head()
    inputs = head.encoder().target(pictures())
    with torch.no_grad(), VisionCache(tower_of(head)).attached() as cache:
        head.backbone(inputs)
        assert len(cache) == 3
        cache.forget()
        assert len(cache) == 0


@pytest.mark.parametrize("tokens", [400, 10_000], ids=["chunks", "one chunk"])
def test_features_do_not_outlive_the_step_that_shares_them(tmp_path, tokens):
    """Otherwise host memory grows by every picture of the data: a megabyte each for a 7B model."""
    run = tiny_training.trainer(tmp_path, max_steps=2, chunk_tokens=tokens)
    run.train()
    assert len(run.vision) == 0
