"""Benchmarks: facts of the real annotation files, the official evaluators' numbers, layouts, and what is refused."""

import gzip
import inspect
import json
import pickle
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from dataset_files import draw, dump

from cir_cot.data import BENCHMARKS, load_benchmark
from cir_cot.data.fashioniq import (
    CAPTION_JOINS,
    FASHIONIQ_CATEGORIES,
    FASHIONIQ_PROTOCOLS,
    GALLERIES,
    covr,
    training_caption,
)
from cir_cot.data.rankings import ranked_lists, read_rankings, short_lists
from cir_cot.data.scoring import mean_of_categories, score_rankings
from cir_cot.errors import InputError
from cir_cot.records import Record, write_records


def one(name, root, split, category=None, **options):
    (benchmark,) = load_benchmark(name, root, split, category, **options)
    return benchmark


# ---- FashionIQ

FASHIONIQ = {
    # queries, gallery, references, targets, references and targets
    ("dress", "train"): (5985, 11452, 3874, 5985, 7757),
    ("shirt", "train"): (5988, 19036, 4408, 5988, 8988),
    ("toptee", "train"): (6027, 16121, 4328, 6027, 8695),
    ("dress", "val"): (2017, 3817, 1331, 2017, 2628),
    ("shirt", "val"): (2038, 6346, 1541, 2038, 3089),
    ("toptee", "val"): (1961, 5373, 1454, 1961, 2902),
    ("dress", "test"): (2024, 3818, 1356, 0, None),
    ("shirt", "test"): (2038, 6346, 1496, 0, None),
    ("toptee", "test"): (2056, 5374, 1509, 0, None),
}


@pytest.mark.parametrize(("category", "split"), FASHIONIQ)
def test_fashioniq_has_its_published_size(shared_data, category, split):
    queries, gallery, references, targets, union = FASHIONIQ[category, split]
    benchmark = one("fashioniq", shared_data / "fashioniq", split, category)
    assert len(benchmark.records) == queries
    assert len(benchmark.gallery) == len(set(benchmark.gallery)) == gallery
    assert len({record.reference for record in benchmark.records}) == references
    assert len({target for record in benchmark.records for target in record.targets}) == targets
    assert [record.id for record in benchmark.records] == [str(index) for index in range(queries)]
    assert all(record.reference in benchmark.members for record in benchmark.records)
    assert all(record.reference not in record.targets for record in benchmark.records)
    assert all(record.source == f"fashioniq/{category}/{split}" for record in benchmark.records)
    if union:
        small = one("fashioniq", shared_data / "fashioniq", split, category, gallery="val-union")
        assert len(small.gallery) == union
        assert small.gallery == [name for name in benchmark.gallery if name in small.members]
        assert small.members | small.outside == benchmark.members
        assert all(target in small.members for record in small.records for target in record.targets)
    else:
        with pytest.raises(InputError, match="which FashionIQ test does not have"):
            one("fashioniq", shared_data / "fashioniq", split, category, gallery="val-union")


def test_fashioniq_galleries_overlap_as_measured(shared_data):
    images = {}
    for split in ("train", "val", "test"):
        for benchmark in load_benchmark("fashioniq", shared_data / "fashioniq", split):
            images[benchmark.category, split] = benchmark.members
    every = {
        split: frozenset().union(*(images[c, split] for c in FASHIONIQ_CATEGORIES))
        for _, split in images
    }
    assert [len(images["shirt", split] & images["toptee", split]) for split in every] == [
        1180,
        121,
        121,
    ]
    assert [
        len(every[a] & every[b]) for a, b in [("train", "val"), ("train", "test"), ("val", "test")]
    ] == [
        811,
        803,
        266,
    ]
    assert len(every["train"] | every["val"] | every["test"]) == 74381
    assert sum(len(images[category, "val"]) for category in FASHIONIQ_CATEGORIES) == 15536
    for category in FASHIONIQ_CATEGORIES:
        pool = one(
            "fashioniq", shared_data / "fashioniq", "val", category, gallery="all-categories"
        )
        assert len(pool.gallery) == len(set(pool.gallery)) == 15415


@pytest.mark.parametrize(
    ("category", "index"), [("shirt", 1928), ("toptee", 676), ("toptee", 1076)]
)
def test_fashioniq_blank_captions(shared_data, category, index):
    benchmark = one("fashioniq", shared_data / "fashioniq", "val", category)
    first, second = benchmark.captions[str(index)]
    assert first == ""
    assert benchmark.records[index].text == f" and {second.strip('.?, ')}"
    single = one("fashioniq", shared_data / "fashioniq", "val", category, caption_join="single")
    assert [record.text for record in single.records if record.id.split(".")[0] == str(index)] == [
        second
    ]


JOINS = {
    "clip4cir": ["Is asian-inspired. no belt and has a V-neck, and is Blue"],
    "raw": [" is Asian-inspired. no belt., and has a V-neck, and is Blue?"],
    "reversed": ["has a V-neck, and is Blue? and  is Asian-inspired. no belt.,"],
    "comma": [" is Asian-inspired. no belt.,, and has a V-neck, and is Blue?"],
    "sep": [" is Asian-inspired. no belt., [SEP] has a V-neck, and is Blue?"],
    "covr": ["is asian-inspired no belt , and has a v-neck, and is blue?"],
    "both-orders": [
        " is Asian-inspired. no belt., and has a V-neck, and is Blue?",
        "has a V-neck, and is Blue? and  is Asian-inspired. no belt.,",
    ],
    "single": [" is Asian-inspired. no belt.,", "has a V-neck, and is Blue?"],
}


@pytest.mark.parametrize("style", CAPTION_JOINS)
def test_caption_joins_are_exact(style):
    assert (
        list(CAPTION_JOINS[style](" is Asian-inspired. no belt.,", "has a V-neck, and is Blue?"))
        == JOINS[style]
    )


def test_covr_keeps_thirty_words():
    assert covr("a " * 29, "b c d").split(" ") == ["a"] * 29 + ["and"]


def test_training_captions_are_a_quarter_each():
    pair = ("is Red.", " has no Belt,")
    texts = ["Is red and has no Belt", "Has no belt and is Red", "Is red", "Has no belt"]
    assert [training_caption(pair, draw) for draw in (0, 0.25, 0.5, 0.75)] == texts
    assert [training_caption(pair, draw) for draw in (0.2499, 0.4999, 0.7499, 0.9999)] == texts
    rng = random.Random(0)
    counts = Counter(training_caption(pair, rng.random()) for _ in range(4000))
    assert all(abs(counts[text] - 1000) < 120 for text in texts)
    assert {training_caption(("", "is red"), draw) for draw in (0.5, 0.75)} == {"Is red"}
    assert {training_caption(("is red", " ."), draw) for draw in (0.5, 0.75)} == {"Is red"}
    with pytest.raises(ValueError, match="random number"):
        training_caption(pair, 1)


@pytest.mark.parametrize("name", FASHIONIQ_PROTOCOLS)
def test_every_protocol_of_the_literature_loads_and_says_what_it_is(shared_data, name):
    options = FASHIONIQ_PROTOCOLS[name]
    benchmark = one("fashioniq", shared_data / "fashioniq", "val", "dress", **options)
    protocol = benchmark.protocol
    assert {key: protocol[key] for key in ("gallery", "caption_join")}.items() <= options.items()
    assert protocol["reference"] == {"keep": "kept", "remove": "removed"}[options["reference"]]
    assert benchmark.remove_reference == (options["reference"] == "remove")
    assert (
        protocol["queries"]
        == len(benchmark.records)
        == 2017 * (1 + (options["caption_join"] in ("single", "both-orders")))
    )
    assert (
        protocol["gallery_size"]
        == {"original": 3817, "val-union": 2628, "all-categories": 15415}[options["gallery"]]
    )
    assert len({record.id for record in benchmark.records}) == len(benchmark.records)


def test_the_primary_protocol_is_the_default(shared_data):
    assert one("fashioniq", shared_data / "fashioniq", "val", "dress").protocol == {
        "benchmark": "fashioniq",
        "split": "val",
        "category": "dress",
        "gallery": "original",
        "caption_join": "clip4cir",
        "gallery_size": 3817,
        "queries": 2017,
        "reference": "kept",
    }


# ---- CIRR


@pytest.mark.parametrize(
    ("split", "queries", "gallery", "first", "last"),
    [("val", 4181, 2297, 12060, 38762), ("test1", 4148, 2315, 12063, 39059)],
)
def test_cirr_has_its_published_size(shared_data, split, queries, gallery, first, last):
    benchmark = one("cirr", shared_data / "cirr", split)
    records = benchmark.records
    assert (len(records), len(benchmark.gallery)) == (queries, gallery)
    pairs = [int(record.id) for record in records]
    assert (min(pairs), max(pairs), len(set(pairs))) == (first, last, queries)
    assert all(
        len(set(record.subset)) == 6 and record.reference in record.subset for record in records
    )
    assert len({frozenset(record.subset) for record in records}) == 503
    used = {
        image for record in records for image in (record.reference, *record.targets, *record.subset)
    }
    assert used == benchmark.members
    if split == "val":
        assert all(
            record.targets[0] in record.subset and record.targets[0] != record.reference
            for record in records
        )
        assert len(records) - len({(record.reference, record.text) for record in records}) == 6
    else:
        assert not any(record.targets for record in records)
        assert records[0] == Record(
            "12063",
            "test1-147-1-img1",
            "remove all but one dog and add a woman hugging it",
            (),
            subset=records[0].subset,
            source="cirr/test1",
        )


def test_cirr_soft_labels_are_as_measured(shared_data):
    hard, soft = (
        one("cirr", shared_data / "cirr", "val"),
        one("cirr", shared_data / "cirr", "val", labels="soft"),
    )
    assert hard.weights is None
    values = Counter(weight for weights in soft.weights.values() for weight in weights.values())
    assert values == {1.0: 4216, 0.5: 62, 0.2: 6, -1.0: 807}
    assert sum(record.targets[0] not in soft.weights[record.id] for record in soft.records) == 37
    assert sum(record.reference in soft.weights[record.id] for record in soft.records) == 37
    best = {
        r.id: sorted(soft.gallery, key=lambda name: -soft.weights[r.id].get(name, 0))[:60]
        for r in soft.records
    }
    subset = {
        r.id: sorted(r.subset, key=lambda name: -soft.weights[r.id].get(name, 0))
        for r in soft.records
    }
    metrics = score_rankings(soft, best, subset)
    assert metrics["R@1"] == pytest.approx(99.90, abs=0.005)  # the ceiling of these labels
    assert metrics["Rsub@1"] == pytest.approx(99.55, abs=0.005)
    assert soft.protocol["labels"] == "soft"


def test_cirr_train_records_load(shared_data, tmp_path):
    sample = json.loads((shared_data / "cirr" / "train_sample.json").read_text())
    dump(tmp_path / "cirr" / "captions" / "cap.rc2.train.json", sample)
    names = (shared_data / "cirr/cirr/image_splits/split.rc2.train.json").read_text()
    dump(tmp_path / "cirr" / "image_splits" / "split.rc2.train.json", json.loads(names))
    benchmark = one("cirr", tmp_path, "train")
    assert len(benchmark.gallery) == 16939
    assert [record.id for record in benchmark.records] == ["0", "1", "25"]
    assert benchmark.records[2].targets == ("train-2145-2-img1",)
    draw(tmp_path / "train" / "34" / "train-11041-2-img0.png")
    assert benchmark.images().load("train-11041-2-img0").size == (8, 6)
    assert "train-11041-0-img1" not in benchmark.images()


# ---- CIRCO


def test_circo_is_as_measured(shared_data):
    val, test = (one("circo", shared_data / "circo", split) for split in ("val", "test"))
    assert (len(val.records), len(test.records), len(val.gallery)) == (220, 800, 123403)
    assert val.gallery == test.gallery
    counts = [len(record.targets) for record in val.records]
    assert (sum(counts), min(counts), max(counts)) == (916, 1, 14)
    assert (sum(count > 5 for count in counts), sum(count > 10 for count in counts)) == (57, 9)
    assert all(record.reference not in record.targets for record in val.records)
    assert all(
        set(record.targets) <= val.members and record.reference in val.members
        for record in val.records
    )
    assert [record.id for record in test.records] == [str(index) for index in range(800)]
    aspects = Counter(aspect for some in val.aspects.values() for aspect in some)
    assert aspects == {
        "statement_with_conjunction": 164,
        "direct_addressing": 119,
        "spatial_relations_background": 100,
        "compare_change": 86,
        "addition": 80,
        "viewpoint": 54,
        "comparative_statement": 50,
        "cardinality": 37,
        "negation": 21,
    }
    first = val.records[0]
    assert (first.reference, first.targets) == ("271520", ("355099", "528417", "534704"))
    assert first.text == "shows two people and has a more colorful background"


CIRCO_QUERY = {
    "id": 0, "reference_img_id": 7, "target_img_id": 8, "gt_img_ids": [8, 9], "relative_caption": "is red",
    "shared_concept": "a car", "semantic_aspects": ["addition"],
}  # fmt: skip


def test_circo_texts_with_the_shared_concept_are_an_option(tmp_path):
    dump(tmp_path / "annotations" / "val.json", [CIRCO_QUERY])
    texts = {
        "plain": "is red",
        "magiclens": "find a car but is red",
        "megapairs": "Find a picture that also a car, but is red.",
    }
    for style, text in texts.items():
        benchmark = one("circo", tmp_path, "val", text=style)
        assert benchmark.records[0].text == text
        assert benchmark.protocol["prompt"] == style


def test_circo_has_its_main_target_first(tmp_path):
    query = CIRCO_QUERY | {"target_img_id": 9, "gt_img_ids": [8, 9, 10]}
    dump(tmp_path / "annotations" / "val.json", [query])
    assert one("circo", tmp_path, "val").records[0].targets == ("9", "8", "10")


@pytest.mark.parametrize("base", [".", "CIRCO"])
@pytest.mark.parametrize("inner", ["COCO2017_unlabeled", "."])
def test_circo_gallery_is_what_the_info_file_lists(tmp_path, base, inner):
    dump(tmp_path / base / "annotations" / "val.json", [CIRCO_QUERY])
    images = [{"id": number, "file_name": f"{number:012d}.jpg"} for number in (9, 7, 8, 3)]
    dump(
        tmp_path / base / inner / "annotations" / "image_info_unlabeled2017.json",
        {"images": images},
    )
    benchmark = one("circo", tmp_path, "val")
    assert benchmark.gallery == ["9", "7", "8", "3"]
    draw(tmp_path / base / inner / "unlabeled2017" / "000000000007.jpg")
    assert benchmark.images().load("7").size == (8, 6)
    assert "9" not in benchmark.images()


def test_circo_without_a_gallery_list_is_scored_but_not_opened(tmp_path):
    dump(tmp_path / "annotations" / "val.json", [CIRCO_QUERY])
    draw(tmp_path / "unlabeled2017" / "000000000007.jpg")
    benchmark = one("circo", tmp_path, "val")
    assert benchmark.protocol["gallery_size"] == "unknown"
    metrics = score_rankings(benchmark, {"0": ["123456", "9"]})
    assert metrics["mAP@5"] == pytest.approx(25)
    assert metrics["R@50"] == 0  # R@k counts the first target alone
    assert metrics["semantic_mAP@10"] == {"addition": pytest.approx(25)}
    with pytest.raises(InputError, match="image_info_unlabeled2017.json"):
        benchmark.images()


# ---- Shoes, GeneCIS, folder


def test_shoes_is_as_measured(shared_data):
    train, val = (one("shoes", shared_data / "shoes", split) for split in ("train", "eval"))
    assert (len(train.records), len(train.gallery)) == (8990, 10000)
    assert (len(val.records), len(val.gallery)) == (1761, 4658)
    assert not train.members & val.members
    assert len({record.reference for record in val.records}) == 1388
    assert len({record.targets for record in val.records}) == 1334
    assert [record.id for record in val.records if record.reference in record.targets] == ["1523"]
    assert val.remove_reference


def test_the_shoe_that_is_its_own_target_is_a_sure_miss(shared_data):
    """With the reference out of the gallery; and a hit at once where it stays in."""
    for reference, misses in (("remove", 1), ("keep", 0)):
        benchmark = one("shoes", shared_data / "shoes", "eval", reference=reference)
        pad = benchmark.gallery[:60]
        perfect = {r.id: list(dict.fromkeys([*r.targets, *pad])) for r in benchmark.records}
        assert score_rankings(benchmark, perfect)["R@50"] == pytest.approx(
            100 * (1761 - misses) / 1761
        )


@pytest.mark.parametrize(
    "folder", ["attributedata/womens_boots/0", "images/womens/womens_boots/3", "x"]
)
def test_shoes_pictures_are_found_by_name(tmp_path, folder):
    pairs = [("b.jpg", "of_train.jpg"), ("of_train.jpg", "a.jpg"), ("b.jpg", "a.jpg")]
    triplets = [
        {"ImageName": t, "ReferenceImageName": r, "RelativeCaption": "is red"} for t, r in pairs
    ]
    dump(tmp_path / "relative_captions_shoes.json", triplets)
    (tmp_path / "eval_im_names.txt").write_text("a.jpg\nb.jpg\n")
    benchmark = one("shoes", tmp_path, "val")
    assert benchmark.records == [Record("0", "a.jpg", "is red", ("b.jpg",), source="shoes/eval")]
    with pytest.raises(InputError, match="no pictures of Shoes"):
        benchmark.images()
    draw(tmp_path / folder / "a.jpg")
    assert benchmark.images().load("a.jpg").size == (8, 6)
    assert "b.jpg" not in benchmark.images()


def genecis_root(tmp_path, base="genecis"):
    objects = [
        {
            "condition": "car",
            "reference": {"val_image_id": 1},
            "target": {"val_image_id": 2},
            "gallery": [{"val_image_id": number} for number in (3, 2, 4)],
        }
    ]

    def crop(name, *box):
        return {"image_id": name, "instance_bbox": list(box)}

    query = {
        "condition": "color",
        "reference": crop("7", 0, 0, 5, 5),
        "target": crop("7", 50, 40, 10, 20),
        "gallery": [crop("8", -1, 0, 5, 5), crop("7", 1, 1, 2, 2)],
    }
    for task, queries in (("object", objects), ("attribute", [query])):
        for kind in ("focus", "change"):
            dump(tmp_path / base / f"{kind}_{task}.json", queries)
    draw(tmp_path / "val2017" / "000000000002.jpg")
    draw(tmp_path / "VG_100K_all" / "7.jpg", (100, 80))
    return tmp_path


@pytest.mark.parametrize("base", ["genecis", "."])
def test_genecis_ranks_its_own_candidates(tmp_path, base):
    tasks = load_benchmark("genecis", genecis_root(tmp_path, base), "test")
    assert [task.category for task in tasks] == [
        "focus_attribute",
        "change_attribute",
        "focus_object",
        "change_object",
    ]
    attribute, objects = tasks[0], tasks[3]
    assert objects.candidates == {
        "0": ["2", "3", "4"]
    }  # the target is in its own gallery, too: it counts once
    assert objects.gallery == ["2", "3", "4"]
    assert objects.images().load("2").size == (8, 6)
    assert attribute.records[0].targets == ("7_50_40_10_20",)
    assert attribute.candidates["0"] == ["7_50_40_10_20", "8_-1_0_5_5", "7_1_1_2_2"]
    assert attribute.images().load("7_50_40_10_20").size == (34, 34)
    assert score_rankings(objects, {"0": ["3", "2", "4"]}) == {"R@1": 0, "R@2": 100, "R@3": 100}


@pytest.mark.parametrize(
    ("ranking", "message"),
    [
        (["3", "2"], "ranks 2 images; R@3 needs 3"),
        (["3", "2", "1"], "'1', which is not in the gallery"),
        (["2", "3", "2"], "'2' twice"),
    ],
)
def test_genecis_rankings_hold_the_candidates(tmp_path, ranking, message):
    benchmark = one("genecis", genecis_root(tmp_path), "test", "change_object")
    with pytest.raises(InputError, match=message):
        score_rankings(benchmark, {"0": ranking})


def test_genecis_of_other_forms_is_refused(tmp_path):
    root = genecis_root(tmp_path)
    query = json.loads((root / "genecis" / "focus_attribute.json").read_text())[0]
    for box in ([1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 0, 4], ["1", 2, 3, 4], None):
        query["target"] = {"image_id": "7", "instance_bbox": box}
        dump(root / "genecis" / "focus_attribute.json", [query])
        with pytest.raises(InputError, match="entry 0: 'instance_bbox' must be"):
            one("genecis", root, "test", "focus_attribute")


@pytest.fixture
def own(tmp_path):
    """A folder dataset: two queries over four pictures, the first with two targets."""
    write_records(
        tmp_path / "records.mine.jsonl",
        [Record("q", "a", "x", ("b", "c")), Record("p", "b", "y", ("d",))],
    )
    (tmp_path / "gallery.mine.txt").write_text("a\nb\n\nc\nd\n")
    for name in "abcd":
        draw(tmp_path / "images" / f"{name}.png")
    return tmp_path


def test_a_folder_counts_any_target_with_the_reference_removed(own):
    benchmark = one("folder", own, "mine")
    assert benchmark.gallery == list("abcd")
    assert benchmark.images().load("a").size == (8, 6)
    rankings = {"q": list("adcb"), "p": list("bacd")}
    assert score_rankings(benchmark, rankings) == {"R@1": 0, "R@5": 100, "R@10": 100, "R@50": 100}
    assert ranked_lists(benchmark, rankings) == [list("dcb"), list("acd")]
    rankings["q"] = list("acdb")
    assert score_rankings(benchmark, rankings)["R@1"] == 50
    assert score_rankings(one("folder", own, "mine", reference="keep"), rankings)["R@1"] == 0


def test_benchmarks_and_their_pictures_reach_worker_processes(own):
    again = pickle.loads(pickle.dumps(one("folder", own, "mine")))
    assert again.records[0].targets == ("b", "c")
    assert again.images().load("b").size == (8, 6)


# ---- the official evaluators' numbers


def same(found, expected):
    flat = {name: value for name, value in expected.items() if not isinstance(value, dict)}
    assert {name: found[name] for name in flat} == pytest.approx(flat, abs=1e-4)
    for name in expected.keys() - flat.keys():
        same(found[name], expected[name])


def hits(metrics, queries):
    counts = {name: value * queries / 100 for name, value in metrics.items() if name != "Avg"}
    assert all(abs(count - round(count)) < 1e-6 for count in counts.values())
    return {name: round(count) for name, count in counts.items()}


@pytest.fixture(scope="session")
def expected(golden):
    return json.loads((golden / "expected.json").read_text())


@pytest.mark.parametrize("category", FASHIONIQ_CATEGORIES)
def test_fashioniq_golden(shared_data, golden, expected, category):
    numbers = expected["fashioniq.val"][category]
    names = {
        ("original", "keep"): "original split, reference kept (primary)",
        ("original", "remove"): "original split, reference removed",
        ("val-union", "keep"): "VAL split, reference kept",
        ("val-union", "remove"): "VAL split, reference removed",
    }
    rankings = json.loads(
        gzip.decompress((golden / f"fashioniq.{category}.val.json.gz").read_bytes())
    )
    for (gallery, reference), name in names.items():
        benchmark = one(
            "fashioniq",
            shared_data / "fashioniq",
            "val",
            category,
            gallery=gallery,
            reference=reference,
        )
        metrics = score_rankings(benchmark, rankings)
        same(metrics, numbers[name])
        short = {"shirt": (79, 97), "dress": (0, 0), "toptee": (1, 3)}[category][
            reference == "remove"
        ]
        assert short_lists(benchmark, rankings) == (short if gallery == "val-union" else 0)
        if (gallery, reference) == ("original", "keep"):
            assert hits(metrics, numbers["queries"]) == numbers["integer_hits_primary"]


def test_fashioniq_golden_mean(shared_data, golden, expected):
    metrics = {}
    for benchmark in load_benchmark("fashioniq", shared_data / "fashioniq", "val"):
        rankings = read_rankings(golden / f"fashioniq.{benchmark.category}.val.json.gz", benchmark)
        metrics[benchmark.category] = score_rankings(benchmark, rankings)
    mean, numbers = mean_of_categories(metrics)["average"], expected["fashioniq.val"]["average"]
    assert mean["R@10"] == pytest.approx(numbers["orig_kept_R@10"], abs=1e-4)
    assert mean["R@50"] == pytest.approx(numbers["orig_kept_R@50"], abs=1e-4)
    assert mean["Avg"] == pytest.approx(numbers["(R@10+R@50)/2"], abs=1e-4)


def test_cirr_golden(shared_data, golden, expected):
    benchmark = one("cirr", shared_data / "cirr", "val")
    rankings = read_rankings(golden / "cirr.val.json.gz", benchmark)
    subsets = read_rankings(golden / "cirr.val.subset.json.gz", benchmark, "recall_subset")
    metrics = score_rankings(benchmark, rankings, subsets)
    numbers = expected["cirr.val"]
    integer_hits = numbers.pop("integer_hits")
    same(metrics, numbers)
    assert set(metrics) == set(numbers)
    assert hits(metrics, 4181) == integer_hits
    assert set(score_rankings(benchmark, rankings)) == {
        "R@1",
        "R@5",
        "R@10",
        "R@50",
    }  # not all members are ranked


def test_cirr_full_lists_hold_the_subset(shared_data, golden):
    benchmark = one("cirr", shared_data / "cirr", "val")
    rankings = read_rankings(golden / "cirr.val.json.gz", benchmark)
    subsets = read_rankings(golden / "cirr.val.subset.json.gz", benchmark, "recall_subset")
    full = {}
    for record in benchmark.records:
        members = iter(subsets[record.id])
        full[record.id] = [
            next(members) if name in record.subset else name for name in rankings[record.id]
        ]
        full[record.id] += list(members)
    assert (
        score_rankings(benchmark, full)["Rsub@2"]
        == score_rankings(benchmark, full, subsets)["Rsub@2"]
    )


def test_circo_golden(shared_data, golden, expected):
    kept = one("circo", shared_data / "circo", "val")
    removed = replace(kept, remove_reference=True)
    rankings = read_rankings(golden / "circo.val.json.gz", kept)
    short = {query: images[:10] for query, images in rankings.items()}
    metrics = score_rankings(kept, rankings)
    assert list(metrics) == [
        *(f"{m}@{k}" for m in ("mAP", "R") for k in (5, 10, 25, 50)),
        "semantic_mAP@10",
    ]
    same(metrics, expected["circo.val"]["reference kept (official)"])
    same(score_rankings(removed, rankings), expected["circo.val"]["reference removed"])
    same(score_rankings(kept, short), expected["circo.val"]["lists cut to 10"])
    assert [short_lists(kept, lists) for lists in (rankings, short)] == [0, 220]


@pytest.mark.parametrize(
    ("name", "reference"), [("reference removed (official)", "remove"), ("reference kept", "keep")]
)
def test_shoes_golden(shared_data, golden, expected, name, reference):
    benchmark = one("shoes", shared_data / "shoes", "eval", reference=reference)
    metrics = score_rankings(benchmark, read_rankings(golden / "shoes.eval.json.gz", benchmark))
    same(metrics, expected["shoes.eval"][name])


# ---- layouts


def fashioniq_root(folder, captions="captions"):
    for category in FASHIONIQ_CATEGORIES:
        pair = {
            "candidate": f"{category}0",
            "target": f"{category}1",
            "captions": ["is red", "has no belt"],
        }
        dump(folder / captions / f"cap.{category}.val.json", [pair])
        dump(
            folder / "image_splits" / f"split.{category}.val.json",
            [f"{category}{number}" for number in range(3)],
        )


@pytest.mark.parametrize(
    ("base", "captions", "images"),
    [
        (".", "captions", "images"),
        ("fashionIQ_dataset", "captions", "fashionIQ_dataset/images"),
        ("fashion-iq", "json", "fashion-iq/images"),
        ("fashionIQ", "captions", "fashionIQ/img"),
        ("fashion_iq", "captions", "fashion_iq/image_data/{c}"),
        ("fashion-iq", "captions", "fashion-iq/data/resized_images/{c}"),
        (".", "captions", "all_imgs"),
        ("fashioniq", "captions", "images"),
    ],
)
@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_fashioniq_layouts(tmp_path, base, captions, images, extension):
    fashioniq_root(tmp_path / base, captions)
    for benchmark in load_benchmark("fashioniq", tmp_path, "val"):
        with pytest.raises(InputError, match=f"no pictures of FashionIQ {benchmark.category}"):
            benchmark.images()
    for benchmark in load_benchmark("fashioniq", tmp_path, "val"):
        draw(tmp_path / images.format(c=benchmark.category) / f"{benchmark.category}1.{extension}")
        assert benchmark.images().load(f"{benchmark.category}1").size == (8, 6)


def test_the_val_union_gallery_holds_references_and_targets(tmp_path):
    fashioniq_root(tmp_path)
    benchmark = one("fashioniq", tmp_path, "val", "dress", gallery="val-union")
    assert (benchmark.gallery, benchmark.outside) == (["dress0", "dress1"], {"dress2"})
    union = one("fashioniq", tmp_path, "val", "dress", gallery="all-categories")
    assert len(union.gallery) == 9
    assert union.outside == frozenset()


def test_a_pair_that_makes_two_queries_has_two_ids(tmp_path):
    fashioniq_root(tmp_path)
    records = one("fashioniq", tmp_path, "val", "dress", caption_join="both-orders").records
    wanted = [("0.0", "is red and has no belt"), ("0.1", "has no belt and is red")]
    assert [(record.id, record.text) for record in records] == wanted


@pytest.mark.parametrize(
    ("captions", "splits", "images"),
    [
        ("cirr/captions", "cirr/image_splits", "."),
        ("captions", "image_splits", "img_raw"),
        ("data/cirr/captions", "data/cirr/image_splits", "data/cirr/img_raw"),
        ("CIRR/captions", "CIRR/image_splits", "CIRR"),
        ("annotation/cirr", "annotation/cirr", "CIRR/images"),
        ("cirr/captions", "cirr/images_splits", "img_raw"),
        ("cirr_dataset/cirr/captions", "cirr_dataset/cirr/image_splits", "cirr_dataset"),
    ],
)
def test_cirr_layouts(tmp_path, captions, splits, images):
    query = {
        "pairid": 5,
        "reference": "r",
        "target_hard": "t",
        "target_soft": {"t": 1.0},
        "caption": "c",
    }
    query["img_set"] = {"id": 0, "members": ["r", "t"]}
    dump(tmp_path / captions / "cap.rc2.val.json", [query])
    dump(tmp_path / splits / "split.rc2.val.json", {"r": "./dev/r.png", "t": "./dev/t.png"})
    benchmark = one("cirr", tmp_path, "dev")
    with pytest.raises(InputError, match="no pictures of CIRR in .*; looked for .*img_raw/dev"):
        benchmark.images()
    draw(tmp_path / "elsewhere" / "t.png")
    (tmp_path / images).mkdir(parents=True, exist_ok=True)
    (tmp_path / images / "dev").symlink_to(tmp_path / "elsewhere")  # as people link NLVR2
    assert benchmark.images().load("t").size == (8, 6)
    assert "r" not in benchmark.images()


def test_a_split_file_does_not_lead_out_of_the_pictures(tmp_path):
    query = {
        "pairid": 5,
        "reference": "r",
        "target_hard": "t",
        "target_soft": {},
        "caption": "c",
        "img_set": {"members": ["r"]},
    }
    dump(tmp_path / "captions" / "cap.rc2.val.json", [query])
    dump(
        tmp_path / "image_splits" / "split.rc2.val.json",
        {"r": "./dev/../secret.png", "t": str(tmp_path / "secret.png")},
    )
    draw(tmp_path / "secret.png")
    draw(tmp_path / "dev" / "x.png")
    store = one("cirr", tmp_path, "val").images()
    for name in ("r", "t"):
        with pytest.raises(InputError, match="leaves the folder"):
            store.load(name)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_an_empty_folder_is_refused_with_what_was_looked_for(tmp_path, name):
    split = "val" if name != "folder" else "mine"
    with pytest.raises(InputError, match=r"in .*; looked for \S+\.jsonl?\b"):
        load_benchmark(name, tmp_path, split)
    with pytest.raises(InputError, match="absent: no such folder"):
        load_benchmark(name, tmp_path / "absent", split)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_option_of_a_loader_is_listed(name):
    dataset = BENCHMARKS[name]
    common = ("root", "split", "category")
    assert tuple(inspect.signature(dataset.load).parameters) == (*common, *dataset.options)


# ---- what is refused

OPTIONS = [
    ("flickr", "val", {}, "benchmark 'flickr' is unknown; choose from fashioniq, cirr"),
    ("fashioniq", "dev", {}, "split 'dev' is unknown; choose from train, val, test"),
    (
        "fashioniq",
        "val",
        {"category": "shoe"},
        "category 'shoe' is unknown; choose from dress, shirt, toptee",
    ),
    (
        "fashioniq",
        "val",
        {"gallery": "VAL"},
        f"gallery 'VAL' is unknown; choose from {', '.join(GALLERIES)}",
    ),
    (
        "fashioniq",
        "val",
        {"reference": "kept"},
        "reference 'kept' is unknown; choose from keep, remove",
    ),
    (
        "fashioniq",
        "val",
        {"caption_join": "and"},
        "caption_join 'and' is unknown; choose from clip4cir, raw",
    ),
    (
        "fashioniq",
        "val",
        {"labels": "soft"},
        "fashioniq has no option 'labels'; it has gallery, reference, caption_join",
    ),
    ("cirr", "val", {"category": "dress"}, "cirr has no categories, got 'dress'"),
    ("cirr", "val", {"labels": "both"}, "labels 'both' is unknown; choose from hard, soft"),
    ("cirr", "val", {"gallery": "original"}, "cirr has no option 'gallery'"),
    ("circo", "train", {}, "split 'train' is unknown; choose from val, test"),
    ("circo", "val", {"text": "x"}, "text 'x' is unknown; choose from plain, magiclens, megapairs"),
    ("shoes", "dev", {}, "split 'dev' is unknown; choose from train, eval"),
    (
        "genecis",
        "test",
        {"category": "color"},
        "category 'color' is unknown; choose from focus_attribute",
    ),
    ("genecis", "test", {"reference": "keep"}, "genecis has no option 'reference'; it has none"),
]


@pytest.mark.parametrize(("name", "split", "options", "message"), OPTIONS)
def test_unknown_options_are_refused_with_the_known_ones(tmp_path, name, split, options, message):
    with pytest.raises(InputError) as error:
        load_benchmark(name, tmp_path, split, **options)
    assert message in str(error.value)


PAIR = {"candidate": "a", "target": "b", "captions": ["x", "y"]}
BAD_FASHIONIQ = [
    ({}, "a list of annotations is expected, got dict"),
    ([], "got list without entries"),
    ([PAIR, "x"], "entry 1 must be an object, got str"),
    ([{"candidate": "a", "captions": ["x", "y"]}], "entry 0: key 'target' is missing"),
    ([PAIR | {"target": None}], "entry 0: 'target' must be str, got None"),
    ([PAIR | {"captions": ["x"]}], "entry 0: two captions are expected, got 1"),
    ([PAIR | {"captions": ["x", "y", "z"]}], "entry 0: two captions are expected, got 3"),
    ([PAIR | {"captions": ["x", 3]}], "entry 0: 'captions' must be a list of strings"),
]


@pytest.mark.parametrize(("entries", "message"), BAD_FASHIONIQ)
def test_bad_annotations_are_named_with_their_place(tmp_path, entries, message):
    fashioniq_root(tmp_path)
    dump(tmp_path / "captions" / "cap.dress.val.json", entries)
    with pytest.raises(InputError, match="cap.dress.val.json: ") as error:
        one("fashioniq", tmp_path, "val", "dress")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b", "a"], "image 'a' is listed twice"),
        ([1], "must be a list of strings"),
        ([], "no image ids"),
    ],
)
def test_bad_galleries_are_named(tmp_path, names, message):
    fashioniq_root(tmp_path)
    dump(tmp_path / "image_splits" / "split.dress.val.json", names)
    with pytest.raises(InputError, match=f"split.dress.val.json: .*{message}"):
        one("fashioniq", tmp_path, "val", "dress")


def test_the_first_target_of_circo_is_the_one_that_recall_counts(tmp_path):
    query = CIRCO_QUERY | {"target_img_id": 7, "gt_img_ids": [5, 7, 9]}
    dump(tmp_path / "annotations" / "val.json", [query])
    assert one("circo", tmp_path, "val").records[0].targets == ("7", "5", "9")


def test_a_query_id_twice_is_refused(tmp_path):
    dump(tmp_path / "annotations" / "val.json", [CIRCO_QUERY, CIRCO_QUERY])
    with pytest.raises(InputError, match="val.json: query id '0' occurs twice"):
        one("circo", tmp_path, "val")


def test_an_empty_folder_dataset_is_refused(own):
    Path(own / "records.mine.jsonl").write_text("\n")
    with pytest.raises(InputError, match="records.mine.jsonl: no records in it"):
        one("folder", own, "mine")
