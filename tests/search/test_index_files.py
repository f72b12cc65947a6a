"""The files of an index: nothing foreign is touched, no crash or full disk costs anything, damage is one line."""

import json
import os
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from galleries import SHADES, Counting, Turned, kill_9, made, memory_index, unit
from PIL import Image
from recorded_os import recorded_os
from toy_retriever import Plain, write_shades

from cir_cot.errors import InputError
from cir_cot.fingerprint import ALIKE
from cir_cot.images import list_pictures
from cir_cot.search.build import change, open_index
from cir_cot.storage import locked


@pytest.fixture
def images(tmp_path):
    write_shades(tmp_path / "images", SHADES)
    return list_pictures(tmp_path / "images")


def saved(folder, count=20, kind="exact", **options):
    """An index of random vectors in a folder."""
    index = memory_index(unit(count, 8), kind, **options)
    index.metadata["probe"] = unit(3, 8).tolist()
    index.payloads = {"i3": {"price": 30}}
    index.save(folder)
    return index


def content(folder):
    """Every file below a folder with its bytes, but for the lock."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name != ".lock"
    }


def same(index, other):
    rows = np.arange(len(index))
    return index.ids == other.ids and np.array_equal(index.vectors(rows), other.vectors(rows))


# ---- what is not ours


FOREIGN = (
    "records.train.jsonl", "chains.v1.jsonl", "rows.0.jsonl", "rows.7.jsonl", "vectors.5.faiss", "near.old.faiss",
    "my.own.faiss", ".saving.txt", "encoding.txt",
)  # fmt: skip


def test_files_of_others_stay_whatever_an_index_does_beside_them(images, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in FOREIGN:
        (folder / name).write_text(f"paid for: {name}")
    made(images, folder)
    Image.new("RGB", (8, 6), (1, 2, 3)).save(images.root / "new.png")
    index = made(list_pictures(images.root), folder)
    index.remove(["new"]).save(folder)
    assert len(open_index(folder)) == len(SHADES)
    assert {name: (folder / name).read_text() for name in FOREIGN} == {
        name: f"paid for: {name}" for name in FOREIGN
    }
    ours = set(content(folder)) - set(FOREIGN)
    assert ours == {"index.json", "rows.10.jsonl", "vectors.10.faiss"}


def test_a_folder_named_like_that_of_the_parts_is_refused_and_stays(images, tmp_path):
    parts = tmp_path / "data/encoding"
    parts.mkdir(parents=True)
    for name in ("utf8.txt", "0.seen"):
        (parts / name).write_text("mine")
    with pytest.raises(InputError, match="data/encoding: holds files that no index wrote"):
        made(images, tmp_path / "data")
    assert content(parts) == {"utf8.txt": b"mine", "0.seen": b"mine"}


def test_a_file_that_somebody_put_beside_the_parts_stays(images, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        made(images, tmp_path / "index", Counting(stop_after=14))
    (tmp_path / "index/encoding/notes.txt").write_text("mine")
    made(images, tmp_path / "index")
    assert content(tmp_path / "index/encoding") == {"notes.txt": b"mine"}


def test_another_programs_index_json_is_refused_and_stays(images, tmp_path):
    (tmp_path / "index.json").write_text('{"pages": 3}')
    with pytest.raises(InputError, match="not an index of format 1"):
        made(images, tmp_path)
    assert (tmp_path / "index.json").read_text() == '{"pages": 3}'


# ---- crashes


def test_a_save_forces_files_then_folder_then_names_to_the_disk_in_that_order(tmp_path):
    index = saved(tmp_path, 60, "IVF2,Flat")
    with recorded_os(tmp_path) as events:
        index.save(tmp_path)
    after = events[events.index("rename .saving.json") + 1 :]
    order = ["fsync .", "fsync rows.2.jsonl", "fsync vectors.2.faiss", "fsync near.2.faiss", "fsync .",
             "fsync index.json", "rename index.json", "fsync .", "unlink rows.1.jsonl", "unlink vectors.1.faiss",
             "unlink near.1.faiss", "unlink .saving.json"]  # fmt: skip
    place = -1
    for event in order:
        place = after.index(event, place + 1)
    assert after.count("rename index.json") == 1


def test_wherever_a_save_is_killed_the_old_or_the_new_state_is_whole_and_the_rest_is_removed_later(
    tmp_path,
):
    """The folder is copied before each call that changes it: what kill -9 would have left there."""
    old = saved(tmp_path / "index", 60, "IVF2,Flat")
    new, copies = old.remove(["i5", "i9"]), []
    real = {name: getattr(os, name) for name in ("fsync", "replace", "unlink", "rename")}

    def copying(name):
        def call(*args, **options):
            copies.append(tmp_path / f"copy{len(copies)}")
            shutil.copytree(tmp_path / "index", copies[-1])
            return real[name](*args, **options)

        return call

    with mock.patch.multiple(os, **{name: copying(name) for name in real}):
        new.save(tmp_path / "index")
    assert len(copies) >= 12
    for copy in copies:
        assert same(open_index(copy), old) or same(open_index(copy), new)
        saved(copy, 70, "IVF2,Flat")
        ours = {name for name in content(copy) if not name.startswith(".index.json")}
        assert len([name for name in ours if not name.startswith(".")]) == 4, ours
        assert len(open_index(copy)) == 70


@contextmanager
def largest_file(size):
    """No file may grow beyond so many bytes: what a full disk is to whoever writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [10, 1000, 2500, 5000])
def test_a_full_disk_leaves_the_old_index_and_nothing_else(tmp_path, size):
    old = saved(tmp_path)
    before = content(tmp_path)
    bigger = memory_index(unit(200, 8))
    bigger.metadata["probe"] = old.metadata["probe"]
    with (
        largest_file(size),
        pytest.raises(InputError, match=rf"{tmp_path}.*File too large.*; make room"),
    ):
        bigger.save(tmp_path)
    assert content(tmp_path) == before
    assert same(open_index(tmp_path), old)
    bigger.save(tmp_path)
    assert len(open_index(tmp_path)) == 200


def test_a_disk_that_fills_while_encoding_costs_one_batch(images, tmp_path):
    retriever = Counting()
    with largest_file(400), pytest.raises(InputError, match="File too large; make room"):
        made(images, tmp_path / "index", retriever)
    again = Counting()
    index = made(images, tmp_path / "index", again)
    assert retriever.encoded == 16, "of 32 bytes a row three batches of four fit"
    assert again.encoded == len(SHADES) - 12
    assert same(index, made(images, tmp_path / "other"))


# ---- two at once


def test_a_second_process_on_the_folder_is_refused_and_the_first_ones_index_is_right(tmp_path):
    write_shades(tmp_path / "images", range(60))
    store = list_pictures(tmp_path / "images")

    def second(process):
        part = tmp_path / "index/encoding/0.encoded"
        while not (part.exists() and part.stat().st_size):
            assert process.poll() is None
        with pytest.raises(InputError, match=rf"index: process {process.pid} is writing it"):
            made(store, tmp_path / "index", Turned())
        for change_it in (
            lambda: change(tmp_path / "index").__enter__(),
            lambda: open_index(tmp_path / "index"),
        ):
            with pytest.raises(InputError, match=r"no index\.json here"):
                change_it()

    kill_9(store, tmp_path / "index", second)
    index = made(store, tmp_path / "index")
    wanted = Plain().encode_target([store.load(name) for name in index.ids]).numpy()
    assert np.array_equal(index.vectors(np.arange(60)), wanted)


def test_an_index_cannot_be_changed_while_another_process_writes_it(tmp_path):
    saved(tmp_path)
    with locked(tmp_path), pytest.raises(InputError, match="is writing it"), change(tmp_path):
        raise AssertionError("two change it")


# ---- damage


def test_an_index_of_an_earlier_version_loads_and_is_updated(images, tmp_path):
    made(images, tmp_path / "index")
    path = tmp_path / "index/index.json"
    facts = json.loads(path.read_text())
    del facts["digests"]
    path.write_text(json.dumps(facts))
    retriever = Counting()
    Image.new("RGB", (8, 6), (1, 2, 3)).save(images.root / "new.png")
    index = made(list_pictures(images.root), tmp_path / "index", retriever)
    assert (len(index), retriever.encoded) == (len(SHADES) + 1, 1)
    assert set(index.metadata["digests"]) == {"rows", "vectors"}


def edit(**changes):
    def damage(folder):
        path = folder / "index.json"
        facts = json.loads(path.read_text())
        for key, value in changes.items():
            facts.pop(key, None)
            if value is not ...:
                facts[key] = value
        path.write_text(json.dumps(facts))

    return damage


def write(name, text):
    return lambda folder: (folder / name).write_bytes(
        text.encode() if isinstance(text, str) else text
    )


def flip(name, at):
    def damage(folder):
        data = bytearray((folder / name).read_bytes())
        data[at] ^= 16
        (folder / name).write_bytes(data)

    return damage


def cut(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


KEYS = ("format", "kind", "dtype", "dim", "width", "number", "count", "probe")
DAMAGED = {
    "not JSON": write("index.json", "{"),
    "empty": write("index.json", ""),
    "not UTF-8": write("index.json", b"\xff\xfe{}"),
    "a list": write("index.json", "[]"),
    "deeply nested": write("index.json", "[" * 100000),
    "a number of 5000 digits": write("index.json", '{"format": 1, "number": ' + "9" * 5000 + "}"),
    "NaN": write("index.json", '{"format": NaN}'),
    "a key twice": write("index.json", '{"format": 1, "format": 1}'),
    **{
        f"no {key}": edit(**{key: ...})
        for key in ("format", "kind", "dtype", "dim", "width", "number", "count", "probe")
    },
    **{
        f"{key} as text": edit(**{key: "x"})
        for key in ("format", "dtype", "dim", "number", "count", "probe", "digests")
    },
    "kind as a list": edit(kind=[]),
    "kind unknown": edit(kind="IVF2,Flat"),
    "dim huge": edit(dim=10**300),
    "width huge": edit(width=10**30),
    "width zero": edit(width=0),
    "width wider than the vectors": edit(width=9),
    "width narrower": edit(width=7),
    "number negative": edit(number=-1),
    "number of another state": edit(number=2),
    "number a float": edit(number=1.0),
    "number a truth": edit(number=True),
    "count too low": edit(count=19),
    "count too high": edit(count=21),
    "dtype another": edit(dtype="int8"),
    "digests of numbers": edit(digests={"rows": 3}),
    "probe ragged": edit(probe=[[0.1], [0.1, 0.2]]),
    "probe of words": edit(probe=[["a"]]),
    "bounds of words": edit(pixels={"max_pixels": "all"}),
    "no bounds": edit(pixels=[1]),
    "probe huge": edit(probe=[[10**400]]),
    "rows missing": lambda folder: (folder / "rows.1.jsonl").unlink(),
    "vectors missing": lambda folder: (folder / "vectors.1.faiss").unlink(),
    "rows flipped": flip("rows.1.jsonl", 40),
    "vectors flipped": flip("vectors.1.faiss", -3),
    "vectors cut": cut("vectors.1.faiss", 400),
    "vectors empty": cut("vectors.1.faiss", 0),
    "rows cut at a line": cut("rows.1.jsonl", 0),
    "rows a folder": lambda folder: (
        (folder / "rows.1.jsonl").unlink(),
        (folder / "rows.1.jsonl").mkdir(),
    ),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_damage_is_one_line_that_names_the_place(tmp_path, damage):
    saved(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError) as caught:
        open_index(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def line(number, text):
    def damage(folder):
        lines = (folder / "rows.1.jsonl").read_text().splitlines(keepends=True)
        lines[number] = text
        (folder / "rows.1.jsonl").write_text("".join(lines))

    return damage


def infinite(folder):
    data = (folder / "vectors.1.faiss").read_bytes()
    (folder / "vectors.1.faiss").write_bytes(data[:-4] + np.float32(np.nan).tobytes())


WITHOUT_DIGEST = {
    "a row less": (line(3, ""), "19 pictures, not 20"),
    "a row twice": (line(3, '{"id": "i4", "hash": "4"}\n'), "19 pictures, not 20"),
    "no hash": (line(3, '{"id": "i3"}\n'), "rows.1.jsonl:4: no row of an index"),
    "an id that is a number": (line(3, '{"id": 3, "hash": "3"}\n'), "rows.1.jsonl:4"),
    "a list": (line(3, "[]\n"), "rows.1.jsonl:4: no row"),
    "not JSON": (line(3, "{\n"), "rows.1.jsonl:4: not valid JSON"),
    "a payload that is a word": (
        line(3, '{"id": "i3", "hash": "3", "payload": "x"}\n'),
        "rows.1.jsonl:4: no row",
    ),
    "not a number": (infinite, "vectors.1.faiss: holds a number that is not finite"),
    "cut": (cut("vectors.1.faiss", 400), "vectors.1.faiss: cannot be read"),
    "no store": (write("vectors.1.faiss", b"x" * 500), "vectors.1.faiss: cannot be read"),
    "a store of another size": (flip("vectors.1.faiss", 4), "vectors.1.faiss"),
    "too many vectors": (flip("vectors.1.faiss", 14), "vectors.1.faiss"),
}


@pytest.mark.parametrize(("damage", "words"), WITHOUT_DIGEST.values(), ids=WITHOUT_DIGEST)
def test_damage_that_no_digest_would_tell_is_found_too(tmp_path, damage, words):
    saved(tmp_path)
    edit(digests=...)(tmp_path)
    assert len(open_index(tmp_path)) == 20
    damage(tmp_path)
    with pytest.raises(InputError, match=words):
        open_index(tmp_path)


def test_an_approximate_kinds_second_file_is_checked(tmp_path):
    saved(tmp_path / "a", 60, "IVF2,Flat")
    flip("near.1.faiss", -1)(tmp_path / "a")
    with pytest.raises(InputError, match="near.1.faiss: altered since it was written"):
        open_index(tmp_path / "a")
    saved(tmp_path / "b", 60, "IVF2,Flat")
    edit(digests=...)(tmp_path / "b")
    saved(tmp_path / "c", 50, "IVF2,Flat")
    shutil.copy(tmp_path / "c/near.1.faiss", tmp_path / "b/near.1.faiss")
    with pytest.raises(InputError, match="near.1.faiss: 50 vectors of 8 numbers, not 60"):
        open_index(tmp_path / "b")


@pytest.mark.parametrize("text", ["{", '{"probe": 3}', '{"probe": [["a"]]}', "[]"])
def test_a_damaged_fingerprint_of_an_interrupted_run_is_one_line(images, tmp_path, text):
    with pytest.raises(KeyboardInterrupt):
        made(images, tmp_path / "index", Counting(stop_after=14))
    (tmp_path / "index/encoding/probe.json").write_text(text)
    with pytest.raises(InputError, match=r"probe\.json"):
        made(images, tmp_path / "index")


# ---- names and pictures


def test_a_file_name_that_is_no_utf_8_is_left_out_by_name_before_anything_is_encoded(
    images, tmp_path
):
    odd = os.fsencode(images.root) + b"/caf\xe9.png"
    shutil.copy(images.root / "s010.png", odd)
    index = made(list_pictures(images.root), tmp_path / "index")
    assert len(index) == len(SHADES)
    assert index.metadata["unreadable"] == {
        "caf\\udce9": "the name of its file is no UTF-8; rename the file"
    }


def test_a_folder_name_that_is_no_utf_8_does_not_stop_an_index(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    write_shades(folder, SHADES)
    index = made(list_pictures(folder), folder / "index")
    assert index.metadata["images"].endswith("caf\\udce9")
    assert len(index) == len(SHADES)


def test_a_picture_that_is_200_times_as_long_as_high_is_left_out_on_every_run(images, tmp_path):
    Image.new("RGB", (2010, 10)).save(images.root / "long.png")
    for _ in range(2):
        index = made(list_pictures(images.root), tmp_path / "index")
        assert len(index) == len(SHADES)
        assert "long.png: " in index.metadata["unreadable"]["long"]


# ---- retrievers


class Tilted(Plain):
    """The toy retriever, whose space is turned by the angle of a cosine."""

    def __init__(self, cosine):
        self.turn = torch.tensor(
            [[cosine, -((1 - cosine**2) ** 0.5)], [(1 - cosine**2) ** 0.5, cosine]]
        )

    def encode_target(self, images):
        return super().encode_target(images) @ self.turn.T


@pytest.mark.parametrize(
    ("cosine", "alike"), [(1.0, True), (0.9995, True), (0.9985, False), (0.9, False), (0.6, False)]
)
def test_a_retriever_is_refused_from_a_cosine_of_0_999_downward(images, tmp_path, cosine, alike):
    index = made(images, tmp_path / "index")
    assert ALIKE == 0.999
    if alike:
        index.check(Tilted(cosine))
    else:
        with pytest.raises(InputError, match="cosine 0"):
            index.check(Tilted(cosine))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_a_store_of_every_dtype_is_read_again(tmp_path, dtype):
    index = saved(tmp_path, dtype=dtype)
    assert same(open_index(tmp_path), index)
    edit(dtype="float16" if dtype == "int8" else "int8", digests=...)(tmp_path)
    with pytest.raises(InputError, match="vectors.1.faiss: not stored as"):
        open_index(tmp_path)
