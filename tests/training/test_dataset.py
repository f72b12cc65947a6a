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


def test_a_row_with_a_chain_keeps_the_text_that_the_chain_is_about(tmp_path):
    pairs = [("b", ["is red", "long"]), ("c", ["is blue", "short"])]
    entries = [{"candidate": "a", "target": target, "captions": texts} for target, texts in pairs]
    dump(tmp_path / "captions/cap.dress.train.json", entries)
    dump(tmp_path / "image_splits/split.dress.train.json", ["a", "b", "c"])
    for name in "abc":
        draw(tmp_path / "images" / f"{name}.png")
    chain = {"reference": "a", "target": "b", "caption": "x", "reasoning": "y", "conclusion": "z"}
    (tmp_path / "chains.jsonl").write_text(json.dumps(chain))
    args = arguments(tmp_path, benchmark="fashioniq", category="dress")
    dataset, _ = load_rows(args, [str(tmp_path / "chains.jsonl")], vary_captions=True)
    found = [{dataset[row, draw].record.text for draw in range(20)} for row in (0, 1)]
    assert [len(texts) for texts in found] == [1, 4]


def mixture(tmp_path, *mix, clash=False):
    """Two datasets of 6 and 4 rows; the names of the second's pictures differ from the first's unless they clash."""
    write_dataset(tmp_path / "one", records(6))
    other = []
    for record in records(4):
        names = [record.reference, *record.targets]
        if not clash:
            names = [name.upper() for name in names]  # the same colours, other names
        other.append(
            Record(f"other-{record.id}", names[0], record.text, tuple(names[1:]), record.cot)
        )
    write_dataset(tmp_path / "two", other)
    return arguments(tmp_path / "one", mix=[entry.format(two=tmp_path / "two") for entry in mix])


def test_datasets_are_mixed_by_weight(tmp_path):
    dataset, _ = load_rows(mixture(tmp_path, "folder:0.5:{two}"))
    assert [(list(share.rows), share.taken) for share in dataset.shares] == [
        (list(range(6)), 6),
        (list(range(6, 10)), 2),
    ]
    assert dataset[6, 0].record.id == "other-0"
    assert dataset[6, 0].target.size == dataset[0, 0].target.size
    assert load_rows(arguments(tmp_path / "one"))[0].shares == ()


def test_rows_that_are_left_out_count_in_no_share(tmp_path):
    args = mixture(tmp_path, "folder:2:{two}")
    gone = load_rows(args)[0].records[0].targets[0]
    (tmp_path / "one/images" / f"{gone}.png").unlink()
    args.drop_missing = True
    dataset, _ = load_rows(args)
    first, second = dataset.shares
    assert len(first.rows) < 6
    assert second.rows == range(first.rows.stop, len(dataset))
    assert (first.taken, second.taken) == (len(first.rows), 8)
    assert all(dataset.records[row].id.startswith("other") for row in second.rows)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("folder:{two}", "is not KIND:WEIGHT:DIR"),
        ("folder:0:{two}", "a weight above 0"),
        ("folder:nan:{two}", "a weight above 0"),
        ("folder:2000:{two}", "at most 1000"),
        ("folder:0.1:{two}", "weight 0.1 of 4 rows leaves none"),
        ("dresses:1:{two}", "'dresses'"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(tmp_path, entry, message):
    with pytest.raises(InputError, match=message):
        load_rows(mixture(tmp_path, entry))


def test_two_pictures_of_one_name_are_refused(tmp_path):
    with pytest.raises(InputError, match="one would stand for the other"):
        load_rows(mixture(tmp_path, "folder:1:{two}", clash=True))
    # The same folder twice has one picture of each name.
    args = arguments(tmp_path / "one")
    args.mix = [f"folder:1:{tmp_path / 'one'}"]
    assert len(load_rows(args)[0]) == 12


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
