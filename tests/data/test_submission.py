"""Files for the test servers: what is written, what is accepted, what is refused and under which name."""

import json

import pytest

from cir_cot import cli
from cir_cot.data import load_benchmark, submission_check
from cir_cot.errors import InputError
from cir_cot.scripts.eval import check_submission, submit

NAMES = [f"test1-{number}-0-img0" for number in range(60)]
SETS = [NAMES[6 * index : 6 * index + 6] for index in range(10)]


@pytest.fixture
def cirr(tmp_path):
    """CIRR test1 with four queries over sixty pictures, as its repository lays it out."""
    for folder in ("captions", "image_splits"):
        (tmp_path / "cirr" / folder).mkdir(parents=True)
    queries = [
        {
            "pairid": 100 + n,
            "reference": SETS[n][0],
            "caption": f"more {n}",
            "img_set": {"id": n, "members": SETS[n]},
        }
        for n in range(4)
    ]
    (tmp_path / "cirr/captions/cap.rc2.test1.json").write_text(json.dumps(queries))
    files = {name: f"./test1/{name}.png" for name in NAMES}
    (tmp_path / "cirr/image_splits/split.rc2.test1.json").write_text(json.dumps(files))
    return tmp_path


@pytest.fixture
def circo(tmp_path):
    """CIRCO with three test queries and two of val over eighty pictures."""
    (tmp_path / "annotations").mkdir()
    for split, count in (("test", 3), ("val", 2)):
        queries = [
            {
                "id": n,
                "reference_img_id": n + 1,
                "relative_caption": "is red",
                "shared_concept": "a dog",
            }
            | (
                {"target_img_id": 9, "gt_img_ids": [9], "semantic_aspects": []}
                if split == "val"
                else {}
            )
            for n in range(count)
        ]
        (tmp_path / "annotations" / f"{split}.json").write_text(json.dumps(queries))
    (tmp_path / "coco2017_unlabeled_ids.txt").write_text(
        "\n".join(str(number) for number in range(1, 81))
    )
    return tmp_path


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def submitted(capsys, root, benchmark, split, rankings, *more):
    """(exit code, the printed facts, the contents of the written files)."""
    out = root / "out"
    argv = [
        "--benchmark",
        benchmark,
        "--root",
        str(root),
        "--split",
        split,
        "--out",
        str(out),
        "--json",
    ]
    code = submit.main(
        [*argv, "--rankings", str(write(root / "rankings.json", rankings)), *map(str, more)]
    )
    return (
        code,
        json.loads(capsys.readouterr().out),
        {file.name: file.read_text() for file in out.glob("c*.json")},
    )


def checked(capsys, root, *files):
    """(exit code, the report of each file)."""
    code = check_submission.main([*map(str, files), "--root", str(root), "--json"])
    return code, json.loads(capsys.readouterr().out)


def full(reverse=False):
    return {str(100 + n): NAMES[::-1] if reverse else NAMES for n in range(4)}


def test_cirr_wants_two_files(cirr, capsys):
    code, facts, files = submitted(capsys, cirr, "cirr", "test1", full())
    assert code == 0
    assert facts["protocol"]["reference"] == "removed"
    assert set(files) == {"cirr.test1.recall.json", "cirr.test1.recall_subset.json"}
    recall, subset = (
        json.loads(files[f"cirr.test1.{metric}.json"]) for metric in ("recall", "recall_subset")
    )
    assert list(recall) == list(subset) == ["version", "metric", "100", "101", "102", "103"]
    assert (recall["version"], recall["metric"]) == ("rc2", "recall")
    assert (subset["version"], subset["metric"]) == ("rc2", "recall_subset")
    assert recall["101"] == [name for name in NAMES if name != SETS[1][0]][:50]
    assert subset["101"] == SETS[1][1:4]
    assert ": " not in files["cirr.test1.recall.json"]  # compact: the server takes 5 MB
    assert checked(capsys, cirr, *(cirr / "out").glob("c*.json"))[0] == 0


def test_a_file_of_somebody_else_is_not_replaced(cirr, capsys):
    (cirr / "out").mkdir()
    mine = cirr / "out" / "cirr.test1.recall_subset.json"
    mine.write_text("mine")
    with pytest.raises(
        InputError, match=r"recall_subset.json: not written by this command, or edited since"
    ):
        submitted(capsys, cirr, "cirr", "test1", full())
    assert [path.name for path in (cirr / "out").iterdir()] == [mine.name]
    assert mine.read_text() == "mine"
    assert submitted(capsys, cirr, "cirr", "test1", full(), "--overwrite")[0] == 0
    assert submitted(capsys, cirr, "cirr", "test1", full(reverse=True))[0] == 0


def test_subset_rankings_of_their_own(cirr, capsys):
    rankings = {query: names[:51] for query, names in full().items()}
    with pytest.raises(
        InputError, match="does not rank .* of its image set; rank the complete gallery or give"
    ):
        submitted(
            capsys, cirr, "cirr", "test1", full(reverse=True) | {"103": NAMES[24:] + NAMES[:18]}
        )
    subsets = {str(100 + n): SETS[n][::-1] for n in range(4)}
    file = write(cirr / "subset.json", {"version": "rc2", "metric": "recall_subset"} | subsets)
    code, _, files = submitted(capsys, cirr, "cirr", "test1", rankings, "--subset-rankings", file)
    assert code == 0
    assert json.loads(files["cirr.test1.recall_subset.json"])["102"] == SETS[2][:2:-1]


def test_circo_wants_one_file_of_numbers(circo, capsys):
    rankings = {str(n): [f"{number:012d}" for number in range(80, 0, -1)] for n in range(3)}
    code, facts, files = submitted(capsys, circo, "circo", "test", rankings)
    assert (code, facts["protocol"]["reference"]) == (0, "kept")
    assert json.loads(files["circo.test.json"]) == {
        str(n): list(range(80, 30, -1)) for n in range(3)
    }
    low = {str(n): list(range(1, 60)) for n in range(3)}
    _, facts, files = submitted(capsys, circo, "circo", "test", low, "--reference", "remove")
    assert facts["protocol"]["reference"] == "removed"
    assert json.loads(files["circo.test.json"])["1"] == [1, *range(3, 52)]


REFUSED = {
    "a query is missing": ({"0": [], "1": []}, "no ranking for query '2'"),
    "an unknown query": ({str(n): list(range(1, 60)) for n in range(4)}, "unknown query id '3'"),
    "a short list": (
        {str(n): list(range(1, 50)) for n in range(3)},
        "ranks 49 images; the server wants 50",
    ),
    "a picture twice": ({str(n): [1, *range(1, 60)] for n in range(3)}, "ranks image '1' twice"),
    "a foreign picture": (
        {str(n): [*range(1, 60), 99] for n in range(3)},
        "ranks image '99', which is not in",
    ),
    "no picture": ({str(n): ["x.jpg"] * 50 for n in range(3)}, "'x.jpg' is not a COCO image id"),
}


@pytest.mark.parametrize(("rankings", "message"), REFUSED.values(), ids=REFUSED)
def test_unfit_rankings_write_nothing(circo, capsys, rankings, message):
    with pytest.raises(InputError, match=message):
        submitted(capsys, circo, "circo", "test", rankings)
    assert not (circo / "out").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--benchmark", "cirr", "--split", "val"], "split 'val' is unknown; choose from test1"),
        (
            ["--benchmark", "circo", "--split", "test", "--subset-rankings", "x"],
            "circo has no subsets",
        ),
        (
            ["--benchmark", "cirr", "--split", "test1", "--reference", "keep"],
            "CIRR's server refuses",
        ),
    ],
)
def test_what_no_server_takes_is_refused(cirr, capsys, argv, message):
    with pytest.raises(SystemExit) as exit:
        cli.run(
            submit.main,
            [*argv, "--root", str(cirr), "--rankings", "r.json", "--out", str(cirr / "out")],
        )
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


# ---- existing files

RECALL = {"version": "rc2", "metric": "recall"}
SUBSET = {"version": "rc2", "metric": "recall_subset"}
LISTS = {str(100 + n): [name for name in NAMES if name not in SETS[n]][:50] for n in range(4)}
TRIPLES = {str(100 + n): SETS[n][1:4] for n in range(4)}
BAD_CIRR = {
    "wrong_version": RECALL | {"version": "rc1"} | LISTS,
    "wrong_metric": RECALL | {"metric": "Recall"} | LISTS,
    "missing_query": RECALL | {key: LISTS[key] for key in ("100", "101", "102")},
    "unknown_query": RECALL | LISTS | {"99": LISTS["100"]},
    "wrong_count": RECALL | LISTS | {"100": LISTS["100"][:49]},
    "duplicate_image": RECALL | LISTS | {"100": LISTS["100"][:49] + LISTS["100"][:1]},
    "reference_inside": RECALL | LISTS | {"100": LISTS["100"][:49] + [SETS[0][0]]},
    "not_in_gallery": RECALL | LISTS | {"100": [f"{name}.png" for name in LISTS["100"]]},
    "not_in_subset": SUBSET | TRIPLES | {"101": SETS[2][1:4]},
    "wrong_form": RECALL | LISTS | {"100": "test1-1-0-img0"},
    "wrong_image": RECALL | LISTS | {"100": [*LISTS["100"][:49], 7]},
    "unreadable": json.dumps(RECALL | LISTS)[:-1] + ', "100": []}',
}


@pytest.mark.parametrize("problem", BAD_CIRR)
def test_a_bad_cirr_file_has_a_named_problem(cirr, capsys, problem):
    good = [
        write(cirr / "good.json", RECALL | LISTS),
        write(cirr / "subset.json", SUBSET | TRIPLES),
    ]
    assert checked(capsys, cirr, *good)[0] == 0
    code, (fine, report) = checked(
        capsys, cirr, good[0], write(cirr / "bad.json", BAD_CIRR[problem])
    )
    assert (code, fine["problems"]) == (1, [])
    assert [(row["problem"], row["count"], len(row["examples"])) for row in report["problems"]] == [
        (problem, 1, 1)
    ]


def test_the_header_may_be_sorted_behind_the_queries(cirr, capsys):
    file = write(cirr / "sorted.json", json.dumps(RECALL | LISTS, sort_keys=True))
    assert checked(capsys, cirr, file)[0] == 0


def test_a_cirr_file_without_its_header_is_no_circo_file(cirr, capsys):
    code, (report,) = checked(capsys, cirr, write(cirr / "bare.json", TRIPLES))
    assert (code, report["benchmark"], report["kind"]) == (1, "cirr", "recall_subset")
    assert [row["problem"] for row in report["problems"]] == ["wrong_version", "wrong_metric"]


def test_a_file_that_the_server_refuses_for_its_size(cirr, capsys):
    file = write(cirr / "big.json", json.dumps(RECALL | LISTS) + " " * submission_check.MAX_BYTES)
    code, (report,) = checked(capsys, cirr, file)
    assert (code, [row["problem"] for row in report["problems"]]) == (1, ["too_big"])


IDS = {str(n): list(range(1, 51)) for n in range(3)}
BAD_CIRCO = {
    "missing_query": {"0": IDS["0"]},
    "unknown_query": IDS | {"03": IDS["0"]},
    "wrong_count": IDS | {"1": list(range(1, 52))},
    "duplicate_image": IDS | {"1": [*range(1, 50), "000000000001"]},
    "not_in_gallery": IDS | {"1": [*range(1, 50), 81]},
    "wrong_image": IDS | {"1": [*range(1, 50), 1.5]},
    "wrong_form": IDS | {"1": {"0": 1}},
}


@pytest.mark.parametrize("problem", BAD_CIRCO)
def test_a_bad_circo_file_has_a_named_problem(circo, capsys, problem):
    strings = {query: [str(image) for image in images] for query, images in IDS.items()}
    assert (
        checked(capsys, circo, write(circo / "good.json", IDS), write(circo / "s.json", strings))[0]
        == 0
    )
    code, (report,) = checked(capsys, circo, write(circo / "bad.json", BAD_CIRCO[problem]))
    count = 2 if problem == "missing_query" else 1
    assert (code, report["benchmark"]) == (1, "circo")
    assert [(row["problem"], row["count"]) for row in report["problems"]] == [(problem, count)]


def test_the_split_of_a_circo_file_is_told_by_its_queries(circo, capsys):
    code, (report,) = checked(
        capsys, circo, write(circo / "val.json", {key: IDS[key] for key in ("0", "1")})
    )
    assert (code, report["split"]) == (0, "val")


def test_a_file_of_a_val_split_with_more_queries_than_test_is_told_too(circo, capsys):
    queries = json.loads((circo / "annotations" / "val.json").read_text())
    queries = [queries[0] | {"id": number} for number in range(4)]
    write(circo / "annotations" / "val.json", queries)
    code, (report,) = checked(
        capsys, circo, write(circo / "val.json", {str(n): IDS["0"] for n in range(4)})
    )
    assert (code, report["split"]) == (0, "val")


def test_a_file_of_exactly_the_servers_limit_is_valid(cirr, capsys, monkeypatch):
    file = write(cirr / "exact.json", json.dumps(RECALL | LISTS))
    monkeypatch.setattr(submission_check, "MAX_BYTES", file.stat().st_size)
    assert checked(capsys, cirr, file)[0] == 0
    monkeypatch.setattr(submission_check, "MAX_BYTES", file.stat().st_size - 1)
    assert checked(capsys, cirr, file)[0] == 1


def test_one_bad_file_of_two_is_a_failure(circo, capsys):
    good, bad = write(circo / "good.json", IDS), write(circo / "bad.json", {"0": IDS["0"]})
    assert checked(capsys, circo, good, bad)[0] == checked(capsys, circo, bad, good)[0] == 1


def test_what_was_written_but_is_not_valid_is_a_failure(cirr, capsys, monkeypatch):
    monkeypatch.setattr(submission_check, "MAX_BYTES", 100)
    code, facts, _ = submitted(capsys, cirr, "cirr", "test1", full())
    assert (code, facts["problems"]) == (1, 2)


def test_without_the_gallery_that_much_is_not_checked(circo, capsys):
    (circo / "coco2017_unlabeled_ids.txt").unlink()
    code, (report,) = checked(
        capsys, circo, write(circo / "x.json", IDS | {"1": [*range(1, 50), 10**9]})
    )
    assert (code, report["problems"]) == (0, [])
    assert "the list of the gallery is not there" in report["notes"][0]


HOSTILE = {
    "empty": ("", "unreadable"),
    "truncated": ('{"0": [1, 2', "unreadable"),
    "NaN": ('{"0": [NaN]}', "unreadable"),
    "deep": ("[" * 100_000, "unreadable"),
    "bytes": ("\ufeff{}\x00", "unreadable"),
    "a list": ("[1, 2]", "wrong_form"),
    "null": ("null", "wrong_form"),
    "no queries": ("{}", "missing_query"),
    "null lists": ('{"0": null, "1": null, "2": null}', "wrong_form"),
    "huge numbers": ('{"0": [1e400]}', "unreadable"),
    "booleans": (json.dumps(IDS | {"2": [True] * 50}), "wrong_image"),
    "nested lists": (json.dumps(IDS | {"2": [[1]] * 50}), "wrong_image"),
}


@pytest.mark.parametrize(("content", "problem"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_ends_in_a_named_problem(circo, capsys, content, problem):
    code, (report,) = checked(capsys, circo, write(circo / "x.json", content))
    assert code == 1
    assert report["problems"][0]["problem"] == problem


def test_the_list_for_a_reader(circo, capsys):
    good, bad = write(circo / "good.json", IDS), write(circo / "bad.json", {"0": IDS["0"]})
    assert check_submission.main([str(good), str(bad), "--root", str(circo)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{good}: circo test, 3 queries: valid"
    assert lines[1:] == [
        f"{bad}: circo test, 1 queries: INVALID",
        "  missing_query: 2",
        "      query 1 has no list",
        "      query 2 has no list",
    ]


def test_a_file_that_is_not_there_is_unusable(circo, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.run(check_submission.main, [str(circo / "absent.json"), "--root", str(circo)])
    assert exit.value.code == 2
    assert "absent.json: no such file" in capsys.readouterr().err


# ---- the official files


def test_the_official_examples_of_circo_pass(shared_data, capsys):
    files = sorted((shared_data / "circo" / "submission_examples").iterdir())
    code, reports = checked(capsys, shared_data, *files)  # a folder above both benchmarks will do
    assert (code, [report["split"] for report in reports]) == (0, ["test", "val"])
    assert [(report["queries"], report["notes"]) for report in reports] == [(800, []), (220, [])]


def test_a_cirr_submission_of_full_size_is_valid(shared_data, tmp_path, capsys):
    """All 4,148 queries over the 2,315 pictures of test1: as large as the official example, below the 5 MB allowed."""
    root = shared_data / "cirr"
    (benchmark,) = load_benchmark("cirr", root, "test1")
    rankings = {
        record.id: [*record.subset, *benchmark.gallery[:60]] for record in benchmark.records
    }
    rankings = {query: list(dict.fromkeys(images)) for query, images in rankings.items()}
    argv = [
        "--benchmark",
        "cirr",
        "--root",
        str(root),
        "--split",
        "test1",
        "--out",
        str(tmp_path),
        "--json",
    ]
    assert submit.main([*argv, "--rankings", str(write(tmp_path / "r.json", rankings))]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == 0
    recall = (tmp_path / "cirr.test1.recall.json").read_text()
    assert len(json.loads(recall)) == 4150
    assert 3_900_000 < len(recall) < submission_check.MAX_BYTES
