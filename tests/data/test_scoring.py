"""Official rules in closed form, on benchmarks of a few queries that need no annotation files."""

import json

import pytest

from cir_cot.data.benchmark import Benchmark, coco_id
from cir_cot.data.rankings import check_images, ranked_lists, read_rankings, short_lists
from cir_cot.data.scoring import mean_of_categories, score_rankings
from cir_cot.errors import InputError
from cir_cot.records import Record


def benchmark(name, records, gallery, ks, remove_reference=False, **more) -> Benchmark:
    return Benchmark(
        name, "val", None, records, list(gallery), ks, remove_reference, {}, lambda: None, **more
    )


def record(query, reference, targets, subset=()) -> Record:
    return Record(query, reference, "text", tuple(targets), None, tuple(subset), "")


CIRR = [record("1", "r", "a", "rabcde"), record("2", "a", "b", "abcdef")]
FULL = {"1": list("fgrbacde"), "2": list("bcdefgra")}


def cirr(**more) -> Benchmark:
    return benchmark("cirr", CIRR, "rabcdefg", (1, 5), True, **more)


def test_cirr_takes_the_reference_out_of_lists_and_sets_and_averages_two_recalls():
    assert ranked_lists(cirr(), FULL) == [list("fgbacde"), list("bcdefgr")]
    wanted = {"R@1": 50, "R@5": 100, "Rsub@1": 50, "Rsub@2": 100, "Rsub@3": 100, "Avg": 75}
    assert score_rankings(cirr(), FULL) == wanted
    assert score_rankings(cirr(), {name: ranking[:6] for name, ranking in FULL.items()}) == {
        "R@1": 50,
        "R@5": 100,
    }


def test_cirr_may_rank_sets_by_themselves_with_three_members_at_least():
    sets = {"1": list("rcba"), "2": list("dcb")}
    found = score_rankings(cirr(), FULL, sets)
    assert [found[name] for name in ("Rsub@1", "Rsub@2", "Rsub@3", "Avg")] == [0, 0, 100, 50]
    with pytest.raises(InputError, match="'2' ranks 2 members of its set; Rsub@3 needs 3"):
        score_rankings(cirr(), FULL, sets | {"2": list("adc")})
    with pytest.raises(
        InputError, match="'2' ranks image 'g', which is not in the query's image set"
    ):
        score_rankings(cirr(), FULL, sets | {"2": list("dgb")})
    with pytest.raises(InputError, match="no ranking for query '2' \\(1 of 2 are missing\\)"):
        score_rankings(cirr(), FULL, {"1": sets["1"]})


def test_cirrs_graded_labels_give_their_weights():
    weights = {"1": {"a": 1.0, "b": 0.5}, "2": {"b": 1.0, "c": 0.2}}
    found = score_rankings(cirr(weights=weights), FULL)
    assert [found[name] for name in ("R@1", "R@5", "Rsub@1", "Rsub@2", "Avg")] == [
        50,
        100,
        75,
        100,
        87.5,
    ]


def test_circo_counts_the_first_target_in_recall_and_all_in_precision():
    aspects = {"1": ("color", "count"), "2": ("count",)}
    records = [record("1", "r", "ab"), record("2", "r", "cd")]
    lists = {"1": list("xbyzuva"), "2": list("cd")}
    found = score_rankings(benchmark("circo", records, "", (1, 5), aspects=aspects), lists)
    assert found == {
        "mAP@1": 50,
        "mAP@5": (100 * 1 / 4 + 100) / 2,
        "R@1": 50,
        "R@5": 50,
        "semantic_mAP@10": {
            "color": pytest.approx(100 * (1 / 2 + 2 / 7) / 2),
            "count": pytest.approx((100 * (1 / 2 + 2 / 7) / 2 + 100) / 2),
        },
    }


def test_the_mean_over_categories_is_not_weighted_and_fashioniq_has_one_of_both_recalls():
    parts = {"dress": {"R@10": 10.0, "R@50": 30.0}, "shirt": {"R@10": 20.0, "R@50": 50.0}}
    assert mean_of_categories(parts) == parts | {"average": {"R@10": 15, "R@50": 40, "Avg": 27.5}}
    assert mean_of_categories({"a": {"R@1": 4.0}, "b": {"R@1": 2.0}})["average"] == {"R@1": 3}


def test_a_kept_reference_takes_a_place():
    for removed, recall in ((True, 100), (False, 0)):
        kept = benchmark("shoes", [record("1", "r", "a")], "rabc", (1,), removed)
        assert score_rankings(kept, {"1": list("rab")}) == {"R@1": recall}


def test_a_list_reaches_the_largest_k_or_the_end_of_its_gallery():
    rows = [record("1", "r", "a")]
    large, small = (
        benchmark("folder", rows, gallery, (1, 5), True) for gallery in ("rabcdefg", "rabc")
    )
    assert score_rankings(large, {"1": list("abcde")})["R@5"] == 100
    with pytest.raises(InputError, match="'1' ranks 4 images beside its reference; R@5 needs 5"):
        score_rankings(large, {"1": list("abcdr")})
    assert score_rankings(small, {"1": list("bca")})["R@5"] == 100
    with pytest.raises(InputError, match="ranks 2 images beside its reference; R@5 needs 3"):
        score_rankings(small, {"1": list("ab")})


def test_images_that_a_smaller_gallery_leaves_out_may_be_named_and_are_skipped():
    rows = [record("1", "r", "a")]
    part = benchmark("fashioniq", rows, "abcd", (1, 2), outside=frozenset("xyr"))
    assert ranked_lists(part, {"1": list("xaybr")}) == [["a", "b"]]
    assert score_rankings(part, {"1": list("xaybr")}) == {"R@1": 100, "R@2": 100}
    with pytest.raises(InputError, match="ranks image 'z', which is not in the gallery"):
        score_rankings(part, {"1": list("za")})


def test_lists_that_end_early_are_counted_but_not_where_the_gallery_ends():
    rows = [record(query, "r", "a") for query in "123"]
    lists = {"1": list("abc"), "2": list("ab"), "3": []}
    assert short_lists(benchmark("circo", rows, "abc", (2, 5)), lists) == 2
    assert short_lists(benchmark("circo", rows, "", (2, 5)), lists) == 3
    assert short_lists(benchmark("circo", rows, "", (2, 3)), lists) == 2
    assert short_lists(benchmark("circo", rows, "rabc", (2, 5), True), lists) == 2


def test_genecis_ranks_its_own_candidates():
    rows = [record("1", "r", "a")]
    own = benchmark("genecis", rows, "abcdr", (1, 2, 3), candidates={"1": ["a", "b", "c"]})
    assert score_rankings(own, {"1": list("bac")}) == {"R@1": 0, "R@2": 100, "R@3": 100}
    with pytest.raises(InputError, match="ranks image 'd', which is not in the gallery"):
        score_rankings(own, {"1": list("bad")})


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        ({}, r"no ranking for query '1' \(1 of 1 are missing\)"),
        ({"1": list("ab"), "9": []}, r"unknown query id '9' \(1 unknown\)"),
        ({"1": list("aba")}, "'1' ranks image 'a' twice"),
    ],
)
def test_unusable_lists_are_named(lists, words):
    with pytest.raises(InputError, match=words):
        score_rankings(benchmark("shoes", [record("1", "r", "a")], "rab", (1,)), lists)


def test_only_cirr_has_sets_and_only_known_targets_score():
    plain = benchmark("shoes", [record("1", "r", "a")], "rab", (1,))
    with pytest.raises(InputError, match="shoes has no subsets"):
        score_rankings(plain, {"1": list("rab")}, {"1": list("ab")})
    unknown = benchmark("circo", [record("1", "r", "")], "", (5,))
    with pytest.raises(
        InputError, match="circo val: query '1' has no published target; use the test server"
    ):
        score_rankings(unknown, {"1": list("rab")})


def test_an_unknown_gallery_refuses_no_image():
    check_images(benchmark("circo", [], "", (5,)), record("1", "r", "a"), ["anything"], frozenset())


@pytest.mark.parametrize(
    ("given", "name"), [(161275, "161275"), ("000000161275", "161275"), ("0", "0"), (0, "0")]
)
def test_a_coco_id_is_a_number_however_it_is_written(given, name):
    assert coco_id(given, "x") == name


@pytest.mark.parametrize(
    "given", [True, -1, "-1", "0000000161275", "8.jpg", "", "\N{SUPERSCRIPT TWO}", 1.0, None]
)
def test_what_is_no_coco_id(given):
    with pytest.raises(InputError, match="x: .* is not a COCO image id"):
        coco_id(given, "x")


def test_cirrs_two_submissions_are_told_apart(tmp_path):
    file = tmp_path / "x.json"
    file.write_text(json.dumps({"version": "rc2", "metric": "recall_subset", "1": ["a"]}))
    assert read_rankings(file, cirr(), "recall_subset") == {"1": ["a"]}
    with pytest.raises(InputError, match="'metric' is not 'recall'"):
        read_rankings(file, cirr())
    file.write_text(json.dumps({"version": "rc1", "metric": "recall", "1": ["a"]}))
    with pytest.raises(InputError, match="'version' is not 'rc2'"):
        read_rankings(file, cirr())
    file.write_text(json.dumps({"1": ["a"]}))
    assert read_rankings(file, cirr()) == {"1": ["a"]}
