"""Evaluation: exact ranking with pessimistic ties, closed forms of a toy retriever, saved numbers that score again."""

import dataclasses
import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from number_benchmarks import SHADES, Numbers, circo, cirr, coco_pictures, fashioniq
from toy_retriever import Constant, Plain, Toy, chain, query, shade_of, write_folder, write_json

from cir_cot.data import load_benchmark
from cir_cot.errors import InputError
from cir_cot.evaluation.chain_quality import chain_metrics, percent, swap_chains
from cir_cot.evaluation.encode import QUEUED, encode_gallery, load_batches, queue_size
from cir_cot.evaluation.evaluate import check_pictures, evaluate
from cir_cot.evaluation.ranking import dot_products, top_columns
from cir_cot.evaluation.results import save_results
from cir_cot.images import ImageStore
from cir_cot.prompts import cot_to_text
from cir_cot.records import Cot, Record
from cir_cot.retriever import Flag, QueryOutput
from cir_cot.scripts.eval import score


def load(root, name="folder", split="val", **options):
    (benchmark,) = load_benchmark(name, root, split, **options)
    return benchmark, benchmark.images()


# ---- ranking


def test_best_is_a_full_sort_by_score_then_wrong_before_right():
    rng = np.random.default_rng(0)
    for trial in range(200):
        scores = rng.integers(0, 4 + trial % 5, size=30).astype(np.float32)  # many ties
        allowed = np.sort(rng.choice(30, size=25, replace=False))
        targets = rng.choice(30, size=3, replace=False).tolist()
        key = {c: (-scores[c], 3 - targets.index(c) if c in targets else 0, c) for c in allowed}
        expected = sorted(allowed.tolist(), key=lambda column, key=key: key[column])
        top = int(rng.integers(1, 40))
        assert top_columns(scores, allowed, targets, top).tolist() == expected[:top]


def test_a_target_that_ties_with_more_images_than_the_list_holds_is_left_out():
    assert top_columns(np.zeros(10, np.float32), np.arange(10), [0, 3], 8).tolist() == [
        1,
        2,
        4,
        5,
        6,
        7,
        8,
        9,
    ]


def test_the_first_target_comes_last_of_all_among_equals():
    """CIRCO's recall counts the first target alone, so the others must not hide behind it."""
    assert top_columns(np.zeros(4, np.float32), np.arange(4), [1, 3], 4).tolist() == [0, 2, 3, 1]


def test_nothing_to_rank_is_an_empty_list():
    assert top_columns(np.zeros(4, np.float32), np.array([], dtype=int), [1], 4).tolist() == []


@pytest.mark.parametrize(("count", "dim"), [(61, 97), (1237, 128), (9001, 33)])
def test_equal_pictures_score_equal_in_every_column(count, dim):
    """A float32 product does not: its last columns differ in the last bit."""
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(5, dim)).astype(np.float32)
    one = rng.normal(size=dim).astype(np.float32)
    scores = dot_products(queries, np.repeat(one[None], count, axis=0))
    assert scores.dtype == np.float32
    assert [len(np.unique(row)) for row in scores] == [1] * 5
    assert scores[:, 0] == pytest.approx(queries.astype(float) @ one.astype(float))


# ---- closed forms


def test_readings_of_the_toy_have_the_recall_they_must_have(folder):
    benchmark, images = load(folder)
    gallery = encode_gallery(Toy(), benchmark.gallery, images)
    readings = ("full", "fast", "oracle", "image_only", "text_only")
    found = {
        name: evaluate(Toy(), benchmark, images, reading=name, gallery=gallery) for name in readings
    }
    assert found["full"].metrics == {"R@1": 100, "R@5": 100, "R@10": 100, "R@50": 100}
    assert found["oracle"].metrics == found["full"].metrics
    # The reference is removed; its neighbours at distance 1, 1, 2, 2, .. steps come in turn. A target n steps away (n =
    # index % 7 + 1) is at rank 2n - 1 or 2n, so R@1 is at most the share with n = 1, and R@10 counts n <= 5.
    near = [index for index in range(40) if index % 7 == 0]
    assert 0 <= found["fast"].metrics["R@1"] <= 100 * len(near) / 40
    assert found["fast"].metrics["R@10"] == 100 * sum(index % 7 < 5 for index in range(40)) / 40
    assert found["image_only"].metrics == found["fast"].metrics
    assert found["text_only"].metrics["R@1"] < 20  # from grey, wherever the reference was
    assert {name: result.protocol["reading"] for name, result in found.items()} == {
        name: name for name in readings
    }


def test_scores_are_cosines_in_falling_order(folder):
    benchmark, images = load(folder)
    result = evaluate(Toy(), benchmark, images)
    for record in benchmark.records:
        scores = result.scores[record.id]
        assert scores == sorted(scores, reverse=True)
        assert scores[0] == pytest.approx(1, abs=1e-6)
        assert len(scores) == len(result.rankings[record.id]) == len(SHADES) - 1
        assert record.reference not in result.rankings[record.id]


def test_lists_are_cut_at_a_hundred(tmp_path):
    root = write_folder(tmp_path, [query(0, 100, 1, 101)], range(150))
    benchmark, images = load(root)
    assert len(evaluate(Plain(), benchmark, images).rankings["0"]) == 100


def test_text_only_sees_grey_of_the_reference_size(folder):
    class Watching(Plain):
        def encode_query(self, images, texts):
            seen.extend((image.size, shade_of(image)) for image in images)
            return super().encode_query(images, texts)

    seen = []
    benchmark, images = load(folder)
    evaluate(Watching(), benchmark, images, reading="text_only")
    assert set(seen) == {((8, 6), 127)}


def test_recall_by_edit_type(folder):
    benchmark, images = load(folder)
    result = evaluate(
        Toy(), benchmark, images, encode=lambda records, pictures: up_only(records, pictures)
    )
    assert {name: (row["queries"], row["R@1"]) for name, row in result.by_source.items()} == {
        "toy/down": (20, 0.0),
        "toy/up": (20, 100.0),
    }
    assert result.metrics["R@1"] == 50


def up_only(records, pictures):
    """Right for additions; for the others the far end of the scale."""
    texts = [record.text if record.source == "toy/up" else "255" for record in records]
    return Plain().encode_query(pictures, texts)


def test_one_source_needs_no_table(tmp_path):
    benchmark, images = load(
        write_folder(tmp_path, [query(0, 100, 4, 104), query(1, 100, 8, 108)], SHADES)
    )
    assert evaluate(Plain(), benchmark, images).by_source == {}


# ---- ties never flatter


def test_constant_embeddings_find_nothing(folder):
    benchmark, images = load(folder)
    assert evaluate(Constant(), benchmark, images).metrics == {
        "R@1": 0,
        "R@5": 0,
        "R@10": 0,
        "R@50": 0,
    }


def test_constant_embeddings_find_nothing_in_official_layouts(tmp_path):
    for name, split, write in (
        ("genecis", "val", genecis),
        ("cirr", "val", cirr),
        ("circo", "val", circo),
    ):
        write(tmp_path / name)
        for benchmark in load_benchmark(name, tmp_path / name, split):
            metrics = evaluate(Constant(), benchmark, benchmark.images()).metrics
            zero = [key for key in metrics if key.endswith("@1") or key == "mAP@5"]
            assert zero
            assert [metrics[key] for key in zero] == [0] * len(zero), name


# ---- official layouts, small


def genecis(root):
    rng = random.Random(0)
    for task in ("focus_object", "change_object"):
        entries = []
        for index in range(12):
            target, *gallery = rng.sample(range(60), 15)
            ids = [{"val_image_id": 4 * i} for i in (target, *gallery)]
            entries.append(
                {
                    "condition": str(4 * index),
                    "reference": {"val_image_id": 4 * index},
                    "target": ids[0],
                }
            )
            entries[-1]["gallery"] = ids[1:]
        write_json(root / f"genecis/{task}.json", entries)
    for task in ("focus_attribute", "change_attribute"):
        box = {"image_id": "8", "instance_bbox": [0, 0, 4, 4]}
        other = {"image_id": "12", "instance_bbox": [0, 0, 4, 4]}
        entry = {"condition": "4", "reference": box, "target": other, "gallery": [box]}
        write_json(root / f"genecis/{task}.json", [entry])
    coco_pictures(root / "val2017", [4 * i for i in range(60)])
    (root / "VG_100K_all").mkdir()
    for shade in (8, 12):
        (root / f"val2017/{shade:012}.jpg").rename(root / f"VG_100K_all/{shade}.jpg")
        coco_pictures(root / "val2017", [shade])


@pytest.mark.parametrize("write", [cirr, fashioniq, genecis, circo])
def test_saved_rankings_score_to_the_same_numbers(write, tmp_path, capsys):
    root, out = tmp_path / "data", tmp_path / "out"
    write(root)
    benchmarks = load_benchmark(write.__name__, root, "val")
    results = [evaluate(Numbers(), benchmark, benchmark.images()) for benchmark in benchmarks]
    save_results(results, out)
    saved = json.loads((out / "results.json").read_text())
    alone = len(results) == 1
    argv = ["--benchmark", write.__name__, "--root", str(root), "--split", "val", "--json"]
    argv += ["--rankings", str(out / "rankings.json.gz" if alone else out)]
    argv += ["--subset-rankings", str(out / "subset_rankings.json.gz")] if write is cirr else []
    assert score.main(argv) == 0
    again = json.loads(capsys.readouterr().out)
    assert saved["metrics"] == again["metrics"]
    shared = again["protocol"].keys() & saved["protocol"].keys()
    assert {"benchmark", "split", "reference", "gallery_size", "queries"} <= shared
    assert {key: again["protocol"][key] for key in shared} == {
        key: saved["protocol"][key] for key in shared
    }
    assert any(value not in (0, 100) for value in numbers(saved["metrics"])), (
        "the numbers say nothing"
    )


def numbers(metrics):
    for value in metrics.values():
        yield from numbers(value) if isinstance(value, dict) else [value]


def test_cirr_subset_recall_is_within_the_set(tmp_path):
    cirr(tmp_path)
    benchmark, images = load(tmp_path, "cirr")
    result = evaluate(Numbers(), benchmark, images)
    for record in benchmark.records:
        members = set(record.subset) - {record.reference}
        assert set(result.subset_rankings[record.id]) == members
    # half of the captions name the target's distance
    assert result.metrics["R@1"] == result.metrics["Rsub@1"] == 50
    assert result.metrics["Avg"] == (result.metrics["R@5"] + 50) / 2


def test_genecis_ranks_its_candidates_only(tmp_path):
    genecis(tmp_path)
    for benchmark in load_benchmark("genecis", tmp_path, "val"):
        result = evaluate(Numbers(), benchmark, benchmark.images())
        for record in benchmark.records:
            assert sorted(result.rankings[record.id]) == sorted(benchmark.candidates[record.id])


@pytest.mark.parametrize(("reference", "inside"), [("keep", True), ("remove", False)])
def test_the_protocol_decides_whether_the_reference_is_ranked(tmp_path, reference, inside):
    circo(tmp_path)
    benchmark, images = load(tmp_path, "circo", reference=reference)
    result = evaluate(Numbers(), benchmark, images, reading="image_only")
    found = [record.reference in result.rankings[record.id] for record in benchmark.records]
    assert found == [inside] * len(found)
    assert inside == all(
        result.rankings[record.id][0] == record.reference for record in benchmark.records
    )


def test_a_test_split_has_rankings_and_no_metrics(tmp_path):
    circo(tmp_path)
    benchmark, images = load(tmp_path, "circo", split="test")
    result = evaluate(Numbers(), benchmark, images)
    assert result.metrics == {}
    assert len(result.rankings) == 12


# ---- what is asked, what is encoded


def test_a_limit_samples_queries_and_keeps_the_gallery(folder):
    benchmark, images = load(folder)
    one, two, other = (evaluate(Toy(), benchmark, images, limit=7, seed=seed) for seed in (1, 1, 2))
    ids = [record.id for record in one.benchmark.records]
    assert len(ids) == 7
    assert ids == sorted(ids, key=int)
    assert ids == list(two.rankings)
    assert ids != list(other.rankings)
    assert len(one.rankings[ids[0]]) == len(SHADES) - 1
    assert one.protocol["queries"] == 7
    assert one.protocol["sample"].startswith("7 of 40 queries")
    assert one.protocol["seed"] == 1
    assert evaluate(Toy(), benchmark, images, limit=40).protocol["sample"] is None
    with pytest.raises(InputError, match="limit is 0"):
        evaluate(Toy(), benchmark, images, limit=0)


class CountingStore(ImageStore):
    """A store that remembers what was decoded."""

    def __init__(self, root):
        super().__init__(root)
        self.loaded = []

    def load(self, image_id):
        self.loaded.append(image_id)
        return super().load(image_id)


def test_each_gallery_picture_is_decoded_once_in_order(folder):
    benchmark, _ = load(folder)
    for size in (1, 7, 64, 1000):
        images = CountingStore(folder / "images")
        gallery = encode_gallery(Toy(), benchmark.gallery, images, batch_size=size)
        assert sorted(images.loaded) == sorted(benchmark.gallery)
        assert torch.equal(
            gallery, Toy().encode_target([images.load(name) for name in benchmark.gallery])
        )


def test_batches_keep_their_order_and_decode_a_repeated_name_once(folder):
    images = CountingStore(folder / "images")
    names = ["s000", "s004", "s000", "s000", "s008", "s004", "s012"]
    batches = list(load_batches(names, images, 3))
    assert [[shade_of(picture) for picture in batch] for batch in batches] == [
        [0, 4, 0],
        [0, 8, 4],
        [12],
    ]
    assert len(images.loaded) == 6
    with pytest.raises(InputError, match="batch_size is 0"):
        list(load_batches(names, images, 0))


def test_a_given_gallery_is_not_encoded_again(folder):
    class Once(Toy):
        def encode_target(self, images):
            raise AssertionError("encoded again")

    benchmark, images = load(folder)
    gallery = encode_gallery(Toy(), benchmark.gallery, images)
    assert evaluate(Once(), benchmark, images, gallery=gallery).metrics["R@1"] == 100


def test_the_protocol_names_what_a_number_depends_on(folder):
    benchmark, images = load(folder)
    protocol = evaluate(Toy(), benchmark, images, model="runs/x", seed=3, batch_size=5).protocol
    assert protocol["benchmark"] == "folder"
    assert protocol["split"] == "val"
    assert protocol["reading"] == "full"
    assert protocol["model"] == "runs/x"
    assert protocol["ties"] == "pessimistic"
    assert (protocol["seed"], protocol["batch_size"], protocol["queries"]) == (3, 5, 40)
    assert protocol["versions"]["torch"] == torch.__version__
    assert set(protocol["git"]) == {"commit", "dirty"}
    assert protocol["prompts"]
    json.dumps(protocol)


def test_a_model_in_training_is_measured_without_dropout_and_goes_on_training(folder):
    class Dropping(torch.nn.Module):
        dim = 2

        def __init__(self):
            super().__init__()
            self.drop, self.frozen = torch.nn.Dropout(0.5), torch.nn.Identity().eval()

        def encode_target(self, images):
            return self.drop(Plain().encode_target(images))

        def encode_query(self, images, texts):
            found = Plain().encode_query(images, texts)
            return QueryOutput(self.drop(found.embeddings), found.explanations)

    benchmark, images = load(folder)
    model = Dropping()
    model.frozen.eval()
    assert evaluate(model, benchmark, images).metrics["R@1"] == 100
    assert (model.training, model.drop.training, model.frozen.training) == (True, True, False)


def test_saving_again_leaves_nothing_of_the_earlier_run(folder, tmp_path):
    benchmark, images = load(folder)
    save_results([evaluate(Toy(), benchmark, images)], tmp_path / "out")
    assert (tmp_path / "out/chains.jsonl").exists()
    assert (tmp_path / "out/rankings.json.gz").read_bytes()[4:8] == bytes(4), (
        "no time: the same rankings, same bytes"
    )
    save_results([evaluate(Toy(), benchmark, images, reading="fast")], tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"results.json", "rankings.json.gz", ".cir-cot.json"}
    assert json.loads((tmp_path / "out/results.json").read_text())["protocol"]["reading"] == "fast"


# ---- what is refused


def test_missing_pictures_are_counted_before_anything_is_encoded(folder):
    benchmark, _ = load(folder)
    for name in benchmark.gallery[:3]:
        (folder / "images" / f"{name}.png").unlink()
    with pytest.raises(
        InputError, match="folder val: 3 of 64 pictures are missing below .* the first is 's000'"
    ):
        check_pictures(benchmark, benchmark.images())
    with pytest.raises(InputError, match="no list of gallery images"):
        check_pictures(replace(benchmark, gallery=[]), benchmark.images())


def test_a_reading_that_the_retriever_lacks_is_refused(folder):
    benchmark, images = load(folder)
    with pytest.raises(InputError, match="'fast' needs a retriever that writes chains"):
        evaluate(Plain(), benchmark, images, reading="fast")
    with pytest.raises(InputError, match="'oracle' needs a retriever that writes chains"):
        evaluate(Plain(), benchmark, images, reading="oracle")
    with pytest.raises(
        InputError, match="unknown reading 'slow'; choose from full, short, adaptive, fast, oracle"
    ):
        evaluate(Toy(), benchmark, images, reading="slow")


def test_the_oracle_needs_a_chain_for_every_query(tmp_path):
    rows = [query(0, 100, 4, 104), query(1, 100, 8, 108, annotated=False)]
    benchmark, images = load(write_folder(tmp_path, rows, SHADES))
    with pytest.raises(InputError, match="record '1' has no chain"):
        evaluate(Toy(), benchmark, images, reading="oracle")


def test_an_embedding_that_is_not_finite_is_named(folder):
    class Diverged(Plain):
        def encode_query(self, images, texts):
            points = super().encode_query(images, texts).embeddings
            points[[text == "20" for text in texts]] = float("nan")
            return QueryOutput(points, [""] * len(texts))

    benchmark, images = load(folder)
    first = next(record.id for record in benchmark.records if record.text == "20")
    with pytest.raises(InputError, match=f"embedding of '{first}' is not finite"):
        evaluate(Diverged(), benchmark, images)


def test_an_embedding_too_few_is_our_own_defect(folder):
    class Short(Plain):
        def encode_target(self, images):
            return super().encode_target(images)[1:]

    class ShortQueries(Plain):
        def encode_query(self, images, texts):
            output = super().encode_query(images, texts)
            return dataclasses.replace(output, embeddings=output.embeddings[1:])

    benchmark, images = load(folder)
    for broken in (Short(), ShortQueries()):
        with pytest.raises(ValueError, match="22 inputs gave 21 embeddings"):
            evaluate(broken, benchmark, images, batch_size=22)


def test_a_broken_picture_ends_the_evaluation_by_its_name(folder):
    path = folder / "images/s040.png"
    path.write_bytes(path.read_bytes()[:50])
    benchmark, images = load(folder)
    with pytest.raises(InputError, match="s040.png"):
        evaluate(Toy(), benchmark, images)


# ---- chains


def test_chain_metrics_in_closed_form():
    truth = Cot("a", "b", "c d")
    rows = [
        Record(str(i), "r", "t", ("x",), cot)
        for i, cot in enumerate([truth, truth, truth, truth, None])
    ]
    tags = "<caption>{}</caption><reasoning>{}</reasoning><conclusion>{}</conclusion>"
    words = {
        "0": tags.format("a", "b", "c  d"),
        "1": tags.format("a", "x", "c"),
        "2": "<caption>a</caption>",
        "3": "",
    }
    words["4"] = tags.format("p", "q", "r")
    flags = {
        "0": "",
        "1": "chain is not valid: forced",
        "2": Flag("missing_token", "no retrieval token: forced"),
        "3": "not valid",
        "4": "",
    }
    assert chain_metrics(rows, words, flags) == {
        "chains": 5,
        "valid": 40,
        "missing_token": 20,
        "annotated": 4,
        "exact_caption": 50,
        "exact_reasoning": 25,
        "exact_conclusion": 25,
    }
    assert "exact_caption" not in chain_metrics(rows[4:], words, flags)


def test_lent_chains_come_from_queries_with_other_answers(folder):
    benchmark, images = load(folder)
    words = evaluate(Toy(), benchmark, images).explanations
    lent = swap_chains(benchmark.records, words, seed=0)
    assert list(lent) == [record.id for record in benchmark.records]
    for record in benchmark.records:
        donor = lent[record.id]
        assert donor.id != record.id
        assert donor.targets != record.targets
        assert donor.cot.conclusion == f"shade {int(donor.targets[0][1:])}"
    assert swap_chains(benchmark.records, words, seed=0) == lent
    assert swap_chains(benchmark.records, words, seed=1) != lent
    assert swap_chains(benchmark.records[:1], words) is None
    same_answer = [query(0, 100, 8, 108), query(1, 104, 4, 108)]
    words = {"0": cot_to_text(chain(100, "8")), "1": cot_to_text(chain(104, "9"))}
    assert swap_chains(same_answer, words) is None
    same_chain = [query(0, 100, 8, 108), query(1, 104, 4, 112)]
    assert (
        swap_chains(
            same_chain, {"0": cot_to_text(chain(100, "8")), "1": cot_to_text(chain(104, "4"))}
        )
        is None
    )
    words = evaluate(Toy(), benchmark, images).explanations
    assert swap_chains(benchmark.records, dict.fromkeys(words, "no chain")) is None


def test_a_share_of_nothing_is_nothing():
    assert [percent(answers) for answers in ([], [False, True, True, False], iter([True]))] == [
        0,
        50,
        100,
    ]


def test_what_a_retriever_says_of_its_conditions_is_in_the_protocol(folder):
    class Bounded(Plain):
        def conditions(self):
            return {"max_pixels": 784, "dtype": "bfloat16"}

    (benchmark,) = load_benchmark("folder", folder, "val")
    protocol = evaluate(Bounded(), benchmark, benchmark.images()).protocol
    assert (protocol["max_pixels"], protocol["dtype"]) == (784, "bfloat16")
    assert "max_pixels" not in evaluate(Plain(), benchmark, benchmark.images()).protocol


def test_a_head_is_given_several_batches_of_queries_at_a_time():
    class Forming(Toy):
        batch_size = 64

    retriever = Forming()
    assert queue_size(retriever, 8) == 8 * QUEUED
    assert retriever.batch_size == 8, "its own batches are as large as asked for"
    assert queue_size(Toy(), 8) == 8


def test_a_result_is_a_data_frame_and_a_table(folder):
    pytest.importorskip("pandas")
    benchmark, images = load(folder)
    result = evaluate(Plain(), benchmark, images)
    frame = result.to_pandas()
    assert list(frame.index) == [record.id for record in benchmark.records]
    for k in (1, 5, 10):
        assert 100 * (frame["rank"] <= k).mean() == pytest.approx(result.metrics[f"R@{k}"])
    assert frame["rank"].min() >= 1
    assert (frame["first"] == [result.rankings[name][0] for name in frame.index]).all()
    page = result._repr_html_()
    assert f"<th>R@1</th><td>{result.metrics['R@1']:.2f}</td>" in page
    assert "<th>gallery_size</th>" in page
