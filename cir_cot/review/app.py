"""The web application of a review: one page, and JSON for it; for this machine, behind checks of host and origin."""

import io
import threading
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from cir_cot.errors import InputError
from cir_cot.files import parse_json
from cir_cot.search.local_server import checks

from .queue import STATES, ReviewQueue

PAGE = 20  # rows of a request
SIDE = 640  # of a shown picture, in pixels
MAX_BODY = 100_000  # bytes of a decision
HERE = Path(__file__).parent
ASSETS = {"/": "page.html", "/page.js": "page.js", "/page.css": "page.css"}

Answer = Callable[[Request], Awaitable[Response]]


def application(queue: ReviewQueue, hosts: Sequence[str] = ()) -> Starlette:
    """Return the application of a review.

    Args:
        queue: its rows.
        hosts: host names to answer to, beside this machine's own.
    """
    # Requests run in threads; the queue is one for all of them.
    lock = threading.Lock()

    def answered(answer: Callable[[ReviewQueue, Request, bytes], Response]) -> Answer:
        async def respond(request: Request) -> Response:
            body = b""
            async for part in request.stream():
                body += part
                if len(body) > MAX_BODY:
                    return JSONResponse({"error": "the decision is too long"}, 413)
            return await run_in_threadpool(partial(_locked, lock, answer, queue, request, body))

        return respond

    routes = [Route(path, partial(_asset, name)) for path, name in ASSETS.items()]
    routes += [
        Route("/data/rows", answered(_rows)),
        Route("/data/row/{number:int}", answered(_row)),
        Route("/data/picture/{number:int}/{which}", answered(_picture)),
        Route("/data/agreement", answered(_agreement)),
        Route("/data/decide", answered(_decide), methods=["POST"]),
    ]
    return Starlette(routes=routes, middleware=checks(hosts, data="/data/"))


def _locked(
    lock: threading.Lock,
    answer: Callable[[ReviewQueue, Request, bytes], Response],
    queue: ReviewQueue,
    request: Request,
    body: bytes,
) -> Response:
    """Answer one request at a time; bad input becomes a message for the page."""
    try:
        with lock:
            queue.refresh()
            return answer(queue, request, body)
    except InputError as error:
        return JSONResponse({"error": str(error)}, 400)


async def _asset(name: str, request: Request) -> Response:
    return FileResponse(HERE / name)


def _rows(queue: ReviewQueue, request: Request, body: bytes) -> Response:
    """Return the next rows of a state, complete, and the counts of all states."""
    state = request.query_params.get("state", "open")
    start = request.query_params.get("start", "0")
    if not start.isdigit():
        raise InputError(f"start {start[:20]!r} is no number")
    numbers, following = queue.page(state, int(start), PAGE)
    return JSONResponse(
        {
            "rows": [queue.row(number, state) for number in numbers],
            "next": following,
            "counts": queue.counts(),
            "reviewer": queue.reviewer,
            "states": STATES,
        }
    )


def _row(queue: ReviewQueue, request: Request, body: bytes) -> Response:
    state = request.query_params.get("state", "all")
    return JSONResponse(queue.row(_number(queue, request), state))


def _picture(queue: ReviewQueue, request: Request, body: bytes) -> Response:
    """Return the reference or the target of a row as a JPEG of at most SIDE pixels."""
    row = queue.rows[_number(queue, request)]
    which = request.path_params["which"]
    if which not in ("reference", "target") or (which == "target" and not row.record.targets):
        raise InputError("no such picture")
    name = row.record.reference if which == "reference" else row.record.targets[0]
    picture = row.images.load(name)
    picture.thumbnail((SIDE, SIDE))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=90)
    return Response(data.getvalue(), media_type="image/jpeg")


def _agreement(queue: ReviewQueue, request: Request, body: bytes) -> Response:
    return JSONResponse(queue.agreement())


def _decide(queue: ReviewQueue, request: Request, body: bytes) -> Response:
    """Append a decision, and return the row as it is now."""
    said = parse_json(body, "the decision")
    if not isinstance(said, dict) or not isinstance(said.get("number"), int):
        raise InputError("a decision names its row by number")
    number = said["number"]
    queue.decide(number, said.get("decision", ""), said.get("choice", ""), said.get("cot"))
    row = queue.row(number, said.get("state", "all"))
    return JSONResponse({"row": row, "counts": queue.counts()})


def _number(queue: ReviewQueue, request: Request) -> int:
    number = request.path_params["number"]
    if number >= len(queue.rows):
        raise InputError(f"row {number} is not one of {len(queue.rows)}")
    return number
