"""Refuse what other web sites ask of a local page: an ASGI middleware that compares each request's origin with its own.

A browser says who asks, in Sec-Fetch-Site, Origin or Referer, and no page can change these. The Host header must have
been checked before (DNS rebinding: another site's name that leads to this machine): the own origin is taken from it.
"""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

READING = ("GET", "HEAD")
POLICY = (  # gradio's own scripts need inline and eval; nothing comes from elsewhere
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {  # of every answer
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def refusal(method: str, path: str, headers: Mapping[str, str], data: str) -> str:
    """Return why a request is refused, or "" for one of the page itself.

    `headers` have lower-case names. Paths below `data` hold what visitors see and send: there, and for every method
    that changes something, the browser must say that the page itself asks. Elsewhere only a foreign origin is refused.
    """
    host = headers.get("host", "").lower()
    own = (f"http://{host}", f"https://{host}")  # a proxy may add the s
    reading = method in READING
    site = headers.get("sec-fetch-site")
    origin = headers.get("origin")
    referer = headers.get("referer")
    # 1. A foreign origin, whatever else is said.
    if origin is not None and origin.lower() not in own:
        return f"origin {origin!r} is not this page"
    # 2. What current browsers say; a link from another site may open the page, and nothing else.
    if site is not None:
        link = reading and path == "/" and headers.get("sec-fetch-mode") == "navigate"
        if site == "same-origin" or (site == "none" and reading) or link:
            return ""
        return f"a {site} request is not this page's"
    # 3. What other browsers say, e.g. of a page that is served without encryption under another name.
    if origin is not None:
        return ""
    if referer is not None:
        same = referer.lower().startswith(tuple(f"{name}/" for name in own))
        return "" if same else "the referer is not this page"
    return "" if reading and not path.startswith(data) else "it does not say that this page asks"


class SameOrigin:
    """ASGI middleware that answers 403 to requests of other origins and adds HEADERS to every answer."""

    def __init__(self, app: Callable, data: str):
        self.app, self.data = app, data

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass a request of the page on; refuse any other, and web sockets, which the page has none of."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", ()), *added]
            await send(message)

        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        }
        reason = refusal(scope["method"], scope["path"], headers, self.data)
        if not reason:
            await self.app(scope, receive, send_with_headers)
            return
        body = f"refused: {reason}\n".encode()
        start = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(body)).encode()),
        ]
        await send_with_headers({"type": "http.response.start", "status": 403, "headers": start})
        await send({"type": "http.response.body", "body": body})
