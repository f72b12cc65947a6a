"""The web page of a review: its data, and what is refused."""

import io
import json

import pytest
from conftest_review import command, queue_of
from PIL import Image

from cir_cot.errors import InputError
from cir_cot.review.app import MAX_BODY, application
from cir_cot.scripts.data_gen import review

testclient = pytest.importorskip("starlette.testclient")
OWN = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture
def client(folder):
    app = application(queue_of(folder))
    return testclient.TestClient(app, base_url="http://127.0.0.1", headers=OWN)


def test_the_page_and_its_data(client, folder):
    page = client.get("/")
    assert page.status_code == 200
    assert "Review of chains" in page.text
    assert page.headers["X-Frame-Options"] == "DENY"
    assert client.get("/page.js").status_code == client.get("/page.css").status_code == 200
    found = client.get("/data/rows?state=open&start=0").json()
    assert [row["id"] for row in found["rows"]] == ["0", "1", "2", "3", "4", "6", "7"]
    assert (found["next"], found["reviewer"], found["counts"]["open"]) == (7, "ann", 7)
    picture = client.get("/data/picture/0/target")
    assert picture.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(picture.content)).size == (56, 56)
    said = client.post("/data/decide", json={"number": 0, "decision": "accept", "choice": "A"})
    assert said.json()["row"]["decision"]["decision"] == "accept"
    assert said.json()["counts"]["accept"] == 1
    assert client.get("/data/rows?state=accept").json()["rows"][0]["id"] == "0"
    assert client.get("/data/agreement").json()["rows"] == 0
    assert client.get("/data/row/0").json()["decision"]["reviewer"] == "ann"
    assert len((folder / "decisions.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/data/row/99", "row 99 is not one of 7"),
        ("/data/picture/0/other", "no such picture"),
        ("/data/rows?state=zz", "is none of"),
        ("/data/rows?start=-1", "is no number"),
    ],
)
def test_bad_requests_are_one_line(client, path, words):
    answer = client.get(path)
    assert answer.status_code == 400
    assert words in answer.json()["error"]


@pytest.mark.parametrize(
    "body", ["", "[]", "{", '{"number": "0"}', '{"number": 0, "decision": {}}']
)
def test_bad_decisions_write_nothing(client, folder, body):
    answer = client.post("/data/decide", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]
    assert not (folder / "decisions.jsonl").exists()


def test_long_bodies_other_sites_and_other_hosts_are_refused(client, folder):
    assert client.post("/data/decide", content="x" * (MAX_BODY + 1)).status_code == 413
    body = json.dumps({"number": 0, "decision": "reject"})
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.example"}):
        assert client.post("/data/decide", content=body, headers=headers).status_code == 403
    assert client.get("/data/rows", headers={"Host": "evil.example"}).status_code == 400
    assert not (folder / "decisions.jsonl").exists()


def test_a_busy_port_is_one_line(folder):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} of 127.0.0.1"):
            review.main(command(folder, "--port", port))
