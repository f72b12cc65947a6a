"""What goes over the wire to an OpenAI-compatible server and what comes back: content, counts, limits, troubles."""

import json
import math
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime

import httpx2
import openai

from .teacher import Picture

MAX_BYTES = 2**20  # of an answer; a chain is a few kilobytes
QUOTED = 2**12  # of an answer that is no answer, before the key is removed and it is cut to a line
SPECIAL = re.compile(r"<(?=\|)")  # <|im_end|> and its like: a server would read them as tokens


@dataclass(frozen=True)
class Trouble:
    """A failed request: `kind` is dead (no connection), busy, again (may pass) or never (this row's fault)."""

    kind: str
    reason: str
    after: float = 0.0


@dataclass(frozen=True)
class OwnHeaders:
    """Replace the headers of a request with those that it needs, as a hook of the client.

    openai's client adds this machine's system and Python, and what OPENAI_ORG_ID, OPENAI_PROJECT_ID and
    OPENAI_CUSTOM_HEADERS hold: they were set for one server, and this request may go to another.
    """

    key: str

    async def __call__(self, request: httpx2.Request) -> None:
        kept = [(name, request.headers[name]) for name in HEADERS if name in request.headers]
        own = [
            ("Host", request.url.netloc.decode("ascii")),
            ("Authorization", f"Bearer {self.key}"),
        ]
        request.headers = httpx2.Headers([*own, *ASKED, *kept])


HEADERS = ("Content-Length", "Transfer-Encoding")  # of the body as it was encoded
ASKED = [
    ("Content-Type", "application/json"),
    ("Accept", "application/json"),
    ("Accept-Encoding", "identity"),
]


class TooLargeError(OSError):
    """An answer that is larger than MAX_BYTES, or packed so that its size is unknown."""


def content(parts: Sequence[str | Picture]) -> str | list[dict]:
    """Content of a turn as the interface has it; words alone stay a string, which every server takes."""
    if not any(isinstance(part, Picture) for part in parts):
        return SPECIAL.sub("< ", "\n".join(parts))
    return [
        {"type": "image_url", "image_url": {"url": part.url}}
        if isinstance(part, Picture)
        else {"type": "text", "text": SPECIAL.sub("< ", part)}
        for part in parts
    ]


def checked(raw: bytes, redact: Callable[[str], str]) -> dict | Trouble:
    """A server's JSON if it has the form of an answer; `redact` removes the key from what a trouble quotes."""
    try:
        obj = json.loads(raw)
        choice = obj["choices"][0]
        said = choice["message"]
        text = said.get("content") or said.get("refusal") or ""
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        start = redact(" ".join(raw[:QUOTED].decode("utf-8", "replace").split()))[
            :80
        ]  # no half of a key is left
        return Trouble("again", f"not an answer: {type(error).__name__} in {start!r}")
    return (
        obj
        if isinstance(text, str)
        else Trouble("again", "not an answer: its content is no string")
    )


def message(obj: dict) -> tuple[str, bool]:
    """(text, was it finished) of an answer; half surrogate pairs, which are no text, become question marks."""
    choice = obj["choices"][0]
    text = choice["message"].get("content") or choice["message"].get("refusal") or ""
    return text.encode("utf-8", "replace").decode("utf-8"), choice.get("finish_reason") != "length"


def usage(obj: dict, prompt: int) -> tuple[int, int]:
    """(prompt, completion) tokens that a server bills; estimated where it does not say, or says nonsense."""
    said = obj.get("usage")
    counts = (
        [said.get(f"{side}_tokens") for side in ("prompt", "completion")]
        if isinstance(said, dict)
        else []
    )
    if len(counts) == 2 and all(type(count) is int and 0 <= count < 2**31 for count in counts):
        return counts[0], counts[1]
    return prompt, len(message(obj)[0]) // 3 + 1


def retry_after(headers: httpx2.Headers) -> float:
    """Seconds that a server asks to wait, by number or date; 0 where it does not."""
    said = headers.get("retry-after", "")
    try:
        seconds = float(said)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(said).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def connection_trouble(error: openai.APIConnectionError | TooLargeError, timeout: float) -> Trouble:
    """What a broken connection means: no server there, an answer too large, too late, or cut."""
    cause = error if isinstance(error, TooLargeError) else error.__cause__
    if isinstance(error, openai.APITimeoutError) and not isinstance(cause, httpx2.ConnectTimeout):
        return Trouble("again", f"timeout: no answer within {timeout:g} s")
    if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout):
        return Trouble("dead", f"no connection: {cause}")
    if isinstance(cause, TooLargeError):
        return Trouble("again", f"too large: {cause}")
    return Trouble("again", f"connection lost: {type(cause or error).__name__}")


async def limit_answer(response: httpx2.Response) -> None:
    """Hook of the client: let no answer be read beyond MAX_BYTES, nor one whose unpacked size is unknown."""
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise TooLargeError("packed, though it was asked for plain")
    response.stream = Limited(response.stream)


@dataclass
class Limited(httpx2.AsyncByteStream):
    """A stream that breaks off with TooLargeError."""

    stream: httpx2.AsyncByteStream
    size: int = field(default=0)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self.stream:
            self.size += len(chunk)
            if self.size > MAX_BYTES:
                raise TooLargeError(f"more than {MAX_BYTES} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self.stream.aclose()
