"""Connections to an OpenAI-compatible server that send no extra header and read a bounded answer.

The environment names proxies, passwords (.netrc) and headers that were given for other servers:
none is used.
"""

import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx2
import openai

from cir_cot.errors import InputError

MAX_BYTES = 2**20  # of an answer; a chain has a few kilobytes
CONNECT = 5.0  # seconds to reach a server: one that is there answers at once, whatever it has to do
BODY_HEADERS = ("Content-Length", "Transfer-Encoding")  # describe the encoded body
FIXED_HEADERS = [
    ("Content-Type", "application/json"),
    ("Accept", "application/json"),
    ("Accept-Encoding", "identity"),
]


def open_client(
    url: str,
    key: str,
    timeout: float,
    connections: int,
    certificates: ssl.SSLContext,
    proxy: str | None,
) -> openai.AsyncOpenAI:
    """Open a client that repeats no request by itself and follows no redirect.

    Args:
        url: the server's address, as `check_address` accepts it.
        key: the API key.
        timeout: seconds that a request may take.
        connections: how many connections are kept open.
        certificates: the authorities that are trusted.
        proxy: the only proxy that is used, or None.
    """
    # Calls are bounded by the job's concurrency, not by the client.
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=connections)
    http = httpx2.AsyncClient(
        limits=limits,
        timeout=timeout,
        follow_redirects=False,
        trust_env=False,
        verify=certificates,
        proxy=proxy,
        event_hooks={"request": [OwnHeaders(key)], "response": [limit_answer]},
    )
    # A host that is off answers nothing at all: its rows would wait as long as for an answer.
    bounds = httpx2.Timeout(timeout, connect=min(timeout, CONNECT))
    # Retries are the teacher's: it knows the other servers.
    return openai.AsyncOpenAI(
        base_url=url, api_key=key, http_client=http, max_retries=0, timeout=bounds
    )


def check_address(
    what: str, url: str, redact: Callable[[str], str], password: bool = False
) -> None:
    """Refuse what is no http(s) address, or holds a password although `password` is False.

    Args:
        what: the option that holds the address.
        url: the address.
        redact: removes the key, in case it was given as the address by mistake.
        password: whether the address may hold a password; the error never shows it.
    """
    # Two parsers must agree that this is an address.
    try:
        parts = urlsplit(url)
        host = httpx2.URL(url).host
        named = parts.scheme in ("http", "https") and parts.port != 0 and bool(host)
        secret = bool(parts.username or parts.password)
    except (ValueError, httpx2.InvalidURL):
        named = False
        secret = False
    if not named or (secret and not password):
        # What stands before an @ may be a password.
        shown = redact(url.rpartition("@")[2])
        without = "" if password else " without a password in it"
        raise InputError(
            f"{what} {shown!r} is no http(s) address{without}; give one as http://host:8000/v1"
        )


def usable_key(key: str) -> str:
    """Strip a key; InputError, which does not quote it, if no header can hold it."""
    # Keys are often read from a file, with its line end.
    key = key.strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError(
            "OPENAI_API_KEY holds a control character or a letter beyond ASCII; copy the key again"
        )
    return key


@dataclass(frozen=True)
class OwnHeaders:
    """Client hook: replace the headers of a request with those that it needs.

    openai's client adds this machine's system and Python version, and the values of OPENAI_ORG_ID,
    OPENAI_PROJECT_ID and OPENAI_CUSTOM_HEADERS: they were set for one server, and this request may
    go to another.
    """

    key: str

    async def __call__(self, request: httpx2.Request) -> None:
        # Host and key of this server, whatever the client added.
        own = [
            ("Host", request.url.netloc.decode("ascii")),
            ("Authorization", f"Bearer {self.key}"),
        ]
        kept = [(name, request.headers[name]) for name in BODY_HEADERS if name in request.headers]
        request.headers = httpx2.Headers([*own, *FIXED_HEADERS, *kept])


class TooLargeError(OSError):
    """An answer is larger than MAX_BYTES, or compressed, so that its size is unknown."""


async def limit_answer(response: httpx2.Response) -> None:
    """Client hook: stop reading an answer beyond MAX_BYTES, and refuse a compressed one."""
    # A few compressed bytes may unpack to gigabytes.
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise TooLargeError("compressed, though it was asked for plain")
    assert isinstance(response.stream, httpx2.AsyncByteStream), "the client is asynchronous"
    response.stream = Limited(response.stream)


@dataclass
class Limited(httpx2.AsyncByteStream):
    """A response stream that raises TooLargeError beyond MAX_BYTES."""

    stream: httpx2.AsyncByteStream
    size: int = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self.stream:
            # Count before anything is kept.
            self.size += len(chunk)
            if self.size > MAX_BYTES:
                raise TooLargeError(f"more than {MAX_BYTES} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self.stream.aclose()
