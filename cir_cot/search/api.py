"""A small JSON server of a search: health, one query or a batch, and its OpenAPI description; for this machine."""

import base64
import binascii
import logging
import threading
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cir_cot import __version__
from cir_cot.digests import digest_bytes
from cir_cot.errors import InputError
from cir_cot.files import check_keys, parse_json
from cir_cot.images import decode
from cir_cot.records import MAX_PART, MAX_TEXT, check_text, cot_from_dict

from .local_server import HOSTS
from .payload_filter import check_filter
from .search import Search

MAX_BODY = 64 * 2**20  # bytes of a request: a batch of photographs
MAX_BATCH = 64  # queries of a request
MAX_HITS = 1_000
KEYS = ("image", "text", "k", "reading", "where", "cot", "keep_reference")


logger = logging.getLogger(__name__)


class TooLongError(InputError):
    """A request of more than MAX_BODY bytes."""


def api(search: Search, hosts: Sequence[str] = ()) -> Starlette:
    """Return the application.

    Args:
        search: answers the queries, one request at a time.
        hosts: host names to answer to, beside this machine's own; "*" for all, behind a proxy that checks.
    """
    lock = threading.Lock()
    routes = [
        Route("/health", partial(_health, search)),
        Route("/openapi.json", _description),
        Route("/search", partial(_answered, search, lock, False), methods=["POST"]),
        Route("/batch", partial(_answered, search, lock, True), methods=["POST"]),
    ]
    # Other sites' pages cannot send JSON here: no answer allows it, and names that lead here by rebinding are refused.
    allowed = Middleware(TrustedHostMiddleware, allowed_hosts=[*HOSTS, *hosts], www_redirect=False)
    return Starlette(routes=routes, middleware=[allowed])


async def _health(search: Search, request: Request) -> Response:
    """Say that the server answers, and what it searches."""
    return JSONResponse({"status": "ok", "version": __version__, "pictures": len(search.index)})


async def _description(request: Request) -> Response:
    return JSONResponse(OPENAPI)


async def _answered(
    search: Search, lock: threading.Lock, several: bool, request: Request
) -> Response:
    """Answer a request; what is wrong with it is one line."""
    try:
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            raise InputError("the content type must be application/json")
        raw = await _body(request)
        asked = parse_json(raw, "the request")
        queries = asked.get("queries") if several and isinstance(asked, dict) else [asked]
        if not isinstance(queries, list) or not 1 <= len(queries) <= MAX_BATCH:
            raise InputError(f'a batch is {{"queries": [1 to {MAX_BATCH} queries]}}')
        answers = await run_in_threadpool(_answers, search, lock, queries)
    except TooLongError as error:
        return JSONResponse({"error": str(error)}, 413)
    except InputError as error:
        return JSONResponse({"error": str(error)}, 400)
    return JSONResponse({"answers": answers} if several else answers[0])


async def _body(request: Request) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            raise TooLongError(f"the request has more than {MAX_BODY} bytes")
    return body


def _answers(search: Search, lock: threading.Lock, queries: list) -> list[dict[str, Any]]:
    """Check all queries, then answer them in order; a batch is refused as a whole."""
    checked = [_checked(query, f"query {number}") for number, query in enumerate(queries)]
    answers: list[dict[str, Any]] = []
    with lock:
        _refresh(search)
        # Consecutive queries that ask alike are one batch of the model.
        for _, group in groupby(checked, key=_kind):
            together = list(group)
            pictures = [query["image"] for query in together]
            texts = [query["text"] for query in together]
            first = together[0]
            chains = None if first["chain"] is None else [query["chain"] for query in together]
            options = {name: first[name] for name in ("k", "reading", "where")}
            references = [query["reference"] for query in together]
            found = search.many(pictures, texts, chains=chains, references=references, **options)
            answers += [answer.as_dict() for answer in found]
    return answers


def _refresh(search: Search) -> None:
    """Take in what another process has saved; a folder that cannot be read leaves the index as it was."""
    try:
        search.refresh()
    except InputError as error:
        logger.warning("searches the index as it was: %s", error)


def _kind(query: dict[str, Any]) -> tuple:
    """Return what queries of one batch have in common."""
    return query["k"], query["reading"], query["where"], query["chain"] is None


def _checked(query: object, where: str) -> dict[str, Any]:
    """Return a query as arguments of `Search.many`; InputError names what is wrong."""
    if not isinstance(query, dict):
        raise InputError(f"{where}: a query is a JSON object")
    check_keys(query, where, required=KEYS[:2], allowed=KEYS)
    if not isinstance(query["image"], str):
        raise InputError(f"{where}: 'image' is the file of a picture in base64")
    try:
        raw = base64.b64decode(query["image"], validate=True)
    except binascii.Error:
        raise InputError(f"{where}: 'image' is no base64") from None
    k = query.get("k", 10)
    if type(k) is not int or not 1 <= k <= MAX_HITS:
        raise InputError(f"{where}: 'k' is a number of pictures, 1 to {MAX_HITS}")
    reading = query.get("reading")
    if reading is not None and not isinstance(reading, str):
        raise InputError(f"{where}: 'reading' is a name")
    keep = query.get("keep_reference", False)
    if not isinstance(keep, bool):
        raise InputError(f"{where}: 'keep_reference' is true or false")
    return {
        "image": decode(raw, f"{where}: 'image'"),
        "text": check_text(query["text"], f"{where}: 'text'"),
        "k": k,
        "reading": reading,
        "where": None if query.get("where") is None else check_filter(query["where"]),
        "chain": None if query.get("cot") is None else cot_from_dict(query["cot"], where),
        "reference": "" if keep else digest_bytes(raw),
    }


_QUERY = {
    "type": "object",
    "required": ["image", "text"],
    "additionalProperties": False,
    "properties": {
        "image": {"type": "string", "contentEncoding": "base64", "description": "a picture's file"},
        "text": {
            "type": "string",
            "maxLength": MAX_TEXT,
            "description": "how the wanted picture differs",
        },
        "k": {"type": "integer", "minimum": 1, "maximum": MAX_HITS, "default": 10},
        "reading": {"type": "string", "description": "full, short, adaptive or fast"},
        "where": {"type": "object", "description": 'filter, e.g. {"price": {"lt": 50}}'},
        "cot": {
            "type": "object",
            "description": "a chain to read in place of the model's own",
            "properties": {
                part: {"type": "string", "maxLength": MAX_PART}
                for part in ("caption", "reasoning", "conclusion")
            },
        },
        "keep_reference": {
            "type": "boolean",
            "default": False,
            "description": "whether a picture of the same content as 'image' can be a hit",
        },
    },
}
_ANSWER = {
    "type": "object",
    "properties": {
        "hits": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"id": {"type": "string"}, "score": {"type": "number"}},
            },
        },
        "explanation": {"type": "string", "description": "the chain, as tagged text"},
        "flag": {"type": "string", "description": "what is wrong with the chain"},
        "seconds": {"type": "object"},
        "agreement": {"type": "number", "description": "of several chains, with --samples"},
    },
}


def _operation(summary: str, asked: dict, answered: dict) -> dict:
    """Return the description of a POST."""
    wrong = {"description": "one line in 'error'"}
    return {
        "post": {
            "summary": summary,
            "requestBody": {"required": True, "content": {"application/json": {"schema": asked}}},
            "responses": {
                "200": {
                    "description": "found",
                    "content": {"application/json": {"schema": answered}},
                },
                "400": wrong,
                "413": wrong,
            },
        }
    }


def _list_of(name: str, items: dict) -> dict:
    return {"type": "object", "properties": {name: {"type": "array", "items": items}}}


OPENAPI = {
    "openapi": "3.1.0",
    "info": {"title": "cir-cot search", "version": __version__},
    "paths": {
        "/health": {"get": {"responses": {"200": {"description": "the server answers"}}}},
        "/search": _operation("Answer one query", _QUERY, _ANSWER),
        "/batch": _operation(
            f"Answer up to {MAX_BATCH} queries",
            _list_of("queries", _QUERY),
            _list_of("answers", _ANSWER),
        ),
    },
}
