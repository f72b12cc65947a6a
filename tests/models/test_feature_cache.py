"""Cached vectors: computed once, found again, never taken for another's, rebuilt when a file is torn."""

import logging
import os
import resource
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from PIL import Image
from recorded_os import recorded_os
from safetensors.torch import save_file

from cir_cot.digests import digest_bytes
from cir_cot.errors import InputError
from cir_cot.images import ImageStore
from cir_cot.models.feature_cache import FeatureCache, picture_vectors, text_vectors
from cir_cot.ranks import Ranks
from cir_cot.storage import locked


class Encoder:
    """Brightness of pictures, length of texts; counts what it was asked for."""

    def __init__(self):
        self.asked = 0

    def pictures(self, pictures):
        self.asked += len(pictures)
        return torch.tensor([[float(picture.getpixel((0, 0))[0]), 1.0] for picture in pictures])

    def texts(self, texts):
        self.asked += len(texts)
        return torch.tensor([[float(len(text)), 2.0] for text in texts])


@pytest.fixture
def store(tmp_path):
    (tmp_path / "images").mkdir()
    for shade in range(6):
        Image.new("RGB", (4, 4), (shade, 0, 0)).save(tmp_path / "images" / f"p{shade}.png")
    return ImageStore(tmp_path / "images")


def encode(folder, store, names, identity="model a"):
    encoder, cache = Encoder(), FeatureCache(folder, identity)
    vectors = picture_vectors(cache, encoder.pictures, store, names)
    assert cache.computed == encoder.asked
    return vectors, encoder.asked


NAMES = [f"p{shade}" for shade in (3, 1, 4, 1, 5)]


def test_a_picture_is_encoded_once_and_found_by_every_later_run(tmp_path, store):
    vectors, asked = encode(tmp_path / "cache", store, NAMES)
    assert asked == 4  # p1 is there twice
    assert [vectors.load(name)[0].item() for name in NAMES] == [3, 1, 4, 1, 5]
    again, asked = encode(tmp_path / "cache", store, [*NAMES, "p0"])
    assert asked == 1
    assert all(torch.equal(again[name], vectors[name]) for name in NAMES)
    assert again["p0"][0] == 0


def test_processes_share_the_work_and_all_find_everything(tmp_path, store):
    barrier = Barrier(2, timeout=60)
    caches = [FeatureCache(tmp_path / "cache", "model a") for _ in range(2)]

    def work(rank):
        ranks = Ranks(rank, 2, barrier.wait)
        found = picture_vectors(caches[rank], Encoder().pictures, store, NAMES, ranks)
        return [found.load(name)[0].item() for name in NAMES]

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(work, range(2)))
    assert found == [[3, 1, 4, 1, 5]] * 2
    assert [cache.computed for cache in caches] == [2, 2]
    # A later run, of any number of processes, computes nothing.
    assert encode(tmp_path / "cache", store, NAMES)[1] == 0


def test_texts_and_pictures_do_not_meet(tmp_path, store):
    encoder, cache = Encoder(), FeatureCache(tmp_path / "cache", "a")
    words = text_vectors(cache, encoder.texts, ["red", "", "red", "shorter"])
    assert {text: vector[0].item() for text, vector in words.items()} == {
        "red": 3,
        "": 0,
        "shorter": 7,
    }
    assert encoder.asked == 3
    picture_vectors(cache, encoder.pictures, store, ["p0"])
    assert len(cache) == 4


def test_a_text_and_a_file_of_the_same_bytes_have_entries_of_their_own(tmp_path, store):
    (store.root / "p0.png").write_bytes(b"red")
    cache = FeatureCache(tmp_path / "cache", "a")
    text_vectors(cache, Encoder().texts, ["red''"])  # a fingerprint without a box ends in ''
    assert len(cache.places) == 1
    assert store.fingerprint("p0") not in cache.places


def test_the_same_picture_under_another_name_is_known_and_a_changed_one_is_not(tmp_path, store):
    encode(tmp_path / "cache", store, ["p0", "p1"])
    (store.root / "copy.png").write_bytes((store.root / "p1.png").read_bytes())
    assert encode(tmp_path / "cache", store, ["copy"])[1] == 0
    Image.new("RGB", (4, 4), (200, 0, 0)).save(store.root / "p1.png")
    vectors, asked = encode(tmp_path / "cache", store, ["p0", "p1"])
    assert asked == 1
    assert vectors["p1"][0] == 200


def test_a_box_is_part_of_a_pictures_content(store):
    boxed = ImageStore(store.root, boxes={"p1": (0, 0, 2, 2)})
    assert boxed.fingerprint("p1") != store.fingerprint("p1")
    assert boxed.fingerprint("p2") == store.fingerprint("p2")


def test_another_model_or_preprocessing_finds_nothing(tmp_path, store):
    encode(tmp_path / "cache", store, NAMES)
    assert encode(tmp_path / "cache", store, NAMES, "model b")[1] == 4
    assert encode(tmp_path / "cache", store, NAMES)[1] == 0


def truncate(path):
    path.write_bytes(path.read_bytes()[:-3])


def zero(path):
    content = bytearray(path.read_bytes())
    content[-6:] = bytes(6)
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, zero, empty])
def test_a_truncated_file_is_deleted_with_a_warning_and_rebuilt(tmp_path, store, caplog, damage):
    vectors = (
        encode(tmp_path / "cache", store, ["p3"])[0]
        | encode(tmp_path / "cache", store, ["p4", "p5"])[0]
    )
    files = sorted(
        (tmp_path / "cache").rglob("*.safetensors"), key=lambda path: path.stat().st_size
    )
    damage(files[-1])
    with caplog.at_level(logging.WARNING):
        again, asked = encode(tmp_path / "cache", store, ["p3", "p4", "p5"])
    assert asked == 2  # the whole file beside it was not touched
    assert f"{files[-1]} is truncated or altered" in caplog.text
    assert all(torch.equal(again[name], vectors[name]) for name in again)
    caplog.clear()
    assert encode(tmp_path / "cache", store, ["p3", "p4", "p5"])[1] == 0
    assert not caplog.text


def test_a_file_that_is_not_the_caches_is_neither_read_nor_deleted(tmp_path, store):
    encode(tmp_path / "cache", store, ["p3"])
    mine = tmp_path / "cache/model a/model.safetensors"
    mine.write_bytes(b"weights")
    assert encode(tmp_path / "cache", store, ["p3"])[1] == 0
    assert mine.read_bytes() == b"weights"


ONE_KEY = torch.zeros(1, 16, dtype=torch.uint8)
MISSHAPEN = (
    {"keys": torch.zeros(2, 16, dtype=torch.uint8), "vectors": torch.zeros(1, 2)},
    {"keys": ONE_KEY, "vectors": torch.zeros(1, 2).int()},
    {"keys": ONE_KEY, "vectors": torch.zeros(2)},
    {"vectors": torch.zeros(1, 2)},
)


@pytest.mark.parametrize("content", MISSHAPEN)
def test_a_file_of_other_shapes_is_computed_again(tmp_path, store, content, caplog):
    encode(tmp_path / "cache", store, ["p3"])
    (file,) = (tmp_path / "cache").rglob("*.safetensors")
    digest = digest_bytes(b"".join(value.numpy().tobytes() for value in content.values()))
    save_file(content, file, {"digest": digest})
    assert encode(tmp_path / "cache", store, ["p3"])[1] == 1
    assert "truncated or altered" in caplog.text


def test_a_cache_that_another_process_fills_is_refused_but_what_is_there_is_read(tmp_path, store):
    encode(tmp_path / "cache", store, ["p3"])
    cache = FeatureCache(tmp_path / "cache", "model a")
    with locked(cache.folder):
        assert picture_vectors(cache, Encoder().pictures, store, ["p3"])["p3"][0] == 3
        with pytest.raises(
            InputError, match=f"{cache.folder}: process {os.getpid()} is writing it"
        ):
            picture_vectors(cache, Encoder().pictures, store, ["p4"])


def test_what_another_process_has_written_since_the_cache_was_opened_is_not_computed_again(
    tmp_path, store
):
    cache, encoder = FeatureCache(tmp_path / "cache", "model a"), Encoder()
    encode(tmp_path / "cache", store, ["p3", "p4"])
    vectors = picture_vectors(cache, encoder.pictures, store, ["p3", "p4", "p5"])
    assert encoder.asked == 1
    assert [vectors[name][0].item() for name in ("p3", "p4", "p5")] == [3, 4, 5]


def test_a_number_that_is_not_finite_is_not_kept(tmp_path, store):
    cache = FeatureCache(tmp_path / "cache", "model a")
    with pytest.raises(InputError, match="not finite"):
        picture_vectors(cache, lambda pictures: torch.tensor([[float("nan"), 1.0]]), store, ["p3"])
    assert list((tmp_path / "cache").rglob("*.safetensors")) == []


def test_vectors_are_on_the_disk_before_they_get_their_name_and_the_name_before_they_count(
    tmp_path, store
):
    with recorded_os(tmp_path / "cache/model a") as events:
        encode(tmp_path / "cache", store, ["p3"])
    (file,) = (tmp_path / "cache").rglob("*.safetensors")
    assert events[-3:] == [f"fsync {file.name}", f"rename {file.name}", "fsync ."]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, store):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    cache = FeatureCache(tmp_path / "cache", "model a")
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(InputError, match="File too large"):
            picture_vectors(cache, Encoder().pictures, store, ["p3"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in (tmp_path / "cache/model a").iterdir()] == [".lock"]


def test_what_a_crash_left_half_written_is_not_read(tmp_path, store):
    encode(tmp_path / "cache", store, ["p3"])
    (file,) = (tmp_path / "cache").rglob("*.safetensors")
    file.rename(file.with_name(f".{file.stem}.123"))
    assert encode(tmp_path / "cache", store, ["p3"])[1] == 1


def test_a_cache_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file/a: no cache can be created here"):
        FeatureCache(tmp_path / "file", "a")


def test_a_key_is_a_digest_that_caches_of_other_versions_share():
    assert digest_bytes(b"") == "cae66941d9efbd404e4d88758ea67670"  # BLAKE2b of 128 bits
    assert digest_bytes(b"a") == "27c35e6e9373877f29e562464e46497e"
    assert digest_bytes(b"text a") != digest_bytes(b"a")
