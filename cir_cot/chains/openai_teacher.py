"""A teacher behind OpenAI-compatible servers: several replicas balanced, patience with bad ones, a budget, no leaks.

What is guaranteed: a request goes to the named servers only (redirects are refused) and holds the named pictures only;
an answer is read up to a limit of bytes; a key appears in no message and no answer that leaves this module; every
request ends, with an answer, with Unanswered for its row, or, where no row would get one, with InputError.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx2
import openai

from cir_cot.errors import InputError

from .budget import Budget
from .openai_messages import (
    QUOTED,
    OwnHeaders,
    TooLargeError,
    Trouble,
    checked,
    connection_trouble,
    content,
    limit_answer,
    message,
    retry_after,
    usage,
)
from .teacher import Answer, Turn, Unanswered, estimate

MAX_REST = 300.0  # seconds: the longest Retry-After that is believed, and the longest back-off is a fifth of it
SICK = 3  # failures in a row after which a replica rests while others work
BUSY = 40  # times one call is sent away with 429 or 503 before its row is given up


@dataclass
class Replica:
    """One server: its client, the calls on it, and until when it rests."""

    url: str
    client: openai.AsyncOpenAI
    calls: int = 0
    failures: int = 0
    unreachable: bool = False
    rest_until: float = 0.0


def usable_key(key: str) -> str:
    """Return a key without the white space around it; InputError, which does not show it, where no header holds it."""
    key = key.strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError(
            "OPENAI_API_KEY holds a control character or a letter beyond ASCII; set it again, whole"
        )
    return key


class OpenAITeacher:
    """Asks `model` on the servers at `urls`; the key comes from the environment and is the same for all of them.

    `retries` is how often a failed request is repeated, `timeout` the seconds it may take in all. Without any
    connection the job waits `patience` seconds (`startup` until the first answer) and then stops. `proxy` is the only
    proxy that is used: those that the environment names are not.
    """

    def __init__(
        self,
        model: str,
        urls: Sequence[str],
        key: str = "",
        budget: Budget | None = None,
        concurrency: int = 64,
        retries: int = 5,
        timeout: float = 120.0,
        temperature: float = 0.0,
        proxy: str | None = None,
    ):
        self.model, self.budget = model, budget or Budget()
        self.key = usable_key(key)
        self.proxy = proxy
        if proxy:
            self._check_address("proxy", proxy, password=True)
        self.certificates = (
            httpx2.create_ssl_context()
        )  # SSL_CERT_FILE counts: it sends nothing anywhere
        self.retries, self.timeout, self.temperature = retries, timeout, temperature
        self.backoff, self.patience, self.startup = 0.5, 900.0, 10.0
        self.answered, self.reached = False, time.monotonic()
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=concurrency)
        self.replicas = [self._replica(url, limits) for url in dict.fromkeys(urls)]
        if not self.replicas:
            raise InputError("no server to ask; give --base-url URL, one or several")

    def _replica(self, url: str, limits: httpx2.Limits) -> Replica:
        self._check_address("base-url", url)
        key = self.key or "none"
        # The environment names proxies, passwords (.netrc) and headers that the user gave for other servers.
        http = httpx2.AsyncClient(
            limits=limits,
            timeout=self.timeout,
            follow_redirects=False,
            trust_env=False,
            verify=self.certificates,
            proxy=self.proxy,
            event_hooks={"request": [OwnHeaders(key)], "response": [limit_answer]},
        )
        client = openai.AsyncOpenAI(
            base_url=url, api_key=key, http_client=http, max_retries=0, timeout=self.timeout
        )
        return Replica(url, client)

    def _check_address(self, what: str, url: str, password: bool = False) -> None:
        """Refuse what is no http(s) address, or holds a password where none is allowed; it is not shown."""
        try:
            parts = urlsplit(url)
            named = (
                parts.scheme in ("http", "https") and parts.port != 0 and bool(httpx2.URL(url).host)
            )
            secret = bool(parts.username or parts.password)
        except (ValueError, httpx2.InvalidURL):
            named = secret = False
        if not named or (secret and not password):
            shown = self.redact(url.rpartition("@")[2])
            without = "" if password else " without a password in it"
            raise InputError(f"{what} {shown!r} is no http(s) address{without}")

    def redact(self, text: str) -> str:
        """Text without the key, should a server repeat it."""
        return text.replace(self.key, "[key]") if len(self.key) >= 6 else text

    async def close(self) -> None:
        """Close all connections."""
        for replica in self.replicas:
            await replica.client.close()

    async def ask(
        self, turns: Sequence[Turn], max_tokens: int, schema: dict | None = None
    ) -> Answer:
        """One answer; Unanswered after `retries` failures, InputError where no server can be reached or used."""
        body = self._body(turns, max_tokens, schema)
        size = estimate(turns)
        tries = failures = busy = 0
        while True:
            replica = await self._pick()
            async with self.budget.call(size, max_tokens) as bill:
                result = await self._send(replica, body)
                tries += isinstance(result, dict) or result.kind != "dead"
                if isinstance(result, dict):
                    bill(*usage(result, size))
            if isinstance(result, dict):
                replica.failures, replica.unreachable, self.answered = 0, False, True
                text, whole = message(result)
                return Answer(self.redact(text), whole, tries)
            self._rest(replica, result)
            busy, failures = busy + (result.kind == "busy"), failures + (result.kind == "again")
            if result.kind == "never" or failures > self.retries or busy > BUSY:
                raise Unanswered(self.redact(result.reason), tries)
            if result.kind == "again":
                await asyncio.sleep(self._delay(failures))

    async def _send(self, replica: Replica, body: dict) -> dict | Trouble:
        """The parsed answer of a server, or what was wrong."""
        replica.calls += 1
        try:
            async with asyncio.timeout(self.timeout):
                # Not chat.completions.create: walking through the pictures for its types takes longer than all else.
                raw = await replica.client.post(
                    "/chat/completions", cast_to=httpx2.Response, body=body
                )
            self.reached = time.monotonic()
            return checked(raw.content, self.redact)
        except TimeoutError:
            return Trouble("again", f"timeout: no answer within {self.timeout:g} s")
        except openai.APIStatusError as error:
            self.reached = time.monotonic()
            return self._refusal(replica, error)
        except (openai.APIConnectionError, TooLargeError) as error:
            return connection_trouble(error, self.timeout)
        finally:
            replica.calls -= 1

    def _refusal(self, replica: Replica, error: openai.APIStatusError) -> Trouble:
        """What an error status means; before the first answer, one about key, model or address stops the job."""
        status = error.status_code
        said = self.redact(" ".join(error.response.text[:QUOTED].split()))[
            :300
        ]  # redacted first: no half of a key
        after = retry_after(error.response.headers)
        reason = f"http {status}: {said}"
        if status == 429 or (status == 503 and after):
            return Trouble("busy", reason, after)
        if status in (408, 409) or status >= 500:
            return Trouble("again", reason, after)
        if status in (401, 403, 404) and not self.answered:
            raise InputError(
                self.redact(
                    f"{replica.url}: {reason}; check the key in OPENAI_API_KEY, the model, the URL"
                )
            )
        return Trouble("never", reason)

    def _delay(self, failures: int) -> float:
        return min(MAX_REST / 5, self.backoff * 2 ** min(failures - 1, 16)) * random.uniform(0.5, 1)

    def _rest(self, replica: Replica, trouble: Trouble) -> None:
        """Take a replica out for a while: as long as it asks for, or longer with each failure in a row."""
        if trouble.kind == "never":
            return
        replica.failures += 1
        replica.unreachable = trouble.kind == "dead"
        sick = trouble.kind == "again" and len(self.replicas) > 1 and replica.failures >= SICK
        unasked = trouble.kind == "busy" and not trouble.after
        rest = self._delay(replica.failures) if trouble.kind == "dead" or unasked or sick else 0.0
        rest = max(rest, min(trouble.after, MAX_REST))
        replica.rest_until = max(replica.rest_until, time.monotonic() + rest)
        waited = time.monotonic() - self.reached
        if all(one.unreachable for one in self.replicas) and waited > (
            self.patience if self.answered else self.startup
        ):
            names = ", ".join(one.url for one in self.replicas)
            raise InputError(
                f"no server answers at {names} ({self.redact(trouble.reason)}); start it and run again"
            )

    async def _pick(self) -> Replica:
        """The replica with the fewest calls among those that do not rest; waits, with jitter, while all do."""
        while True:
            now = time.monotonic()
            awake = [
                replica
                for replica in self.replicas
                if replica.rest_until <= now
                and not (replica.unreachable and replica.calls)  # one call tries it again
            ]
            if awake:
                return min(awake, key=lambda replica: (replica.calls, replica.failures))
            wait = max(0.1, min(replica.rest_until for replica in self.replicas) - now)
            await asyncio.sleep(wait * random.uniform(1, 1.25))

    def _body(self, turns: Sequence[Turn], max_tokens: int, schema: dict | None) -> dict:
        body = {
            "model": self.model,
            "messages": [{"role": role, "content": content(parts)} for role, parts in turns],
            "max_completion_tokens": max_tokens,
            "temperature": self.temperature,
        }
        if schema:
            wanted = {"name": "chain", "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": wanted}
        return body
