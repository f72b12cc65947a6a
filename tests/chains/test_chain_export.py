"""Chains in other trainers' forms: exact shapes, what is left out and why, and that everything comes back."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import datasets
import pytest
import yaml
from PIL import Image

from cir_cot import cli
from cir_cot.chains.card import card
from cir_cot.chains.filters import FILTERS
from cir_cot.data.chain_files import attach_chains
from cir_cot.errors import InputError
from cir_cot.prompts import query_prompt, text_to_cot
from cir_cot.records import RECORD_KEYS, Cot, Record, record_from_dict, write_records
from cir_cot.scripts.data_gen import export_chains

REASONING = "The shape and the length are kept, the print is gone, the colour becomes plain red, with a belt added."


def record(index, **values):
    cot = Cot("A blue dress.", REASONING, f"A red dress with belt {index}.")
    facts = {"model": "m", "prompts": "1", "seen_target": True, "key": "k"}
    own = {
        "id": str(index),
        "reference": "r0",
        "text": "is red",
        "targets": ("t0", "t1"),
        "cot": cot,
        "teacher": facts,
    }
    return Record(**own | {"source": "own/train"} | values)


@pytest.fixture
def own(tmp_path):
    """A folder dataset whose pictures have several extensions."""
    root = tmp_path / "own"
    (root / "images").mkdir(parents=True)
    for name in ("r0.png", "t0.jpg", "t1.webp"):
        Image.new("RGB", (6, 6)).save(root / "images" / name)
    (root / "gallery.train.txt").write_text("t0\nt1\n")
    return root


def export(root, form, capsys, *more, records=None, name="out"):
    """(the printed facts, folder) of an export of `records`."""
    if records is not None:
        write_records(root / "records.train.jsonl", records)
    out = root.parent / name
    argv = [
        "--benchmark",
        "folder",
        "--root",
        str(root),
        "--split",
        "train",
        "--format",
        form,
        "--out",
        str(out),
    ]
    assert export_chains.main([*argv, "--json", *map(str, more)]) == 0
    return json.loads(capsys.readouterr().out), out


def test_llava(own, capsys):
    facts, out = export(own, "llava", capsys, records=[record(0), record(1, source="")])
    assert facts == {
        "file": str(out / "train.json"),
        "format": "llava",
        "chains": 2,
        "left_out": {},
    }
    first, second = json.loads((out / "train.json").read_text())
    asked = {"from": "human", "value": "<image>\n" + query_prompt("is red")}
    answer = (
        f"<caption>A blue dress.</caption><reasoning>{REASONING}</reasoning>"
        "<conclusion>A red dress with belt 0.</conclusion>"
    )
    turns = [asked, {"from": "gpt", "value": answer}]
    assert first == {"id": "own/train/0", "image": "images/r0.png", "conversations": turns}
    assert text_to_cot(second["conversations"][1]["value"]) == record(1).cot
    assert second["id"] == "1"


def test_sharegpt(own, capsys):
    _, out = export(own, "sharegpt", capsys, records=[record(0)])
    (row,) = json.loads((out / "train.json").read_text())
    assert set(row) == {"conversations", "images"}
    assert row["images"] == ["images/r0.png"]
    assert [turn["from"] for turn in row["conversations"]] == ["human", "gpt"]
    assert row["conversations"][0]["value"].count("<image>") == len(row["images"])
    columns = {"messages": "conversations", "images": "images"}
    index = json.loads((out / "dataset_info.json").read_text())
    assert index == {
        "cir_cot_folder_train": {
            "file_name": "train.json",
            "formatting": "sharegpt",
            "columns": columns,
        }
    }


def load(folder, cache):
    return datasets.load_dataset(str(folder), cache_dir=str(cache))


def test_the_datasets_folder_gives_the_records_back(own, capsys, tmp_path):
    texts = ("is red", "größer, “plain” red 你好", "is red\nand\tshort {text}")
    records = [record(n, text=text) for n, text in enumerate(texts)]
    records += [record(8, targets=("t1",), teacher=None, subset=("r0", "t1"), source="")]
    _, out = export(own, "datasets", capsys, records=records)
    loaded = load(out, tmp_path / "cache")
    assert list(loaded) == ["train"]
    rows = list(loaded["train"])
    assert [row["reference_image"] for row in rows] == ["images/r0.png"] * 4
    assert rows[0]["target_images"] == ["images/t0.jpg", "images/t1.webp"]
    for row, expected in zip(rows, records, strict=True):
        fields = {key: row[key] for key in RECORD_KEYS}
        fields["teacher"] = json.loads(row["teacher"]) if row["teacher"] else None
        assert record_from_dict(fields, "row") == expected


def test_a_column_of_empty_lists_keeps_its_type(own, capsys, tmp_path):
    _, out = export(own, "datasets", capsys, records=[record(0, teacher=None, source="")])
    features = load(out, tmp_path / "cache")["train"].features
    assert features["subset"] == datasets.List(datasets.Value("string"))
    assert features["teacher"] == datasets.Value("string")


@pytest.mark.parametrize("form", ["datasets", "llava", "sharegpt"])
def test_the_card_states_teacher_filters_licences_and_counts(own, capsys, form):
    hostile = {"model": "m`\n# Title <script>|", "prompts": "7", "seen_target": False}
    records = [record(0), record(1), record(2, teacher=hostile), record(3, cot=None)]
    _, out = export(own, form, capsys, records=records)
    text = (out / "README.md").read_text()
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["license"] == "other"
    assert header["size_categories"] == ["n<1K"]
    (files,) = header["configs"][0]["data_files"]
    assert files["split"] == "train"
    assert (out / files["path"]).is_file()
    assert text.count("\n# ") == 1  # the teacher's name opens no heading
    told = json.loads("\n".join(re.findall(r"^    (.*)", text.split("## ")[1], re.MULTILINE)))
    assert told[0] == {"model": "m", "prompts": "1", "seen_target": True, "chains": 2}
    assert told[1] == hostile | {"chains": 1}
    rows = dict(re.findall(r"^\| (\w+) \|.*\| (\d+) \|$", text, re.MULTILINE))
    assert {one.name for one in FILTERS} <= set(rows)
    assert {name for name, count in rows.items() if count != "0"} == {"no_chain"}
    assert "3 composed queries" in text
    assert "## Licences" in text


@pytest.mark.parametrize(
    ("count", "size"), [(999, "n<1K"), (1000, "1K<n<10K"), (10_000, "10K<n<100K")]
)
def test_the_card_states_the_hubs_kind_of_size(count, size):
    text = card(
        "llava",
        "train.json",
        "train",
        [record(0)] * count,
        {"benchmark": "folder", "split": "train", "left_out": {}},
    )
    assert yaml.safe_load(text.split("---\n")[1])["size_categories"] == [size]


LEFT_OUT = {
    "no_chain": record(1, cot=None),
    "length": record(1, cot=replace(record(1).cot, reasoning="Red.")),
    "tags": record(1, cot=replace(record(1).cot, caption="A dress.<ret>")),
    "verifier": record(1, teacher={"confidence": 0.5}),
    "duplicate": record(1, text="Is RED!", cot=record(0).cot),
    "missing_image": record(1, targets=("t0", "gone")),
    "marker": record(1, text="is red <image>"),
}


@pytest.mark.parametrize("why", LEFT_OUT)
def test_what_is_left_out_is_named(own, capsys, why):
    facts, out = export(own, "llava", capsys, records=[record(0), LEFT_OUT[why]])
    assert facts["left_out"] == {why: 1}
    assert [row["id"] for row in json.loads((out / "train.json").read_text())] == ["own/train/0"]


@pytest.mark.parametrize(
    "marker", ["<IMAGE>", "<video>", "<|im_end|>", "<|vision_start|>", "<ret>", "<img>"]
)
def test_no_text_brings_a_marker_into_a_conversation(own, capsys, marker):
    texts = [
        record(1, text=f"is red {marker}"),
        record(2, cot=replace(record(2).cot, caption=f"A {marker} dress.")),
    ]
    facts, out = export(own, "sharegpt", capsys, records=[record(0), *texts])
    assert sum(facts["left_out"].values()) == 2
    assert marker not in (out / "train.json").read_text().replace("<image>\\nModify", "")


def test_the_same_id_in_two_categories_is_no_duplicate(own, capsys):
    twin = record(1, cot=record(0).cot)
    facts, _ = export(
        own, "llava", capsys, records=[record(0), twin, record(2, source="own/other")]
    )
    assert facts["chains"] == 2
    assert facts["left_out"] == {"duplicate": 1}


def test_the_list_for_a_reader(own, capsys):
    write_records(own / "records.train.jsonl", [record(0), record(1, cot=None)])
    argv = ["--benchmark", "folder", "--root", str(own), "--split", "train", "--format", "llava"]
    assert export_chains.main([*argv, "--out", str(own / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1 chains in ")
    assert lines[1:] == ["left out  no_chain: 1", "          own/train 1: no chain"]


def test_unusable_requests_are_refused(own, capsys):
    write_records(own / "records.train.jsonl", [record(0, cot=None)])
    argv = [
        "--benchmark",
        "folder",
        "--root",
        str(own),
        "--split",
        "train",
        "--format",
        "llava",
        "--out",
    ]
    with pytest.raises(
        InputError, match="no chain is left to export; left out are {'no_chain': 1}"
    ):
        export_chains.main([*argv, str(own / "out")])
    assert not (own / "out").exists()
    write_records(own / "records.train.jsonl", [record(0)])
    with pytest.raises(SystemExit) as exit:
        cli.run(export_chains.main, [*argv, str(own)])
    assert exit.value.code == 2
    assert "is not empty; name a new folder" in capsys.readouterr().err


LIMITED = """
import resource, signal, sys
from cir_cot import cli
from cir_cot.scripts.data_gen import export_chains
import datasets
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
cli.run(export_chains.main, sys.argv[1:])
"""


@pytest.mark.parametrize("form", ["datasets", "llava"])
def test_a_full_disk_is_one_line_and_leaves_no_half_of_a_file(own, tmp_path, form):
    """A limit on the size of files stands for the disk."""
    write_records(own / "records.train.jsonl", [record(0)])
    out = tmp_path / "out"
    argv = [
        "--benchmark",
        "folder",
        "--root",
        str(own),
        "--split",
        "train",
        "--format",
        form,
        "--out",
        str(out),
    ]
    done = subprocess.run([sys.executable, "-c", LIMITED, *argv], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]  # datasets draws a bar before
    assert last.startswith("error: ")
    assert "make room" in last
    assert [path for path in out.rglob("*") if path.is_file()] == []


def test_a_folder_that_cannot_be_made_is_one_line(own, capsys):
    write_records(own / "records.train.jsonl", [record(0)])
    where = ["--benchmark", "folder", "--root", str(own), "--split", "train", "--format", "llava"]
    for out in ("/sys/chains", str(own / ("x" * 300))):  # nobody makes a folder in /sys
        with pytest.raises(SystemExit) as exit:
            cli.run(export_chains.main, [*where, "--out", out])
        assert exit.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_pictures_behind_a_link_out_of_the_folder_are_left_out(own, tmp_path, capsys):
    (own / "images").rename(tmp_path / "elsewhere")
    (own / "images").symlink_to(tmp_path / "elsewhere")
    write_records(own / "records.train.jsonl", [record(0)])
    with pytest.raises(InputError, match="left out are {'missing_image': 1}"):
        export(own, "llava", capsys)


def test_real_chains_go_there_and_back(shared_data, tmp_path, capsys):
    root = shared_data / "wardrobe"
    files = sorted((root / "chains").glob("chains.*.train.jsonl"))
    argv = [
        "--benchmark",
        "fashioniq",
        "--root",
        str(root),
        "--split",
        "train",
        "--chains",
        *map(str, files),
    ]
    assert (
        export_chains.main(
            [*argv, "--format", "datasets", "--out", str(tmp_path / "out"), "--json"]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["chains"] == 24
    rows = load(tmp_path / "out", tmp_path / "cache")["train"]
    assert all(
        (root / path).is_file()
        for row in rows
        for path in (row["reference_image"], *row["target_images"])
    )
    back = [record_from_dict({key: row[key] for key in RECORD_KEYS}, "row") for row in rows]
    for category in ("dress", "shirt", "toptee"):
        some = [one for one in back if one.source == f"fashioniq/{category}/train"]
        original = attach_chains(
            [replace(one, cot=None) for one in some],
            root / "chains" / f"chains.{category}.train.jsonl",
        )
        assert [one.cot for one in some] == [one.cot for one in original]
