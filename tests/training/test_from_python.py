"""Training in a call: rows as people have them in Python, their pictures, and what is refused."""

import io
import json
import pickle
from pathlib import Path

import pytest
import tiny_training
import torch
from PIL import Image

from cir_cot import load_retriever, train
from cir_cot.errors import InputError
from cir_cot.images import list_pictures
from cir_cot.records import Cot, Record
from cir_cot.scripts.train import sft
from cir_cot.training.given_rows import GivenPictures, given_rows

LOAD = tiny_training.Pictures().load
SHORT = {"max_steps": 2, "per_device_train_batch_size": 4, "lora_r": 4, "report_to": "none",
         "disable_tqdm": True, "save_strategy": "no"}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_training.tiny_head(lora=False).backbone.save(folder)
    return folder


def rows(count=8) -> list[dict]:
    found = []
    for record in tiny_training.records(count):
        row = {
            "reference": LOAD(record.reference),
            "text": record.text,
            "target": LOAD(record.targets[0]),
        }
        found.append(row | {"id": record.id, "cot": record.cot})
    return found


def encoded(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


# ---- rows


def test_equal_pictures_share_an_id_and_different_ones_do_not():
    found, pictures = given_rows(rows())
    expected = tiny_training.records(8)
    for record, wanted in zip(found, expected, strict=True):
        assert (record.id, record.text, record.cot) == (wanted.id, wanted.text, wanted.cot)
        assert pictures.load(record.reference).tobytes() == LOAD(wanted.reference).tobytes()
        assert pictures.load(record.targets[0]).tobytes() == LOAD(wanted.targets[0]).tobytes()
    names = {record.reference for record in found} | {record.targets[0] for record in found}
    assert len(names) == len({n for r in expected for n in (r.reference, *r.targets)})


def test_pictures_are_taken_as_pictures_paths_or_bytes(tmp_path):
    picture = LOAD("red-blue")
    picture.save(tmp_path / "a.png")
    (tmp_path / "x").mkdir()
    raw = encoded(picture)
    forms = [picture, tmp_path / "a.png", str(tmp_path / "x" / ".." / "a.png"), {"bytes": raw, "path": None},
             {"bytes": None, "path": str(tmp_path / "a.png")}]  # fmt: skip
    given = [{"reference": form, "text": "x", "target": LOAD("green-red")} for form in forms]
    found, pictures = given_rows(given)
    for record in found:
        assert pictures.load(record.reference).tobytes() == picture.tobytes()
        assert len(pictures.fingerprint(record.reference)) == 32
    # A file has one id, however it is named.
    assert len({record.reference for record in found}) == 3
    assert pickle.loads(pickle.dumps(pictures)).load(found[0].reference).size == picture.size
    transparent = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    found, pictures = given_rows([{"reference": transparent, "text": "x", "target": picture}])
    assert pictures.load(found[0].reference).getpixel((0, 0)) == (255, 255, 255)


def test_a_dataset_keeps_its_pictures_encoded():
    datasets = pytest.importorskip("datasets")
    columns = {
        "reference": [
            {"bytes": encoded(LOAD(name)), "path": None} for name in ("red-blue", "red-blue")
        ],
        "target": [
            {"bytes": encoded(LOAD(name)), "path": None} for name in ("green-red", "blue-red")
        ],
        "text": ["one", "two"],
        "caption": ["a", ""],
        "reasoning": ["b", ""],
        "conclusion": ["c", ""],
    }
    picture = datasets.Image()
    text = datasets.Value("string")
    features = {"reference": picture, "target": picture, "text": text}
    features |= dict.fromkeys(("caption", "reasoning", "conclusion"), text)
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    found, pictures = given_rows(table)
    assert [record.cot for record in found] == [Cot("a", "b", "c"), None]
    assert found[0].reference == found[1].reference
    assert all(isinstance(held, bytes) for held in pictures.found.values())
    assert pictures.load(found[1].targets[0]).tobytes() == LOAD("blue-red").tobytes()


def test_ids_of_a_folder_need_its_pictures(tmp_path):
    records = tiny_training.records(4)
    tiny_training.write_dataset(tmp_path / "data", records)
    store = list_pictures(tmp_path / "data" / "images")
    as_rows = [{"reference": r.reference, "text": r.text, "targets": r.targets} for r in records]
    for images in (store, tmp_path / "data" / "images"):
        for given in (records, as_rows):
            found, held = given_rows(given, images)
            assert [record.reference for record in found] == [r.reference for r in records]
            assert held.load(found[0].reference).size == LOAD(records[0].reference).size
    with pytest.raises(InputError, match="row 0: a record names pictures by their ids"):
        given_rows(records)
    with pytest.raises(InputError, match="'elsewhere' is unknown"):
        given_rows([Record("1", "elsewhere", "x", ("red-blue",))], store)


PICTURE = Image.new("RGB", (40, 40))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"reference": PICTURE, "text": "x"}, "row 0: no target"),
        ({"target": PICTURE, "text": "x"}, "row 0: no reference"),
        ({"reference": PICTURE, "target": PICTURE}, "row 0: 'text' must be a string, got None"),
        ({"reference": PICTURE, "target": PICTURE, "text": "x", "label": 1}, "'label' is no column"),
        ({"reference": 7, "target": PICTURE, "text": "x"}, "row 0: reference: neither a picture nor"),
        ({"reference": "no/such.png", "target": PICTURE, "text": "x"}, "reference: no file 'no/such.png'"),
        ({"reference": Image.new("RGB", (4000, 3)), "target": PICTURE, "text": "x"}, "4000 x 3 pixels"),
        ({"reference": PICTURE, "target": [], "text": "x"}, "row 0: no target"),
        ({"reference": PICTURE, "target": PICTURE, "text": "x", "cot": "why"}, "'caption' must be a string"),
        (("a", "b"), "row 0: neither a record nor a mapping"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_used_is_named(row, said):
    with pytest.raises(InputError, match=said):
        given_rows([row])


def test_ids_that_occur_twice_and_no_rows_are_refused():
    row = {"reference": PICTURE, "target": LOAD("red-blue"), "text": "x", "id": "a"}
    with pytest.raises(InputError, match="row 1: id 'a' is that of row 0, too"):
        given_rows([row, row])
    with pytest.raises(InputError, match="no rows to train on"):
        given_rows([])


def test_bytes_are_decoded_within_the_limits_of_files():
    pictures = GivenPictures()
    name = pictures.add({"bytes": encoded(Image.new("RGB", (4000, 3)))}, "row 0")
    with pytest.raises(InputError, match="4000 x 3 pixels"):
        pictures.load(name)


# ---- training


def test_a_call_trains_what_the_recipe_trains_on_files(base, tmp_path):
    records = tiny_training.records(8)
    tiny_training.write_dataset(tmp_path / "data", records)
    words = []
    for name, value in SHORT.items():
        words += [f"--{name}", str(value)]
    paths = ["--model", base, "--root", tmp_path / "data", "--output_dir", tmp_path / "recipe"]
    assert sft.main([*map(str, paths), *words]) == 0
    trained = train(records, base, tmp_path / "call", images=tmp_path / "data" / "images", **SHORT)
    recipe = load_retriever(tmp_path / "recipe", device="cpu")
    again = load_retriever(tmp_path / "call", device="cpu")
    pictures = [LOAD("red-blue"), LOAD("green-red")]
    expected = recipe.encode_target(pictures)
    assert not trained.training
    assert torch.equal(again.encode_target(pictures), expected)
    torch.testing.assert_close(trained.encode_target(pictures), expected)
    run = json.loads((tmp_path / "call" / "run.json").read_text())
    assert run["argv"][0] == "cir_cot.train"
    assert (tmp_path / "call" / "README.md").is_file()


def test_pictures_in_memory_are_trained_on(base, tmp_path):
    given = [{**row, "cot": None} for row in rows()]
    with pytest.raises(InputError, match="no record has a chain; give rows a cot, or lm_weight=0"):
        train(given, base, tmp_path / "run", **SHORT)
    trained = train(given, base, tmp_path / "run", lm_weight=0, dataloader_num_workers=1, **SHORT)
    assert trained.encode_query(LOAD("red-blue"), "make it red", "fast").embeddings.shape[0] == 1
    with pytest.raises(InputError, match="holds a trained retriever"):
        train(given, base, tmp_path / "run", lm_weight=0, **SHORT)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_step": 2}, "unknown argument 'max_step'.*max_steps"),
        ({"benchmark": "cirr"}, "benchmark: is for datasets in files"),
        ({"lora_r": 4, "temperature": 7.0}, "temperature 7.0 is outside"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_an_argument_that_cannot_be_used_is_named(base, tmp_path, options, said):
    with pytest.raises(InputError, match=said):
        train(rows(), base, tmp_path / "run", **SHORT | options)
    assert not (tmp_path / "run").exists()
