"""The examples of docs/python.md run, in one session, on a tiny retriever, a folder of pictures and a small dataset."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from fake_server import Server, good
from tiny_training import COLOURS, Pictures, records, tiny_head, write_dataset

from cir_cot.records import read_records

PAGE = Path(__file__).resolve().parent.parent / "docs" / "python.md"
EXAMPLE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """Names that the page's examples define, after all of them ran in a folder with what the page assumes."""
    folder = tmp_path_factory.mktemp("python_page")
    photos = folder / "photos"
    photos.mkdir()
    for name in ("red-green", "red-blue", "blue-green", "cyan-magenta"):
        Pictures().load(name).save(photos / f"{name}.png")
    dataset = folder / "mydata"
    dataset.mkdir()
    write_dataset(dataset, records(12))
    for file in ("records.{}.jsonl", "gallery.{}.txt"):
        shutil.copy(dataset / file.format("train"), dataset / file.format("val"))
    tiny_head(lora=False, max_new_tokens=24).save(folder / "runs" / "model")

    names: dict = {}
    with pytest.MonkeyPatch.context() as patch, Server(good) as server:
        patch.chdir(folder)
        for number, example in enumerate(EXAMPLE.findall(PAGE.read_text(encoding="utf-8")), 1):
            local = example.replace("http://localhost:8000/v1", server.url)
            exec(compile(local, f"example {number} of {PAGE.name}", "exec"), names)
    return names | {"folder": folder}


def test_the_page_has_examples():
    assert len(EXAMPLE.findall(PAGE.read_text(encoding="utf-8"))) >= 7


def test_every_name_of_the_public_face_is_on_the_page():
    import cir_cot

    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in cir_cot.__all__ if f"`{name}`" not in text] == []


def test_queries_and_pictures_are_encoded_in_one_space(session):
    query = session["query"].embeddings
    assert query.shape == (1, session["retriever"].dim)
    assert session["gallery"].shape == (4, session["retriever"].dim)
    torch.testing.assert_close(query.norm(dim=1), torch.ones(1))
    assert session["best"] in session["names"]


def test_a_supplied_chain_is_the_explanation(session):
    assert "A red picture with a blue bar." in session["edited"].explanations[0]
    assert session["corrected"].explanation == session["edited"].explanations[0]


def test_the_index_holds_the_folder_and_answers(session):
    assert session["encoded"] == 4
    hits = [name for name, _ in session["answer"].hits]
    assert len(hits) == 3
    assert set(hits) <= set(session["names"])


def test_the_evaluation_has_numbers_with_their_protocol(session):
    result = session["result"]
    assert 0 <= result.metrics["R@1"] <= 100
    assert result.protocol["reading"] == "fast"
    assert len(result.rankings) == 12


def test_the_teacher_wrote_a_chain_for_each_query(session):
    written = read_records(session["folder"] / "chains.jsonl")
    assert {record.id for record in written} == {"1", "2"}
    assert all(record.cot for record in written)
    assert session["outcome"].counts["quarantined"] == 0


def test_training_took_its_steps_and_the_retriever_loads_again(session):
    assert session["trainer"].state.global_step == 2
    assert session["again"].dim == session["head"].dim
    pictures = [Pictures().load(COLOURS[0] + "-" + COLOURS[1])]
    torch.testing.assert_close(
        session["again"].encode_target(pictures), session["head"].eval().encode_target(pictures)
    )
