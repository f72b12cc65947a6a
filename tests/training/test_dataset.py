"""The rows of a recipe: what is left out, what is refused before training, whose captions are drawn."""

import json

import pytest
from dataset_files import draw, dump
from tiny_training import records, write_dataset

from cir_cot.errors import InputError
from cir_cot.records import Record, write_records
from cir_cot.training.arguments import ClipArguments, DataArguments
from cir_cot.training.dataset import load_rows, texts_of, used


def arguments(root, kind=DataArguments, **options):
    return kind(
        output_dir=str(root / "out"), report_to="none", model="x", root=str(root), **options
    )


def test_training_needs_references_and_first_targets_alone():
    assert used([Record("q", "a", "x", ("b", "c")), Record("p", "b", "y", ())]) == ["a", "b", "b"]


def test_rows_without_their_reference_or_target_are_left_out_when_asked_and_named_when_not(
    tmp_path,
):
    write_dataset(tmp_path, [])
    rows = [
        Record("0", "a", "t", ("b",)),
        Record("1", "a", "t", ("gone",)),
        Record("2", "gone", "t", ("a",)),
    ]
    for name in "ab":
        draw(tmp_path / "images" / f"{name}.png")
    write_records(tmp_path / "records.train.jsonl", [*rows, Record("3", "b", "t", ("a", "gone"))])
    (tmp_path / "gallery.train.txt").write_text("a\nb\ngone\n")
    with pytest.raises(InputError, match="gone"):
        load_rows(arguments(tmp_path))
    dataset, words = load_rows(arguments(tmp_path, drop_missing=True))
    assert [record.id for record in dataset.records] == ["0", "3"]
    assert words == "2 of 4 rows left out: 1 pictures are missing"
    assert dataset[1, 0].target.size == (8, 6)


def test_a_row_keeps_its_own_captions_when_others_are_left_out(tmp_path):
    pairs = [("gone", ["is red", "long"]), ("b", ["is blue", "short"])]
    entries = [{"candidate": "a", "target": target, "captions": texts} for target, texts in pairs]
    dump(tmp_path / "captions/cap.dress.train.json", entries)
    dump(tmp_path / "image_splits/split.dress.train.json", ["a", "b", "gone"])
    for name in "ab":
        draw(tmp_path / "images" / f"{name}.png")
    options = {"benchmark": "fashioniq", "category": "dress", "drop_missing": True}
    dataset, _ = load_rows(arguments(tmp_path, **options), vary_captions=True)
    assert [record.id for record in dataset.records] == ["1"]
    assert texts_of(dataset) == ["Is blue and short", "Short and is blue", "Is blue", "Short"]
    assert {dataset[0, draw].record.text for draw in range(20)} == set(texts_of(dataset))
    assert texts_of(load_rows(arguments(tmp_path, **options))[0]) == ["Is blue and short"]


def test_a_query_without_target_is_refused_before_training(tmp_path):
    write_dataset(tmp_path, records(2))
    lines = (tmp_path / "records.train.jsonl").read_text().splitlines()
    bare = json.dumps(json.loads(lines[1]) | {"targets": []})
    (tmp_path / "records.train.jsonl").write_text(f"{lines[0]}\n{bare}\n")
    with pytest.raises(InputError, match="query '1' of train has no target"):
        load_rows(arguments(tmp_path))


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_above_nothing(tmp_path, temperature):
    with pytest.raises(InputError, match="is not above 0"):
        arguments(tmp_path, ClipArguments, temperature=temperature)
    assert arguments(tmp_path, ClipArguments).aux_weights() == {}
