"""`cir-cot score`: official numbers from annotation files, without torch, and what it refuses."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cir_cot import cli
from cir_cot.errors import InputError
from cir_cot.scripts.eval import score


def asked(capsys, *argv):
    """The JSON object that the command prints."""
    assert score.main([str(arg) for arg in argv] + ["--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


@pytest.fixture(scope="session")
def expected(golden):
    return json.loads((golden / "expected.json").read_text())


# ---- the real files


def test_all_categories_and_their_mean(shared_data, golden, expected, capsys):
    root = shared_data / "fashioniq"
    result = asked(
        capsys, "--benchmark", "fashioniq", "--root", root, "--split", "val", "--rankings", golden
    )
    numbers = expected["fashioniq.val"]
    assert list(result) == ["metrics", "protocol"]
    assert list(result["metrics"]) == ["dress", "shirt", "toptee", "average"]
    for category in ("dress", "shirt", "toptee"):
        primary = numbers[category]["original split, reference kept (primary)"]
        assert result["metrics"][category] == pytest.approx(primary, abs=1e-4)
    assert result["metrics"]["average"]["R@50"] == pytest.approx(
        numbers["average"]["orig_kept_R@50"], abs=1e-4
    )
    assert result["metrics"]["average"]["Avg"] == pytest.approx(
        numbers["average"]["(R@10+R@50)/2"], abs=1e-4
    )
    protocol = result["protocol"]
    assert protocol["gallery_size"] == {"dress": 3817, "shirt": 6346, "toptee": 5373}
    assert protocol["queries"] == {"dress": 2017, "shirt": 2038, "toptee": 1961}
    assert (protocol["reference"], protocol["gallery"], protocol["short_lists"]) == (
        "kept",
        "original",
        0,
    )


def test_another_protocol_gives_another_number_and_says_so(shared_data, golden, expected, capsys):
    argv = [
        "--benchmark",
        "fashioniq",
        "--root",
        shared_data / "fashioniq",
        "--split",
        "val",
        "--category",
        "shirt",
    ]
    argv += [
        "--rankings",
        golden / "fashioniq.shirt.val.json.gz",
        "--gallery",
        "val-union",
        "--reference",
        "remove",
    ]
    result = asked(capsys, *argv)
    numbers = expected["fashioniq.val"]["shirt"]["VAL split, reference removed"]
    assert result["metrics"] == pytest.approx(numbers, abs=1e-4)
    assert result["protocol"] == {
        "benchmark": "fashioniq",
        "split": "val",
        "category": "shirt",
        "gallery": "val-union",
        "caption_join": "clip4cir",
        "gallery_size": 3089,
        "queries": 2038,
        "reference": "removed",
        "short_lists": 97,
    }


def test_official_submission_files_are_rankings(shared_data, golden, expected, capsys, tmp_path):
    rankings, subsets = (
        json.loads(gzip.decompress((golden / f"cirr.val{part}.json.gz").read_bytes()))
        for part in ("", ".subset")
    )
    benchmark = json.loads((shared_data / "cirr/cirr/captions/cap.rc2.val.json").read_text())
    references = {str(query["pairid"]): query["reference"] for query in benchmark}
    recall = {
        q: [name for name in names if name != references[q]][:50] for q, names in rankings.items()
    }
    subset = {
        q: [name for name in names if name != references[q]][:3] for q, names in subsets.items()
    }
    main, sub = tmp_path / "recall.json", tmp_path / "subset.json"
    main.write_text(json.dumps({"version": "rc2", "metric": "recall", **recall}, sort_keys=True))
    sub.write_text(json.dumps({"version": "rc2", "metric": "recall_subset", **subset}))
    argv = [
        "--benchmark",
        "cirr",
        "--root",
        shared_data / "cirr",
        "--split",
        "val",
        "--rankings",
        main,
    ]
    numbers = {key: value for key, value in expected["cirr.val"].items() if key != "integer_hits"}
    assert asked(capsys, *argv, "--subset-rankings", sub)["metrics"] == pytest.approx(
        numbers, abs=1e-4
    )
    with pytest.raises(
        InputError, match="subset.json: 'metric' is not 'recall'; is it the right file"
    ):
        score.main([str(arg) for arg in (*argv[:-1], sub)])
    with pytest.raises(InputError, match="recall.json: 'metric' is not 'recall_subset'"):
        score.main([str(arg) for arg in (*argv, "--subset-rankings", main)])


def test_circo_submission_example(shared_data, capsys):
    argv = ["--benchmark", "circo", "--root", shared_data / "circo", "--split", "val"]
    example = shared_data / "circo" / "submission_examples" / "submission_val.json"
    result = asked(capsys, *argv, "--rankings", example)
    assert list(result["metrics"]) == [
        *("mAP@5", "mAP@10", "mAP@25", "mAP@50", "R@5", "R@10", "R@25", "R@50", "semantic_mAP@10"),
    ]
    assert len(result["metrics"]["semantic_mAP@10"]) == 9
    assert result["protocol"]["gallery_size"] == 123403
    assert result["protocol"]["reference"] == "kept"


def test_shoes(shared_data, golden, expected, capsys):
    argv = ["--benchmark", "shoes", "--root", shared_data / "shoes", "--split", "eval"]
    argv += ["--rankings", golden / "shoes.eval.json.gz"]
    numbers = expected["shoes.eval"]
    assert asked(capsys, *argv)["metrics"] == pytest.approx(
        numbers["reference removed (official)"], abs=1e-4
    )
    kept = asked(capsys, *argv, "--reference", "keep")
    assert kept["metrics"] == pytest.approx(numbers["reference kept"], abs=1e-4)
    assert kept["protocol"]["reference"] == "kept"


def test_a_split_without_targets_is_for_the_server(shared_data, golden):
    argv = ["--benchmark", "circo", "--root", str(shared_data / "circo"), "--split", "test"]
    with pytest.raises(InputError, match="query '0' has no published target; use the test server"):
        score.main([*argv, "--rankings", str(golden / "circo.val.json.gz")])


# ---- a small CIRR of our own

GALLERY = ["r", "t", *(f"x{number}" for number in range(58))]


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


@pytest.fixture
def cirr(tmp_path):
    """Two queries over 60 images; returns the arguments up to the rankings file, and that file's path."""
    query = {"reference": "r", "target_hard": "t", "target_soft": {}, "caption": "c"}
    members = {"img_set": {"members": ["r", "t", "x0", "x1", "x2", "x3"]}}
    queries = [query | members | {"pairid": pair} for pair in (7, 8)]
    write(tmp_path / "captions" / "cap.rc2.val.json", queries)
    write(
        tmp_path / "image_splits" / "split.rc2.val.json",
        {name: f"./dev/{name}.png" for name in GALLERY},
    )
    argv = [
        "--benchmark",
        "cirr",
        "--root",
        str(tmp_path),
        "--split",
        "val",
        "--rankings",
        str(tmp_path / "r.json"),
    ]
    return argv, tmp_path / "r.json"


FIRST = ["r", "t", *GALLERY[2:]]  # the reference does not take a place
SECOND = ["x0", "x1", "x9", "t", *(name for name in GALLERY[2:] if name not in ("x0", "x1", "x9"))]


def test_full_lists_give_the_subset_recall_too(cirr, capsys):
    argv, file = cirr
    write(file, {"7": FIRST, "8": SECOND})
    metrics = asked(capsys, *argv)["metrics"]
    wanted = {
        "R@1": 50,
        "R@5": 100,
        "R@10": 100,
        "R@50": 100,
        "Rsub@1": 50,
        "Rsub@2": 50,
        "Rsub@3": 100,
        "Avg": 75,
    }
    assert metrics == wanted
    assert list(metrics) == list(wanted)


def test_lists_of_exactly_the_largest_k_are_long_enough(cirr, capsys):
    argv, file = cirr
    write(file, {"7": FIRST[:51], "8": SECOND[:50]})
    assert asked(capsys, *argv)["metrics"]["R@50"] == 100
    assert asked(capsys, *argv)["protocol"]["short_lists"] == 0


def test_keeping_the_reference_costs_a_place(cirr, capsys):
    argv, file = cirr
    write(file, {"7": FIRST, "8": SECOND})
    assert asked(capsys, *argv, "--reference", "keep")["metrics"]["R@1"] == 0


def test_the_subset_recall_is_left_out_where_the_subset_is_not_ranked(cirr, capsys):
    argv, file = cirr
    write(file, {"7": [name for name in FIRST if name != "x3"], "8": SECOND})
    assert set(asked(capsys, *argv)["metrics"]) == {"R@1", "R@5", "R@10", "R@50"}


def test_a_table_names_the_protocol(cirr, capsys):
    argv, file = cirr
    write(file, {"7": FIRST, "8": SECOND})
    score.main(argv)
    lines = capsys.readouterr().out.splitlines()
    assert "R@1       50.00" in lines
    assert "reference: removed" in lines
    assert "gallery_size: 60" in lines


REFUSED = {
    "missing query": ({"7": FIRST}, r"no ranking for query '8' \(1 of 2 are missing\)"),
    "unknown query": ({"7": FIRST, "8": FIRST, "9": FIRST}, "unknown query id '9'"),
    "image twice": ({"7": FIRST, "8": [*SECOND, "x4"]}, "query '8' ranks image 'x4' twice"),
    "foreign image": (
        {"7": FIRST, "8": [*SECOND, "zz"]},
        "query '8' ranks image 'zz', which is not in the gallery",
    ),
    "short list": (
        {"7": FIRST, "8": SECOND[:49]},
        "query '8' ranks 49 images beside its reference; R@50 needs 50",
    ),
    "short without the reference": (
        {"7": FIRST[:50], "8": SECOND},
        "query '7' ranks 49 images beside its reference",
    ),
    "no list": ({"7": FIRST, "8": "t"}, "query '8': a ranking is a list of image ids, got str"),
    "number as id": ({"7": FIRST, "8": [1]}, "query '8': an image id is a string, got 1"),
    "no object": ([FIRST, SECOND], "is expected, got list"),
    "version": ({"version": "rc1", "7": FIRST, "8": SECOND}, "'version' is not 'rc2'"),
    "query twice": ('{"7": ["t"], "7": ["t"]}', "r.json: key '7' occurs twice"),
    "no JSON": ('{"7": ["t"]', "r.json: not valid JSON"),
    "not a number": ('{"7": [NaN]}', "r.json: NaN is not JSON"),
}


@pytest.mark.parametrize(("rankings", "message"), REFUSED.values(), ids=REFUSED)
def test_unusable_rankings_are_refused_with_one_line(cirr, capsys, rankings, message):
    argv, file = cirr
    write(file, rankings)
    with pytest.raises(InputError, match=message):
        score.main(argv)
    with pytest.raises(SystemExit) as exit:
        cli.run(score.main, argv)
    assert exit.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1


SUBSETS = {
    "foreign member": (
        {"7": ["t", "x0", "x9"], "8": ["t", "x0", "x1"]},
        "'x9', which is not in the query's image set",
    ),
    "two members": (
        {"7": ["r", "t", "x0"], "8": ["t", "x0", "x1"]},
        "query '7' ranks 2 members of its set; Rsub@3 needs",
    ),
    "missing query": ({"7": ["t", "x0", "x1"]}, "no ranking for query '8'"),
    "image twice": (
        {"7": ["t", "x0", "x1"], "8": ["t", "t", "x0"]},
        "query '8' ranks image 't' twice",
    ),
}


@pytest.mark.parametrize(("rankings", "message"), SUBSETS.values(), ids=SUBSETS)
def test_unusable_subset_rankings_are_refused(cirr, tmp_path, rankings, message):
    argv, file = cirr
    write(file, {"7": FIRST, "8": SECOND})
    with pytest.raises(InputError, match=message):
        score.main([*argv, "--subset-rankings", str(write(tmp_path / "s.json", rankings))])


def test_subset_rankings_decide_over_the_lists(cirr, tmp_path, capsys):
    argv, file = cirr
    write(file, {"7": FIRST, "8": SECOND})
    subsets = write(
        tmp_path / "s.json", {"7": ["x0", "t", "x1"], "8": ["r", "x0", "x1", "x2", "t"]}
    )
    metrics = asked(capsys, *argv, "--subset-rankings", subsets)["metrics"]
    assert [metrics[f"Rsub@{k}"] for k in (1, 2, 3)] == [0, 50, 50]


# ---- other benchmarks


@pytest.fixture
def circo(tmp_path):
    query = {
        "id": 0, "reference_img_id": 7, "target_img_id": 8, "gt_img_ids": [8, 9], "relative_caption": "is red",
        "shared_concept": "a car", "semantic_aspects": ["addition"],
    }  # fmt: skip
    write(tmp_path / "annotations" / "val.json", [query])
    write(tmp_path / "coco2017_unlabeled_ids.txt", "7\n8\n9\n10\n")
    return [
        "--benchmark",
        "circo",
        "--root",
        str(tmp_path),
        "--split",
        "val",
        "--rankings",
        str(tmp_path / "r.json"),
    ]


@pytest.mark.parametrize("ranking", [[8, 7, 9], ["8", "7", "9"], ["000000000008", "7", 9]])
def test_circo_ids_may_be_numbers_or_strings_and_lists_short(circo, capsys, tmp_path, ranking):
    write(tmp_path / "r.json", {"0": ranking})
    result = asked(capsys, *circo)
    assert result["metrics"]["mAP@5"] == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert result["protocol"]["short_lists"] == 1  # 3 of 4 images
    assert asked(capsys, *circo, "--reference", "remove")["metrics"]["mAP@5"] == pytest.approx(100)


@pytest.mark.parametrize(
    ("ranking", "message"),
    [
        ([8, "8"], "ranks image '8' twice"),
        ([11], "'11', which is not in the gallery"),
        (["8.jpg"], "'8.jpg' is not a COCO image id"),
        ([-8], "-8 is not a COCO image id"),
        ([8.0], "8.0 is not a COCO image id"),
        ([True], "True is not a COCO image id"),
        (["²"], "'²' is not a COCO image id"),
    ],
)
def test_circo_ids_that_are_none(circo, tmp_path, ranking, message):
    write(tmp_path / "r.json", {"0": ranking})
    with pytest.raises(InputError, match=message):
        score.main(circo)


@pytest.fixture
def fashioniq(tmp_path):
    for category in ("dress", "shirt", "toptee"):
        pair = {"candidate": "r", "target": "t", "captions": ["is red", "has no belt"]}
        write(tmp_path / "data" / "captions" / f"cap.{category}.val.json", [pair])
        write(tmp_path / "data" / "image_splits" / f"split.{category}.val.json", GALLERY)
        place = {"dress": 9, "shirt": 10, "toptee": 50}[category]
        names = [name for name in GALLERY if name != "t"]
        ranking = [*names[:place], "t", *names[place:]]
        write(tmp_path / "rankings" / f"fashioniq.{category}.val.json", {"0": ranking})
    argv = ["--benchmark", "fashioniq", "--root", str(tmp_path / "data"), "--split", "val"]
    return [*argv, "--rankings", str(tmp_path / "rankings")]


def test_a_smaller_gallery_skips_what_it_leaves_out(fashioniq, capsys):
    original, union = (
        asked(capsys, *fashioniq, "--gallery", gallery)["metrics"]
        for gallery in ("original", "val-union")
    )
    assert [original[c]["R@10"] for c in ("dress", "shirt", "toptee", "average")] == [
        100,
        0,
        0,
        pytest.approx(100 / 3),
    ]
    assert [original[c]["R@50"] for c in ("dress", "shirt", "toptee", "average")] == [
        100,
        100,
        0,
        pytest.approx(200 / 3),
    ]
    assert original["average"]["Avg"] == pytest.approx(50)
    assert union["average"] == {"R@10": 100, "R@50": 100, "Avg": 100}


def test_an_image_of_no_gallery_is_refused_with_the_smaller_gallery_too(fashioniq, tmp_path):
    write(tmp_path / "rankings" / "fashioniq.shirt.val.json", {"0": [*GALLERY, "zz"]})
    for gallery in ("original", "val-union"):
        with pytest.raises(InputError, match="fashioniq shirt val: query '0' ranks image 'zz'"):
            score.main([*fashioniq, "--gallery", gallery])


def test_the_folder_of_rankings_is_searched(fashioniq, tmp_path, capsys):
    file = tmp_path / "rankings" / "fashioniq.dress.val.json"
    (file.parent / "fashioniq.dress.val.json.gz").write_bytes(gzip.compress(file.read_bytes()))
    file.unlink()
    assert asked(capsys, *fashioniq)["metrics"]["dress"]["R@10"] == 100
    assert asked(capsys, *fashioniq, "--category", "dress")["metrics"] == {"R@10": 100, "R@50": 100}
    (tmp_path / "rankings" / "fashioniq.shirt.val.json").unlink()
    with pytest.raises(
        InputError, match="no rankings in .*rankings; looked for fashioniq.shirt.val.json, "
    ):
        score.main(fashioniq)
    with pytest.raises(InputError, match="is not a folder; without --category"):
        score.main([*fashioniq[:-1], str(tmp_path / "rankings" / "fashioniq.toptee.val.json")])


def test_options_of_other_benchmarks_are_refused(cirr, fashioniq, tmp_path):
    argv, file = cirr
    write(file, {"7": FIRST, "8": SECOND})
    with pytest.raises(InputError, match="cirr has no option 'gallery'"):
        score.main([*argv, "--gallery", "val-union"])
    with pytest.raises(InputError, match="cirr has no categories, got 'dress'"):
        score.main([*argv, "--category", "dress"])
    with pytest.raises(InputError, match="fashioniq has no subsets"):
        score.main(
            [
                *fashioniq[:-1],
                str(tmp_path / "rankings"),
                "--subset-rankings",
                str(write(file, {"0": []})),
            ]
        )


def test_abbreviated_options_are_refused(cirr):
    argv, _ = cirr
    with pytest.raises(SystemExit) as exit:
        score.main([*argv, "--ref", "keep"])
    assert exit.value.code == 2


ENTRIES = {
    "cir-cot score": "from cir_cot import cli; sys.argv.insert(1, 'score'); cli.run(cli.main)",
    "eval/score.py": "from cir_cot.cli import run; from cir_cot.scripts.eval.score import main; run(main)",
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_scoring_works_where_torch_cannot_be_imported(cirr, entry):
    argv, file = cirr
    write(file, {"7": FIRST, "8": SECOND})
    banned = "import sys; sys.modules.update(dict.fromkeys(['torch', 'transformers', 'torchvision', 'numpy'])); "
    done = subprocess.run(
        [sys.executable, "-c", banned + entry, *argv, "--json"], capture_output=True, text=True
    )
    assert done.stderr == ""
    assert done.returncode == 0
    assert json.loads(done.stdout)["metrics"]["R@1"] == 50


def test_the_script_runs_by_its_path(cirr):
    argv, file = cirr
    write(file, {"7": FIRST})
    script = Path(score.__file__)
    done = subprocess.run([sys.executable, str(script), *argv], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: cirr val: no ranking for query '8' (1 of 2 are missing)\n"
