"""The JSON server: its answers are those of the search, and what is refused is one line."""

import base64
import io
import json

import pytest
from PIL import Image

from cir_cot.errors import InputError
from cir_cot.scripts.eval import serve
from cir_cot.search import api as module
from cir_cot.search.api import MAX_BATCH, OPENAPI, api

testclient = pytest.importorskip("starlette.testclient")


def picture(shade=20, size=(8, 6)):
    data = io.BytesIO()
    Image.new("RGB", size, (shade,) * 3).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


@pytest.fixture
def client(toy):
    return testclient.TestClient(api(toy), base_url="http://127.0.0.1")


def test_answers_are_those_of_the_search(client, toy):
    health = client.get("/health").json()
    assert (health["status"], health["pictures"]) == ("ok", len(toy.index))
    query = {"image": picture(), "text": "40", "k": 3}
    answer = client.post("/search", json=query).json()
    wanted = toy.one(Image.new("RGB", (8, 6), (20,) * 3), "40", 3)
    assert [hit["id"] for hit in answer["hits"]] == [name for name, _ in wanted.hits]
    assert answer["explanation"] == wanted.explanation
    batch = client.post("/batch", json={"queries": [query, query | {"text": "20"}]}).json()[
        "answers"
    ]
    assert batch[0]["hits"] == answer["hits"]
    assert batch[1]["hits"] != answer["hits"]
    # Queries of other kinds between them, in their order.
    cot = {"caption": "a", "reasoning": "b", "conclusion": "shade 100"}
    mixed = [
        query,
        query | {"cot": cot},
        query | {"cot": cot | {"conclusion": "shade 60"}},
        query | {"k": 1},
    ]
    answers = client.post("/batch", json={"queries": mixed}).json()["answers"]
    own = answer["hits"][0]["id"]
    assert [one["hits"][0]["id"] for one in answers] == [own, "s100", "s060", own]
    assert [len(one["hits"]) for one in answers] == [3, 3, 3, 1]
    led = client.post("/search", json=query | {"cot": cot}).json()
    assert led["hits"][0]["id"] == "s100"
    assert client.post("/search", json=query | {"reading": "fast"}).json()["explanation"] == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image": 3}, "in base64"),
        ({"image": "%%%"}, "no base64"),
        ({"image": base64.b64encode(b"no picture").decode()}, "'image'"),
        ({"text": 3}, "'text'"),
        ({"text": "x" * 10_000}, "'text'"),
        ({"k": 0}, "'k'"),
        ({"k": True}, "'k'"),
        ({"reading": "telepathy"}, "telepathy"),
        ({"reading": []}, "'reading'"),
        ({"where": {"price": {"near": 3}}}, "near"),
        ({"cot": {"caption": "a"}}, "reasoning"),
        ({"other": 1}, "other"),
    ],
)
def test_bad_queries_are_one_line(client, change, words):
    answer = client.post("/search", json={"image": picture(), "text": "40"} | change)
    assert answer.status_code == 400
    assert words in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


def test_bad_requests_are_refused(client, monkeypatch):
    query = {"image": picture(), "text": "40"}
    for body in ({"queries": []}, {"queries": [query] * (MAX_BATCH + 1)}, {"queries": 3}, [query]):
        assert client.post("/batch", json=body).status_code == 400
    assert client.post("/search", json=[query]).status_code == 400
    # A form of another site's page has no JSON type, and another name is not answered.
    assert client.post("/search", content=json.dumps(query)).status_code == 400
    assert client.get("/health", headers={"Host": "evil.example"}).status_code == 400
    assert client.get("/search").status_code == 405
    monkeypatch.setattr(module, "MAX_BODY", 100)
    assert client.post("/search", json=query).status_code == 413


def test_the_description_names_every_path(client):
    assert client.get("/openapi.json").json() == json.loads(json.dumps(OPENAPI))
    paths = {route.path for route in client.app.routes}
    assert paths == set(OPENAPI["paths"]) | {"/openapi.json"}


def test_a_busy_port_is_said_before_a_model_is_loaded():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port}"):
            serve.main(["--model", "none", "--index", "none", "--port", str(port)])
