"""Which requests are the page's own: a table of what browsers send, without a server."""

import pytest

from cir_cot.search.same_origin import refusal

DATA = "/api/"
OWN = {"origin": "http://127.0.0.1:7860"}
LINK = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}


def refused(method, path, headers):
    return bool(refusal(method, path, {"host": "127.0.0.1:7860"} | headers, DATA))


@pytest.mark.parametrize(
    ("headers", "read", "write", "page"),  # refused: reading data, writing it, opening the page
    [
        ({}, True, True, False),
        (OWN, False, False, False),
        ({"origin": "https://127.0.0.1:7860"}, False, False, False),
        ({"origin": "http://127.0.0.1:7861"}, True, True, True),
        ({"origin": "http://127.0.0.1:7860.evil.example"}, True, True, True),
        ({"origin": "null"}, True, True, True),
        ({"origin": ""}, True, True, True),
        (OWN | {"sec-fetch-site": "cross-site"}, True, True, True),
        ({"origin": "http://evil.example", "sec-fetch-site": "same-origin"}, True, True, True),
        ({"sec-fetch-site": "same-origin"}, False, False, False),
        ({"sec-fetch-site": "same-site"}, True, True, True),
        ({"sec-fetch-site": "cross-site"}, True, True, True),
        ({"sec-fetch-site": "none"}, False, True, False),
        (LINK, True, True, False),
        (LINK | OWN, True, True, False),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, True, True, True),
        ({"referer": "http://127.0.0.1:7860/"}, False, False, False),
        ({"referer": "https://127.0.0.1:7860/?x"}, False, False, False),
        ({"referer": "http://127.0.0.1:7860.evil.example/"}, True, True, True),
        ({"referer": "http://evil.example/http://127.0.0.1:7860/"}, True, True, True),
    ],
)
def test_who_may_read_write_and_open(headers, read, write, page):
    assert refused("GET", "/api/file", headers) == read
    assert refused("HEAD", "/api/file", headers) == read
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert refused(method, "/api/file", headers) == write
        assert refused(method, "/", headers) == write
    assert refused("GET", "/", headers) == page


def test_names_are_compared_without_regard_to_case():
    for host, origin in (
        ("Demo.Example", "http://demo.example"),
        ("demo.example", "http://DEMO.example"),
    ):
        assert not refusal("POST", "/api/x", {"host": host, "origin": origin}, DATA)
