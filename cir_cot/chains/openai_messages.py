"""Messages to and from an OpenAI-compatible server: content, answers, token counts, failures."""

import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Literal, TypeGuard

import httpx2
import openai

from .openai_client import TooLargeError
from .teacher import Content, Picture

QUOTED = 2**12  # bytes of a malformed answer that are redacted before they are cut to SHOWN
SHOWN = 80  # characters of a malformed answer in a reason
SPECIAL = re.compile(r"<(?=\|)")  # begins <|im_end|> and its like, which a server would tokenize


@dataclass(frozen=True)
class Failure:
    """A failed request.

    Attributes:
        kind: "unreachable" (no connection), "rate_limited" (the server is busy), "retryable" (a
            repetition may work) or "fatal" (the server refuses this row).
        reason: what happened, for the quarantine.
        after: seconds that the server asks to wait; 0 if it does not say.
    """

    kind: Literal["unreachable", "rate_limited", "retryable", "fatal"]
    reason: str
    after: float = 0.0


def content(parts: Content) -> str | list[dict]:
    """Convert a turn's content to the API's form; text alone stays a string."""
    # Text alone is a plain string, which every server takes.
    texts = [part for part in parts if not isinstance(part, Picture)]
    if len(texts) == len(parts):
        return plain("\n".join(texts))
    blocks: list[dict] = []
    for part in parts:
        if isinstance(part, Picture):
            blocks.append({"type": "image_url", "image_url": {"url": part.url}})
        else:
            blocks.append({"type": "text", "text": plain(part)})
    return blocks


def plain(text: str) -> str:
    """Break up special tokens in a text, so that a server reads them as text."""
    return SPECIAL.sub("< ", text)


def parse_answer(raw: bytes, redact: Callable[[str], str]) -> dict | Failure:
    """Parse a server's answer.

    Args:
        raw: the body of the response.
        redact: removes the key from a text.

    Returns:
        The answer's JSON, or a Failure that quotes the beginning of what is no answer.
    """
    # The form of an answer: one choice with a message.
    try:
        obj = json.loads(raw)
        choice = obj["choices"][0]
        reply = choice["message"]
        text = reply.get("content") or reply.get("refusal") or ""
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        # Redact before cutting: no part of a key may be left at the cut.
        start = redact(" ".join(raw[:QUOTED].decode("utf-8", "replace").split()))[:SHOWN]
        return Failure("retryable", f"not an answer: {type(error).__name__} in {start!r}")
    if not isinstance(text, str):
        return Failure("retryable", "not an answer: its content is no string")
    return obj


def answer_text(obj: dict) -> tuple[str, bool]:
    """Return an answer's text, lone surrogates as question marks, and whether it is complete."""
    # A refusal is an answer, too: the filters find it.
    choice = obj["choices"][0]
    text = choice["message"].get("content") or choice["message"].get("refusal") or ""
    return text.encode("utf-8", "replace").decode("utf-8"), choice.get("finish_reason") != "length"


def billed_tokens(obj: dict, prompt: int) -> tuple[int, int]:
    """Return the prompt and answer tokens that a server bills.

    Args:
        obj: the server's answer.
        prompt: the estimated prompt tokens, used where the server gives no valid count.
    """
    usage = obj.get("usage")
    if isinstance(usage, dict):
        prompt_tokens = usage.get("prompt_tokens")
        completion_tokens = usage.get("completion_tokens")
        if is_count(prompt_tokens) and is_count(completion_tokens):
            return prompt_tokens, completion_tokens
    # No valid count: estimate the answer as prompts are estimated, 3 letters a token.
    return prompt, len(answer_text(obj)[0]) // 3 + 1


def is_count(value: object) -> TypeGuard[int]:
    """Tell whether a value is a token count; True and 1.0 are none."""
    return type(value) is int and 0 <= value < 2**31


def retry_after(headers: httpx2.Headers) -> float:
    """Return the seconds that a server asks to wait, as a number or a date; 0 if it does not."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    # A date gone by, or inf, asks for nothing.
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def connection_failure(error: openai.APIConnectionError | TooLargeError, timeout: float) -> Failure:
    """Classify a connection error: unreachable, response too large, timed out, or interrupted."""
    cause = error if isinstance(error, TooLargeError) else error.__cause__
    # A timeout while connecting means that no server is there.
    if isinstance(error, openai.APITimeoutError) and not isinstance(cause, httpx2.ConnectTimeout):
        return Failure("retryable", f"timeout: no answer within {timeout:g} s")
    if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout):
        return Failure("unreachable", f"no connection: {cause}")
    if isinstance(cause, TooLargeError):
        return Failure("retryable", f"too large: {cause}")
    return Failure("retryable", f"connection lost: {type(cause or error).__name__}")
