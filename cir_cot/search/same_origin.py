"""Refuse requests that other web sites send to a local page, by an ASGI middleware that compares origins.

A browser names the site that sends a request in Sec-Fetch-Site, Origin or Referer, and no page can change these
headers. The page's own origin is taken from the Host header, which must have been checked before: by DNS rebinding
another site's name can lead to this machine.
"""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

READING = ("GET", "HEAD")  # methods that change nothing
# Gradio's own scripts need inline and eval; nothing is loaded from elsewhere.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
# Headers of every response.
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def refusal(method: str, path: str, headers: Mapping[str, str], data: str) -> str:
    """Return why a request is refused, or "" when it is allowed.

    Below the path `data`, and for every method that changes something, the browser must say that the page itself sends
    the request. Elsewhere only requests of a foreign origin are refused.

    Args:
        method: HTTP method.
        path: path of the request.
        headers: headers of the request, with lower-case names.
        data: path below which are the files that visitors see and send.
    """
    host = headers.get("host", "").lower()
    own = (f"http://{host}", f"https://{host}")  # a proxy may add encryption
    reading = method in READING
    site = headers.get("sec-fetch-site")
    origin = headers.get("origin")
    referer = headers.get("referer")
    # 1. A foreign Origin is refused, whatever the other headers say.
    if origin is not None and origin.lower() not in own:
        return f"origin {origin!r} is not this page"
    # 2. Sec-Fetch-Site, of current browsers. A link from another site may open the page, and nothing else.
    if site is not None:
        link = reading and path == "/" and headers.get("sec-fetch-mode") == "navigate"
        if site == "same-origin" or (site == "none" and reading) or link:
            return ""
        return f"a {site} request is not this page's"
    # 3. The headers of other browsers, or of a page that is served without encryption under another name.
    if origin is not None:
        return ""
    if referer is not None:
        same = referer.lower().startswith(tuple(f"{name}/" for name in own))
        return "" if same else "the referer is not this page"
    return "" if reading and not path.startswith(data) else "it does not say that this page asks"


class SameOrigin:
    """ASGI middleware that answers 403 to requests of other origins and adds HEADERS to every answer."""

    def __init__(self, app: Callable, data: str):
        self.app = app
        self.data = data

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass a request of the page on; refuse every other one, and web sockets, which the page does not use."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            # Add the headers to the first message of a response.
            if message["type"] == "http.response.start":
                added = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", ()), *added]
            await send(message)

        # Decide by the headers; latin-1 decodes any bytes.
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        }
        reason = refusal(scope["method"], scope["path"], headers, self.data)
        if not reason:
            await self.app(scope, receive, send_with_headers)
            return
        # Answer a refused request here; the application never sees it.
        body = f"refused: {reason}\n".encode()
        start = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(body)).encode()),
        ]
        await send_with_headers({"type": "http.response.start", "status": 403, "headers": start})
        await send({"type": "http.response.body", "body": body})
