"""The index: exact ranks, what is encoded again and what is not, refusals; FAISS and Qdrant by the same tests."""

import json
import random
import time

import numpy as np
import pytest
import torch
from galleries import SHADES, Counting, Turned, Wide, kill_9, made, memory_index, names, unit
from PIL import Image
from recorded_os import recorded_os
from toy_retriever import Constant, Plain, write_shades

from cir_cot.errors import InputError
from cir_cot.fingerprint import fingerprint
from cir_cot.images import list_pictures
from cir_cot.ranks import Ranks
from cir_cot.search.build import open_index
from cir_cot.search.faiss_index import Index
from cir_cot.search.faiss_stores import DEEPER
from cir_cot.search.gallery_scan import encode_rank, read_scan
from cir_cot.search.payload_filter import check_filter, matches_filter
from cir_cot.search.vector_store import CHECKSUM, HASH, VectorLog, Vectors, truncate_dims


@pytest.fixture
def images(tmp_path):
    write_shades(tmp_path / "images", SHADES)
    return list_pictures(tmp_path / "images")


# ---- search


@pytest.mark.parametrize("count", [1, 5, 40, 3000])
def test_an_exact_index_ranks_as_float64_does(count):
    gallery, queries = unit(count, 48), unit(7, 48, seed=1)
    answers = memory_index(gallery).search(torch.from_numpy(queries), 10)
    scores = queries.astype(np.float64) @ gallery.astype(np.float64).T
    for row, answer in enumerate(answers):
        order = np.lexsort((np.arange(count), -scores[row].astype(np.float32)))[:10]
        assert [name for name, _ in answer] == [f"i{n}" for n in order]
        assert [score for _, score in answer] == scores[row].astype(np.float32)[order].tolist()


def test_equal_scores_come_in_the_order_of_the_gallery_however_many_there_are():
    """More equal pictures than candidates are looked at first: the search has to go deeper to be certain."""
    gallery = np.repeat(unit(3, 16), 3 * DEEPER, axis=0)[
        np.random.default_rng(0).permutation(9 * DEEPER)
    ]
    (answer,) = memory_index(gallery).search(unit(1, 16, seed=2), 5)
    scores = (gallery.astype(np.float64) @ unit(1, 16, seed=2)[0].astype(np.float64)).astype(
        np.float32
    )
    assert [name for name, _ in answer] == [
        f"i{n}" for n in np.flatnonzero(scores == scores.max())[:5]
    ]


def test_near_equal_scores_that_float32_sums_may_swap_are_ordered_by_float64():
    base = unit(1, 256)[0].astype(np.float64)
    steps = np.random.default_rng(0).standard_normal((400, 256)) * 3e-8
    gallery = (base + steps).astype(np.float32)
    (answer,) = memory_index(gallery).search(base[None].astype(np.float32), 20)
    exact = (gallery.astype(np.float64) @ base.astype(np.float32).astype(np.float64)).astype(
        np.float32
    )
    assert [name for name, _ in answer] == [
        f"i{n}" for n in np.lexsort((np.arange(400), -exact))[:20]
    ]


@pytest.mark.parametrize(("dtype", "loss"), [("float32", 0.0), ("float16", 1e-3), ("int8", 2e-2)])
def test_what_a_smaller_store_loses_is_bounded(dtype, loss):
    gallery = unit(2000, 64)
    index = memory_index(gallery, dtype=dtype)
    assert np.abs(index.vectors(np.arange(2000)) - gallery).max() <= loss
    assert index.store.code_size == 64 * {"float32": 4, "float16": 2, "int8": 1}[dtype]
    found = [answer[0][0] for answer in index.search(gallery[:50], 1)]
    assert found == [f"i{n}" for n in range(50)]


def test_shortened_vectors_are_unit_and_rank_by_their_first_numbers():
    gallery, queries = unit(500, 64), unit(5, 64, seed=1)
    index = memory_index(gallery, width=16)
    assert np.allclose(np.linalg.norm(index.vectors(np.arange(500)), axis=1), 1, atol=1e-6)
    for query, answer in zip(queries, index.search(queries, 5), strict=True):
        scores = truncate_dims(gallery, 16).astype(np.float64) @ truncate_dims(query[None], 16)[
            0
        ].astype(np.float64)
        assert [name for name, _ in answer] == [f"i{n}" for n in np.argsort(-scores)[:5]]
    assert np.array_equal(truncate_dims(gallery, 64), gallery), (
        "whole vectors stay as the retriever gave them"
    )


@pytest.mark.parametrize(
    ("kind", "tuned"), [("IVF16,Flat", "nprobe=16"), ("HNSW16", "efSearch=400")]
)
def test_an_approximate_kind_that_looks_everywhere_finds_what_the_exact_one_does(
    kind, tuned, tmp_path
):
    gallery, queries = unit(1500, 32), unit(20, 32, seed=1)
    index, exact = memory_index(gallery, kind), memory_index(gallery)
    index.tune(tuned)
    wanted = exact.search(queries, 5)
    found = index.search(queries, 5)
    hits = sum(len(set(a) & set(b)) for a, b in zip(wanted, found, strict=True))
    assert hits >= 97
    index.metadata["probe"] = []
    index.save(tmp_path)
    again = Index.load(tmp_path)
    assert again.search(queries, 5) == found
    assert again.metadata["tuned"] == tuned


def test_what_cannot_be_searched_is_refused():
    index = memory_index(unit(5, 8))
    with pytest.raises(InputError, match="k is 0"):
        index.search(unit(1, 8), 0)
    with pytest.raises(InputError, match="queries of 9 numbers"):
        index.search(unit(1, 9), 1)
    with pytest.raises(InputError, match="looks at every picture"):
        index.tune("nprobe=3")
    with pytest.raises(InputError, match="no setting"):
        memory_index(unit(200, 8), "IVF2,Flat").tune("wings=2")
    assert len(index.search(unit(1, 8), 100)[0]) == 5
    assert index.search(np.zeros((0, 8), dtype=np.float32), 3) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "telepathy"}, "telepathy"),
        ({"dtype": "int3"}, "int3"),
        ({"width": 3}, "width 3"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"kind": "qdrant:nowhere"}, "#<collection>"),
    ],
)
def test_settings_that_cannot_be_are_refused(images, tmp_path, options, words):
    with pytest.raises(InputError, match=words):
        made(images, tmp_path / "index", **options)


# ---- filters


FITTING = [
    ({"kind": "dress"}, {"a", "b"}),
    ({"kind": ["dress", "shoe"]}, {"a", "b", "c"}),
    ({"price": {"lt": 20}}, {"a"}),
    ({"price": {"gte": 20, "lte": 30}, "kind": "dress"}, {"b"}),
    ({"size": 3}, set()),
    ({}, {"a", "b", "c", "d"}),
]
GOODS = {
    "a": {"kind": "dress", "price": 10},
    "b": {"kind": "dress", "price": 20},
    "c": {"kind": "shoe", "price": 30},
}


@pytest.mark.parametrize(("where", "wanted"), FITTING)
def test_matches_filter(where, wanted):
    assert {
        name for name in "abcd" if matches_filter(GOODS.get(name, {}), check_filter(where))
    } == wanted


@pytest.mark.parametrize("where", ["dress", {"price": {"under": 3}}, {"price": {"lt": "3"}}])
def test_a_filter_that_is_none_is_refused(where):
    with pytest.raises(InputError):
        check_filter(where)


# ---- both stores


@pytest.fixture(params=["exact", "HNSW8", "qdrant"])
def kind(request, tmp_path):
    if request.param == "qdrant":
        pytest.importorskip("qdrant_client")
        return f"qdrant:{tmp_path / 'collection'}#shop"
    return request.param


def test_a_gallery_is_built_searched_updated_and_reduced(images, tmp_path, kind):
    folder, retriever = tmp_path / "index", Counting()
    index = made(images, folder, retriever, kind=kind)
    assert (len(index), retriever.encoded) == (len(SHADES), len(SHADES))
    query = Plain().encode_query([images.load("s030")], ["20"]).embeddings
    (answer,) = index.search(query, 3)
    assert answer[0][0] == "s050"
    assert answer[0][1] == pytest.approx(1, abs=1e-6)
    index.close()
    Image.new("RGB", (8, 6), (51, 51, 51)).save(images.root / "s200.png")  # changed
    Image.new("RGB", (8, 6), (33, 33, 33)).save(images.root / "new.png")
    (images.root / "s050.png").rename(images.root / "renamed.png")
    (images.root / "s000.png").unlink()
    retriever, store = Counting(), list_pictures(images.root)
    index = made(store, folder, retriever, kind=kind)
    assert retriever.encoded == 2, (
        "the changed one and the new one; a renamed file is the same picture"
    )
    assert sorted(index.list_ids()) == sorted(names(store))
    assert {name for name, _ in index.search(query, 2)[0]} == {"renamed", "s200"}
    smaller = index.remove(["renamed"])
    smaller.save(folder)
    index.close()
    index = open_index(folder)
    assert len(index) == len(SHADES) - 1
    assert index.search(query, 1)[0][0][0] == "s200"
    with pytest.raises(InputError, match="'renamed' is not in the index"):
        index.remove(["renamed"])
    index.close()


def test_payloads_filter_and_stay_through_updates(images, tmp_path, kind):
    payloads = {
        f"s{shade:03}": {"kind": "dark" if shade < 100 else "light", "price": shade}
        for shade in SHADES[1:]
    }
    folder = tmp_path / "index"
    made(images, folder, kind=kind, payloads=payloads).close()
    (images.root / "s240.png").unlink()
    index = made(list_pictures(images.root), folder, kind=kind)
    query = Plain().encode_target([images.load("s000")])
    for where, wanted in [
        (None, ["s000", "s010"]),
        ({"kind": "light"}, ["s100", "s110"]),
        ({"kind": ["light", "dark"], "price": {"gt": 30, "lte": 60}}, ["s040", "s050"]),
        ({"price": 20}, ["s020"]),
        ({"price": {"gt": 999}}, []),
    ]:
        assert [name for name, _ in index.search(query, 2, where)[0]] == wanted
    index.close()


@pytest.fixture
def shop(tmp_path):
    pytest.importorskip("qdrant_client")
    return f"qdrant:{tmp_path / 'collection'}#shop"


def test_what_another_index_put_into_a_collection_stays(images, tmp_path, shop):
    made(images, tmp_path / "index", kind=shop).close()
    write_shades(tmp_path / "others", [5, 10, 15])
    with pytest.raises(
        InputError, match=f"'shop': holds {len(SHADES) - 1} pictures of another index"
    ):
        made(list_pictures(tmp_path / "others"), tmp_path / "other", kind=shop)
    index = open_index(tmp_path / "index")
    assert len(index) == len(SHADES)
    index.close()


def test_points_that_are_not_of_an_index_are_refused(images, tmp_path, shop):
    index = made(images, tmp_path / "index", kind=shop)
    point = index.models.PointStruct(id=7, vector=[1.0, 0.0], payload={"title": "a song"})
    index.client.upsert("shop", [point])
    with pytest.raises(InputError, match="point 7 is not of an index"):
        index.remove(["s010"])
    index.close()
    with pytest.raises(InputError, match="point 7 is not of an index"):
        made(images, tmp_path / "index", kind=shop)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # the client leaves its lock file open
def test_a_collection_that_cannot_be_opened_is_one_line(images, tmp_path, shop):
    index = made(images, tmp_path / "index", kind=shop)
    with pytest.raises(InputError, match="collection: no Qdrant collection can be opened here"):
        open_index(tmp_path / "index")
    index.close()
    with pytest.raises(InputError, match="localhost:9: no Qdrant collection can be opened here"):
        made(images, tmp_path / "other", kind="qdrant:http://localhost:9#shop")


def test_another_retriever_is_refused(images, tmp_path, kind):
    index = made(images, tmp_path / "index", kind=kind)
    index.check(Plain())
    for other, words in ((Turned(), "cosine"), (Constant(), "8 numbers"), (Wide(), "64 numbers")):
        with pytest.raises(InputError, match=words):
            index.check(other)
    index.close()
    with pytest.raises(InputError, match="another retriever"):
        made(images, tmp_path / "index", Turned(), kind=kind)


class Bounded(Plain):
    """The same retriever, which says to which areas it resizes pictures."""

    largest = 3136

    def pixel_bounds(self):
        return {"min_pixels": 784, "max_pixels": self.largest}


class Finer(Bounded):
    largest = 7056


def test_a_retriever_at_other_pixel_bounds_is_refused(images, tmp_path, kind):
    index = made(images, tmp_path / "index", Bounded(), kind=kind)
    index.check(Bounded())
    wanted = "max_pixels 3136, .* max_pixels 7056; give --min-pixels 784 --max-pixels 3136, or"
    with pytest.raises(InputError, match=wanted):
        index.check(Finer())
    # An earlier version wrote no bounds, and not every retriever has them.
    index.check(Plain())
    del index.metadata["pixels"]
    index.check(Finer())
    index.close()
    with pytest.raises(InputError, match="max_pixels 3136"):
        made(images, tmp_path / "index", Finer(), kind=kind)


def test_a_run_at_other_pixel_bounds_is_not_continued(images, tmp_path):
    class Stopping(Counting):
        def pixel_bounds(self):
            return Bounded().pixel_bounds()

    with pytest.raises(KeyboardInterrupt):
        made(images, tmp_path / "index", Stopping(stop_after=14))
    with pytest.raises(InputError, match="encoded at min_pixels 784 and max_pixels 3136"):
        made(images, tmp_path / "index", Finer())
    made(images, tmp_path / "index", Bounded())


def test_the_probe_sees_a_small_change_and_no_noise():
    first = fingerprint(Wide())
    assert first.shape == (3, 64)
    assert np.array_equal(first, fingerprint(Wide()))
    assert not np.allclose(first[0], first[1], atol=0.1)


# ---- encoding once


def test_an_interrupted_run_goes_on_where_it_was(images, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        made(images, tmp_path / "index", Counting(stop_after=14))
    again = Counting()
    index = made(images, tmp_path / "index", again)
    assert again.encoded == len(SHADES) - 12, "three batches of four were done"
    whole = made(images, tmp_path / "other")
    assert np.array_equal(
        index.vectors(np.arange(len(index))), whole.vectors(np.arange(len(whole)))
    )
    assert not (tmp_path / "index/encoding").exists()


def test_a_run_of_another_retriever_is_not_continued(images, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        made(images, tmp_path / "index", Counting(stop_after=14))
    with pytest.raises(InputError, match="another retriever"):
        made(images, tmp_path / "index", Turned())


def part_of_six(folder):
    """A part of two batches -> (hashes, vectors, bytes of a row)."""
    rows, vectors = [f"{n:0{HASH}x}" for n in range(6)], unit(6, 5)
    folder.mkdir()
    part = VectorLog(folder, 0, 5).repair()
    part.append(rows[:3], vectors[:3])
    part.append(rows[3:], vectors[3:])
    return rows, vectors, part.layout.itemsize


def test_a_torn_end_is_cut_off_wherever_the_machine_died(tmp_path):
    rows, vectors, width = part_of_six(tmp_path / "whole")
    data = (tmp_path / "whole/0.encoded").read_bytes()
    assert len(data) == 6 * width
    for size in range(len(data) + 1):
        folder = tmp_path / f"{size}"
        folder.mkdir()
        (folder / "0.encoded").write_bytes(data[:size])
        torn = VectorLog(folder, 0, 5).repair()
        assert list(torn.rows) == rows[: size // width]
        torn.append(["f" * HASH], vectors[:1])
        again = Vectors(folder, 5)
        assert np.array_equal(
            again[[*torn.rows, "f" * HASH]], np.vstack([vectors[: len(torn.rows)], vectors[:1]])
        )


@pytest.mark.parametrize("place", ["hash", "vector", "checksum"])
def test_a_row_with_a_flipped_bit_is_not_used_and_said(tmp_path, place, caplog):
    rows, vectors, width = part_of_six(tmp_path / "parts")
    path = tmp_path / "parts/0.encoded"
    content = bytearray(path.read_bytes())
    content[2 * width + {"hash": 3, "vector": 20, "checksum": width - 1}[place]] ^= 4
    path.write_bytes(content)
    good = [digest for digest in rows if digest != rows[2]]
    assert sorted(Vectors(tmp_path / "parts", 5).places) == good
    assert "0.encoded: 1 of 6 rows are damaged" in caplog.text
    assert np.array_equal(Vectors(tmp_path / "parts", 5)[good], np.delete(vectors, 2, axis=0))


def test_a_batch_is_on_the_disk_before_the_next_one_starts(images, tmp_path):
    with recorded_os(tmp_path / "parts") as events:
        encode_rank(Counting(), images, names(images)[:8], tmp_path / "parts", (), 4)
    assert events[:4] == ["truncate 0.encoded", "fsync .", "fsync 0.encoded", "fsync 0.encoded"]
    assert events.count("fsync 0.encoded") == 2


def test_a_run_that_an_earlier_version_began_is_encoded_again_with_a_line(images, tmp_path, caplog):
    parts = tmp_path / "index/encoding"
    parts.mkdir(parents=True)
    (parts / "0.rows").write_text("0" * HASH + "\n")
    (parts / "0.vectors").write_bytes(bytes(8))
    retriever = Counting()
    made(images, tmp_path / "index", retriever)
    assert retriever.encoded == len(SHADES)
    assert "0.rows: stored without checksums by an earlier version" in caplog.text
    assert not parts.exists()


def test_a_picture_that_changes_while_it_is_read_is_left_out(images, tmp_path):
    class Changing(type(images)):
        def load(self, name):
            picture = super().load(name)
            if name == "s010":
                Image.new("RGB", (8, 6), (99, 0, 0)).save(self.path(name))
            return picture

    index = made(Changing(images.root, images.files), tmp_path / "index")
    assert list(index.metadata["unreadable"]) == ["s010"]
    assert "changes while it is read" in index.metadata["unreadable"]["s010"]


def test_any_number_of_processes_shares_the_work_and_may_change(images, tmp_path):
    """Three processes, of which one dies; then two go on."""
    folder, all_names, counts = tmp_path / "parts", names(images), []
    for rank, share in ((0, 9), (1, 8)):
        assert encode_rank(Counting(), images, all_names, folder, (), 4, Ranks(rank, 3)) == share
    for rank in (0, 1):
        retriever = Counting()
        counts.append(encode_rank(retriever, images, all_names, folder, (), 4, Ranks(rank, 2)))
        assert retriever.encoded == counts[-1]
    seen, unreadable = read_scan(folder, 2)
    assert sum(counts) == len(all_names[2::3])
    assert set(seen) == set(all_names)
    assert not unreadable
    vectors = Vectors(folder, 2)[[seen[name] for name in all_names]]
    assert np.array_equal(
        vectors, Plain().encode_target([images.load(name) for name in all_names]).numpy()
    )


def test_equal_files_are_encoded_once(tmp_path):
    write_shades(tmp_path / "images", [7])
    for copy in ("a", "b"):
        (tmp_path / f"images/{copy}.png").write_bytes((tmp_path / "images/s007.png").read_bytes())
    retriever = Counting()
    index = made(list_pictures(tmp_path / "images"), tmp_path / "index", retriever, batch_size=2)
    assert retriever.encoded == 1
    assert [
        name for name, _ in index.search(Plain().encode_target([Image.new("RGB", (8, 8))]), 3)[0]
    ] == [
        "a",
        "b",
        "s007",
    ]


def test_pictures_that_cannot_be_read_are_left_out_and_named(images, tmp_path):
    (images.root / "s010.png").write_bytes(b"no picture")
    index = made(images, tmp_path / "index")
    assert len(index) == len(SHADES) - 1
    assert list(index.metadata["unreadable"]) == ["s010"]
    assert "s010.png" in index.metadata["unreadable"]["s010"]
    for path in images.root.iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(InputError, match="no picture can be read"):
        made(images, tmp_path / "other")


def test_pictures_are_found_in_folders_whatever_their_case_and_two_of_one_name_are_refused(
    tmp_path,
):
    write_shades(tmp_path / "images/deep/er", [1, 2])
    (tmp_path / "images/deep/er/s001.png").rename(tmp_path / "images/deep/er/s001.PNG")
    (tmp_path / "images/notes.txt").write_text("x")
    assert names(list_pictures(tmp_path / "images")) == ["deep/er/s001", "deep/er/s002"]
    (tmp_path / "images/deep/er/s001.webp").write_bytes(b"")
    with pytest.raises(InputError, match="the same image id"):
        list_pictures(tmp_path / "images")
    for bad in (tmp_path / "nowhere", tmp_path):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(InputError):
            list_pictures(bad if bad.name == "nowhere" else tmp_path / "empty")


# ---- files


def test_a_settled_index_keeps_its_settings(images, tmp_path):
    made(images, tmp_path / "index")
    with pytest.raises(InputError, match="its dtype is 'float32'"):
        made(images, tmp_path / "index", dtype="int8")


def test_saving_again_leaves_one_state_and_a_missing_file_is_named(images, tmp_path):
    folder = tmp_path / "index"
    made(images, folder).save(folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",
        "index.json",
        "rows.2.jsonl",
        "vectors.2.faiss",
    ]
    facts = json.loads((folder / "index.json").read_text())
    assert (facts["count"], facts["images"]) == (len(SHADES), str(images.root))
    assert facts["versions"]["torch"]
    (folder / "vectors.2.faiss").unlink()
    with pytest.raises(InputError, match="vectors.2.faiss: cannot be read"):
        open_index(folder)
    with pytest.raises(InputError, match="cir-cot index"):
        open_index(tmp_path)
    (folder / "index.json").write_text('{"format": 99}')
    with pytest.raises(InputError, match="format 1"):
        open_index(folder)


def test_kill_9_costs_at_most_one_batch(images, tmp_path):
    part = tmp_path / "index/encoding/0.encoded"

    def two_batches(process):
        while not (part.exists() and part.stat().st_size >= 8 * (HASH // 2 + 2 * 4 + CHECKSUM)):
            assert process.poll() is None
            time.sleep(0.005)

    encoded, retriever = kill_9(images, tmp_path / "index", two_batches), Counting()
    assert 8 <= encoded < len(SHADES)
    made(images, tmp_path / "index", retriever)
    assert 0 <= encoded + retriever.encoded - len(SHADES) <= 4


@pytest.mark.slow
def test_kill_9_ten_times_costs_at_most_a_batch_each_and_a_hundredth_changed_is_a_hundredth_encoded(
    tmp_path,
):
    write_shades(tmp_path / "images", range(200))
    store, index, chance = list_pictures(tmp_path / "images"), tmp_path / "index", random.Random(0)
    for _ in range(10):
        encoded = kill_9(store, index, lambda process: time.sleep(chance.uniform(0, 0.3)))
    retriever = Counting()
    resumed = made(store, index, retriever)
    twice = encoded + retriever.encoded - 200
    print(
        f"{encoded} pictures encoded by ten processes that were killed, {retriever.encoded} after; {twice} twice"
    )
    assert 0 <= twice <= 10 * 4
    whole = made(store, tmp_path / "whole")
    assert np.array_equal(resumed.vectors(np.arange(200)), whole.vectors(np.arange(200)))
    for name in ("s007", "s150"):
        Image.new("RGB", (8, 6), (0, 0, int(name[1:]))).save(store.root / f"{name}.png")
    retriever = Counting()
    assert len(made(store, index, retriever)) == 200
    assert retriever.encoded == 2
