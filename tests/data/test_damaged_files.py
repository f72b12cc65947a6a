"""Annotation and rankings files of every benchmark, damaged in every place: one line each, never a traceback."""

import contextlib
import copy
import gzip
import io
import json

import pytest

from cir_cot import cli
from cir_cot.data import load_benchmark
from cir_cot.data.annotation_files import read_names
from cir_cot.data.rankings import read_rankings
from cir_cot.data.scoring import score_rankings
from cir_cot.data.submission_check import check_submission as check_file
from cir_cot.errors import InputError
from cir_cot.scripts.data_gen import check
from cir_cot.scripts.eval import check_submission, score, submit

NAMES = [f"test1-{number}" for number in range(60)]
COT = {"caption": "a", "reasoning": "b", "conclusion": "c"}
VALUES = [
    None,
    True,
    -1,
    1.5,
    10**19,
    1e308,
    "",
    "\0",
    "\udc80",
    "x" * 5000,
    "../x",
    [],
    {"a": None},
    [[]],
]
RAW = [
    b"",
    b"\0",
    b"\xff\xfe",
    b"[",
    b"NaN",
    b"{}",
    b"[]",
    b"null",
    b"1e999",
    b"9" * 5000,
    b"[" * 5000,
    b'{"a":1,"a":1}',
]


def cirr(split):
    queries = [
        {
            "pairid": 100 + n,
            "reference": NAMES[n],
            "caption": "c",
            "img_set": {"members": NAMES[n : n + 6]},
        }
        for n in range(2)
    ]
    if split == "val":
        for n, query in enumerate(queries):
            query |= {"target_hard": NAMES[n + 1], "target_soft": {NAMES[n + 1]: 1.0}}
    return {
        f"captions/cap.rc2.{split}.json": queries,
        f"image_splits/split.rc2.{split}.json": {name: f"./dev/{name}.png" for name in NAMES},
        "rankings.json": {
            str(100 + n): [name for name in NAMES if name != NAMES[n]] for n in range(2)
        },
    }


def circo(split):
    queries = [
        {"id": n, "reference_img_id": n, "relative_caption": "x", "shared_concept": "y"}
        for n in range(2)
    ]
    if split == "val":
        for query in queries:
            query |= {"target_img_id": 5, "gt_img_ids": [5, 6], "semantic_aspects": ["a"]}
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(60)]
    return {
        f"annotations/{split}.json": queries,
        "annotations/image_info_unlabeled2017.json": {"images": images},
        "rankings.json": {str(n): list(range(60)) for n in range(2)},
    }


def fashioniq(split):
    files = {"rankings.json": {"0": NAMES}}
    for category in ("dress", "shirt", "toptee"):
        pair = {"candidate": NAMES[0], "target": NAMES[1], "captions": ["a", "b"]}
        files |= {
            f"captions/cap.{category}.{split}.json": [pair],
            f"image_splits/split.{category}.{split}.json": NAMES,
        }
    return files


def genecis(split):
    boxes = [{"image_id": str(n), "instance_bbox": [1, 2, 3.5, 4]} for n in range(12)]
    whole = [{"val_image_id": n} for n in range(12)]
    files = {"rankings.json": {"0": [f"{n}_1_2_3.5_4" for n in range(1, 12)]}}
    for task, some in (
        ("focus_attribute", boxes),
        ("change_attribute", boxes),
        ("focus_object", whole),
    ):
        files[f"{task}.json"] = [
            {"condition": "c", "reference": some[0], "target": some[1], "gallery": some[2:]}
        ]
    return files | {"change_object.json": files["focus_object.json"]}


def folder(split):
    record = {
        "id": "0",
        "reference": NAMES[0],
        "text": "t",
        "targets": [NAMES[1]],
        "cot": COT,
        "teacher": {"a": 1},
    }
    return {
        f"records.{split}.jsonl": record,
        f"gallery.{split}.json": NAMES,
        "rankings.json": {"0": NAMES[1:]},
    }


CASES = {
    "cirr val": (cirr, "val", (score, check)),
    "cirr test1": (cirr, "test1", (submit, check_submission)),
    "circo val": (circo, "val", (score, check)),
    "circo test": (circo, "test", (submit, check_submission)),
    "fashioniq val": (fashioniq, "val", (score, check)),
    "genecis val": (genecis, "val", (score, check)),
    "folder val": (folder, "val", (score, check)),
}


def arguments(command, root, benchmark, split):
    if command is check_submission:
        return [root / "rankings.json", "--root", root]
    argv = ["--benchmark", benchmark, "--root", root, "--split", split]
    if command is not check:
        argv += ["--rankings", root / "rankings.json"]
    if command is score and benchmark in ("fashioniq", "genecis"):
        argv += ["--category", {"fashioniq": "dress", "genecis": "focus_attribute"}[benchmark]]
    return [*argv, "--out", root / "out", "--overwrite"] if command is submit else argv


def places(value, path=()):
    """Paths to every value, of long lists to the first one's."""
    yield path
    if isinstance(value, dict):
        for key in list(value)[:8]:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))


def damaged(content):
    """Bytes of JSON with another value in each place, or none, and bytes that are no JSON at all."""
    for path in places(content):
        for value in VALUES:
            broken = copy.deepcopy([content])
            at = broken
            for key in (0, *path)[:-1]:
                at = at[key]
            at[(0, *path)[-1]] = value
            yield json.dumps(broken[0]).encode()
        if path:
            broken = copy.deepcopy(content)
            at = broken
            for key in path[:-1]:
                at = at[key]
            del at[path[-1]]
            yield json.dumps(broken).encode()
    whole = json.dumps(content).encode()
    yield from (
        *RAW,
        whole[:-9],
        whole * 2,
        whole.replace(b'"', b"'"),
        b"\xef\xbb\xbf" + whole,
        gzip.compress(whole),
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_files_damaged_in_every_place_end_in_one_line_or_are_read(tmp_path, case):
    """About 6,000 damaged files over all benchmarks."""
    make, split, commands = CASES[case]
    files = make(split)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    if make is folder:
        (tmp_path / f"gallery.{split}.txt").write_text("\n".join(NAMES))
    for name, content in files.items():
        for raw in damaged(content):
            (tmp_path / name).write_bytes(raw)
            for command in commands:
                argv = [str(word) for word in arguments(command, tmp_path, make.__name__, split)]
                out, err = io.StringIO(), io.StringIO()
                with (
                    contextlib.redirect_stdout(out),
                    contextlib.redirect_stderr(err),
                    pytest.raises(SystemExit) as exit,
                ):
                    cli.run(command.main, argv)
                assert exit.value.code in (0, 1, 2), (name, raw)
                if exit.value.code == 2:
                    assert err.getvalue().startswith("error: "), (name, raw)
                    assert err.getvalue().count("\n") == 1, (name, raw)
                    assert len(err.getvalue()) < 2000, (name, raw)
                assert (out.getvalue() + err.getvalue()).encode()
        (tmp_path / name).write_text(json.dumps(content))


def damaged_circo(root, **query):
    content = circo("val")["annotations/val.json"]
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / "val.json").write_text(json.dumps([content[0] | query]))
    return load_benchmark("circo", root, "val")


def test_a_bool_is_no_number(tmp_path):
    with pytest.raises(InputError, match="'reference_img_id' must be int, got True"):
        damaged_circo(tmp_path, reference_img_id=True)


def test_captions_of_annotation_files_are_bounded(tmp_path):
    assert damaged_circo(tmp_path, relative_caption="x" * 4000)
    with pytest.raises(
        InputError,
        match=r"entry 0: 'relative_caption' has 4001 characters, more than the 4000 allowed",
    ):
        damaged_circo(tmp_path, relative_caption="x" * 4001)


# ---- time linear in the number of ids

MANY = 123_403  # as many as CIRCO has; a search that is quadratic in them takes minutes


@pytest.fixture(scope="module")
def many():
    return [str(number) for number in range(MANY)]


@pytest.mark.parametrize("suffix", ["txt", "json"])
def test_an_image_listed_twice_among_many_is_found(tmp_path, many, suffix):
    path = tmp_path / f"gallery.{suffix}"
    path.write_text(
        "\n".join([*many, many[-1]]) if suffix == "txt" else json.dumps([*many, many[-1]])
    )
    with pytest.raises(InputError, match=f"image '{MANY - 1}' is listed twice"):
        read_names(path)


@pytest.fixture(scope="module")
def large(tmp_path_factory, many):
    """CIRCO's test split with one query and many pictures."""
    root = tmp_path_factory.mktemp("circo")
    (root / "annotations").mkdir()
    query = {"id": 0, "reference_img_id": 0, "relative_caption": "x", "shared_concept": "y"}
    query |= {"target_img_id": 5, "gt_img_ids": [5, 6], "semantic_aspects": ["a"]}
    for split in ("val", "test"):
        (root / "annotations" / f"{split}.json").write_text(json.dumps([query]))
    (root / "coco2017_unlabeled_ids.txt").write_text("\n".join(many))
    return root


def test_an_image_ranked_twice_among_many_is_found(large, many):
    (large / "twice.json").write_text(json.dumps({"0": [*many, many[-1]]}))
    (benchmark,) = load_benchmark("circo", large, "val")
    with pytest.raises(InputError, match=f"ranks image '{MANY - 1}' twice"):
        score_rankings(benchmark, read_rankings(large / "twice.json", benchmark))


def test_an_image_submitted_twice_among_many_is_found(large, many):
    (large / "twice.json").write_text(json.dumps({"0": [*many, many[-1]]}))
    problems = check_file(large / "twice.json", large).problems
    assert [problem.name for problem in problems] == ["wrong_count", "duplicate_image"]
    assert f"'{MANY - 1}' occurs twice" in problems[1].what


def test_many_unknown_queries_are_counted(large, many):
    (large / "many.json").write_text(json.dumps(dict.fromkeys(many, [])))
    (benchmark,) = load_benchmark("circo", large, "val")
    with pytest.raises(InputError, match=rf"unknown query id '1' \({MANY - 1} unknown\)"):
        score_rankings(benchmark, read_rankings(large / "many.json", benchmark))
