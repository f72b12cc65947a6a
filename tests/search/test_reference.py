"""The reference of a query is no hit, by the content of its file: in Python, commands, server and demo."""

import base64
import json
import shutil

import pytest
from demo_dialogue import make_dialogue, png
from PIL import Image
from toy_retriever import Toy, write_shades

from cir_cot.images import list_pictures
from cir_cot.scripts.eval import search as command
from cir_cot.search.build import IndexSettings, build, open_index
from cir_cot.search.question import Question
from cir_cot.search.reference import digest_of
from cir_cot.search.search import Search

testclient = pytest.importorskip("starlette.testclient")
SHADES = range(0, 200, 20)


def names(answer) -> list[str]:
    return [name for name, _ in answer.hits]


@pytest.fixture(params=["exact", "qdrant"])
def search(tmp_path, request):
    """A gallery that holds the picture s040 twice."""
    write_shades(tmp_path / "images", SHADES)
    shutil.copy(tmp_path / "images/s040.png", tmp_path / "images/again.png")
    kind = "exact"
    if request.param == "qdrant":
        pytest.importorskip("qdrant_client")
        kind = f"qdrant:{tmp_path / 'store'}#shop"
    images = list_pictures(tmp_path / "images")
    build(Toy(), images, list(images.files), tmp_path / "index", IndexSettings(kind))
    index = open_index(tmp_path / "index")
    yield Search(Toy(), index)
    index.close()


def test_every_copy_of_the_reference_is_left_out_unless_asked_for(search, tmp_path):
    # Under another name and elsewhere: it is the content that counts.
    reference = tmp_path / "mine.png"
    shutil.copy(tmp_path / "images/s040.png", reference)
    found = search.one(reference, "0", k=3)
    assert set(names(found)[:2]) == {"s020", "s060"}
    assert len(found.hits) == 3
    assert "again" not in names(found)
    kept = search.one(reference, "0", k=3, keep_reference=True)
    assert set(names(kept)[:2]) == {"again", "s040"}
    # A picture that is opened has a file; one that was cropped shows something else.
    with Image.open(reference) as opened:
        opened.load()
        assert names(search.one(opened, "0", k=3)) == names(found)
        assert digest_of(opened) == digest_of(str(reference)) != ""
        assert digest_of(opened.crop((0, 0, 4, 4))) == ""
    assert digest_of(tmp_path / "gone.png") == ""
    *_, streamed = search.stream(Image.new("RGB", (8, 6)), "40", 3, reference=digest_of(reference))
    assert not {"again", "s040"} & set(names(streamed))


def test_queries_of_a_batch_have_references_of_their_own(search, tmp_path):
    files = [tmp_path / f"images/s0{shade}.png" for shade in (40, 80)]
    pictures = [Image.open(file) for file in files]
    first, second = search.many(pictures, ["0", "0"], 2)
    assert "s040" not in names(first)
    assert "s080" not in names(second)
    assert len(first.hits) == len(second.hits) == 2
    # What one query leaves out, another may find.
    assert "s040" in names(search.many(pictures, ["0", "-40"], 2)[1])


def test_the_server_and_the_demo_leave_it_out(toy, tmp_path):
    from cir_cot.search.api import api

    client = testclient.TestClient(api(toy), base_url="http://127.0.0.1")
    raw = (tmp_path / "images/s040.png").read_bytes()
    query = {"image": base64.b64encode(raw).decode(), "text": "0", "k": 3}
    found = client.post("/search", json=query).json()["hits"]
    assert len(found) == 3
    assert "s040" not in [hit["id"] for hit in found]
    kept = client.post("/search", json=query | {"keep_reference": True}).json()["hits"]
    assert kept[0]["id"] == "s040"
    refused = client.post("/search", json=query | {"keep_reference": 1})
    assert "'keep_reference' is true or false" in refused.json()["error"]
    # An upload that is a picture of the gallery, as one that is chosen there.
    page = make_dialogue(tmp_path / "demo")
    for state in (page.upload(png(30)), page.start_from("s030", [])):
        for chain in ((), ("shade 30", "add 0", "shade 30")):
            answer = page.answer(state, Question(state["id"], "0", "full", chain=chain))
            assert "s030" not in names(answer)
            assert len(answer.hits) == 12
    # A file that changed since it was indexed is the reference still, by its id.
    (tmp_path / "demo/images/s030.png").write_bytes(png(30, (16, 12)))
    answer = page.answer(page.start_from("s030", []), Question("s030", "0", "full"))
    assert "s030" not in names(answer)


def test_the_command_leaves_it_out(tmp_path, capsys):
    from tiny_training import tiny_head

    from cir_cot.scripts.eval import build_index

    write_shades(tmp_path / "images", SHADES)
    tiny_head(lora=False, max_new_tokens=4).save(tmp_path / "model")
    where = ["--model", str(tmp_path / "model"), "--device", "cpu"]
    images, index = str(tmp_path / "images"), str(tmp_path / "index")
    assert build_index.main([*where, "--images", images, "--out", index]) == 0
    image = str(tmp_path / "images/s040.png")
    queries = tmp_path / "queries.jsonl"
    queries.write_text(json.dumps({"id": "1", "image": image, "text": "darker"}) + "\n")
    capsys.readouterr()
    asked = [*where, "--index", index, "--k", "9", "--json"]
    for query in (["--image", image, "--text", "darker"], ["--queries", str(queries)]):
        found = []
        for more in ([], ["--keep-reference", "--k", "10"]):
            assert command.main([*asked, *query, *more]) == 0
            hits = json.loads(capsys.readouterr().out)["hits"]
            found.append({hit["id"] for hit in hits})
        assert found[0] == {f"s{shade:03}" for shade in SHADES} - {"s040"}
        assert found[1] == {f"s{shade:03}" for shade in SHADES}
