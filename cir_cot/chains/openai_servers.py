"""Pool of OpenAI-compatible servers: load balancing, retries, token budget, no key leakage.

What is guaranteed: a request goes to the named servers only (redirects are refused) and holds the
named pictures only; an answer is read up to a limit of bytes; the key appears in no message and no
answer that leaves this module; every request ends with an answer, with Unanswered for its row, or
with InputError if no row would get an answer.
"""

import asyncio
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx2
import openai

from cir_cot.errors import InputError

from .budget import Budget
from .openai_client import TooLargeError, check_address, open_client, usable_key
from .openai_messages import (
    QUOTED,
    Failure,
    billed_tokens,
    connection_failure,
    parse_answer,
    retry_after,
)
from .teacher import Unanswered

MAX_REST = 300.0  # seconds: the longest Retry-After that is honoured; back-off goes up to a fifth
FAILURES_BEFORE_REST = 3  # failures in a row after which a replica rests while others work
LAST_REST = 0.5  # seconds: the shortest rest at the end of a job's patience, and the longest jitter of a wait
MAX_BUSY_REPLIES = 40  # busy replies (429 or 503) to one call before its row is given up
SHOWN = 300  # characters of a server's refusal in a reason


@dataclass
class Replica:
    """One server and its state.

    Attributes:
        url: the server's address.
        client: the connections to it.
        calls: how many calls are running on it.
        failures: how many requests failed in a row; of those that find no server at the same time one counts.
        failed_at: when the last failure was counted (monotonic seconds).
        unreachable: whether the last request found no server.
        rest_until: no call goes to it before this time (monotonic seconds).
    """

    url: str
    client: openai.AsyncOpenAI
    calls: int = 0
    failures: int = 0
    failed_at: float = -math.inf
    unreachable: bool = False
    rest_until: float = 0.0


class OpenAIServers:
    """Send chat requests to a model on one or several OpenAI-compatible servers.

    A call goes to the server with the fewest running calls. If no server can be reached, the job
    waits `patience` seconds (`startup` before the first answer) and then stops.

    Args:
        model: as the servers name it.
        urls: the servers, such as "http://localhost:8000/v1".
        key: the API key, the same for all servers.
        budget: counts and bounds calls, tokens and dollars; unlimited if None.
        concurrency: how many connections are kept open.
        retries: how often a failed request is repeated.
        timeout: seconds that a request may take in all.
        temperature: of sampling.
        proxy: the only proxy that is used; those that the environment names are not.

    Example:
        servers = OpenAIServers("Qwen/Qwen2.5-VL-7B-Instruct", ["http://localhost:8000/v1"])
        response, tries = await servers.complete(body, size=500, max_tokens=100)
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
        self.model = model
        self.budget = budget or Budget()
        self.key = usable_key(key)
        if proxy:
            check_address("proxy", proxy, self.redact, password=True)
        # SSL_CERT_FILE of the environment counts: it sends nothing anywhere.
        self.certificates = httpx2.create_ssl_context()
        # How patient the teacher is.
        self.retries = retries
        self.timeout = timeout
        self.temperature = temperature
        self.backoff = 0.5  # seconds after the first failure
        self.patience = 900.0
        self.startup = 10.0
        self.answered = False  # whether any server has answered
        self.reached = time.monotonic()  # when a server was last reached
        self.replicas = []
        for url in dict.fromkeys(urls):
            check_address("base-url", url, self.redact)
            client = open_client(
                url, self.key or "none", timeout, concurrency, self.certificates, proxy
            )
            self.replicas.append(Replica(url, client))
        if not self.replicas:
            raise InputError("no server to ask; give --base-url URL, one or several")

    def redact(self, text: str) -> str:
        """Remove the key from a text, in case a server repeats it."""
        return text.replace(self.key, "[key]") if len(self.key) >= 6 else text

    async def close(self) -> None:
        """Close all connections."""
        for replica in self.replicas:
            await replica.client.close()

    async def complete(self, body: dict, size: int, max_tokens: int) -> tuple[dict, int]:
        """Send one chat request until a server answers it.

        Args:
            body: the request, as the API takes it.
            size: estimated tokens of its prompt.
            max_tokens: most tokens of its answer.

        Returns:
            The server's response, one choice with a message, and how many requests it took.

        Raises:
            Unanswered: this request gets no answer after `retries` failures; others may.
            InputError: no request would get an answer.
            BudgetSpent: the call could exceed the budget.
        """
        tries = 0
        failures = 0
        busy = 0
        while True:
            # Ask the least busy server, within the budget. Without a connection it was no try.
            replica = await self._pick()
            sent = time.monotonic()
            async with self.budget.call(size, max_tokens) as bill:
                result = await self._send(replica, body)
                tries += isinstance(result, dict) or result.kind != "unreachable"
                if isinstance(result, dict):
                    bill(*billed_tokens(result, size))
            if isinstance(result, dict):
                replica.failures = 0
                replica.unreachable = False
                self.answered = True
                return result, tries

            # Let the server rest, and give the row up after too many failures.
            self._back_off(replica, result, sent)
            busy += result.kind == "rate_limited"
            failures += result.kind == "retryable"
            exhausted = failures > self.retries or busy > MAX_BUSY_REPLIES
            if result.kind == "fatal" or exhausted:
                raise Unanswered(self.redact(result.reason), tries)
            # A busy server rests by itself; a repetition of this row waits.
            if result.kind == "retryable":
                await asyncio.sleep(self._delay(failures))

    async def _send(self, replica: Replica, body: dict) -> dict | Failure:
        """Send one request; return the parsed answer or what failed."""
        replica.calls += 1
        try:
            async with asyncio.timeout(self.timeout):
                # chat.completions.create would spend most of the time converting pictures.
                raw = await replica.client.post(
                    "/chat/completions", cast_to=httpx2.Response, body=body
                )
            self.reached = time.monotonic()
            return parse_answer(raw.content, self.redact)
        except TimeoutError:
            return Failure("retryable", f"timeout: no answer within {self.timeout:g} s")
        except openai.APIStatusError as error:
            self.reached = time.monotonic()
            return self._refusal(replica, error)
        except (openai.APIConnectionError, TooLargeError) as error:
            return connection_failure(error, self.timeout)
        finally:
            replica.calls -= 1

    def _refusal(self, replica: Replica, error: openai.APIStatusError) -> Failure:
        """Classify an error status.

        Before the first answer, a status about key, model or address stops the job.
        """
        status = error.status_code
        # Redact before cutting: no part of a key may be left at the cut.
        said = self.redact(" ".join(error.response.text[:QUOTED].split()))[:SHOWN]
        after = retry_after(error.response.headers)
        reason = f"http {status}: {said}"
        # Status codes by what can be done about them.
        if status == 429 or (status == 503 and after):
            return Failure("rate_limited", reason, after)
        if status in (408, 409) or status >= 500:
            return Failure("retryable", reason, after)
        if status in (401, 403, 404) and not self.answered:
            cure = "check the key in OPENAI_API_KEY, the model, the URL"
            raise InputError(self.redact(f"{replica.url}: {reason}; {cure}"))
        return Failure("fatal", reason)

    def _delay(self, failures: int) -> float:
        """Return the seconds to wait after failures in a row: doubled each time, with jitter."""
        return min(MAX_REST / 5, self.backoff * 2 ** min(failures - 1, 16)) * random.uniform(0.5, 1)

    def _back_off(self, replica: Replica, failure: Failure, sent: float = math.inf) -> None:
        """Let a replica rest for as long as it asks, or longer with each failure in a row of requests `sent`."""
        if failure.kind == "fatal":
            return
        # Sixty requests at the same time that find no server tell the same once, not sixty times.
        if failure.kind == "retryable" or sent > replica.failed_at:
            replica.failures += 1
            replica.failed_at = time.monotonic()
        replica.unreachable = failure.kind == "unreachable"

        # A replica that only fails rests if others can take over its work.
        often = len(self.replicas) > 1 and replica.failures >= FAILURES_BEFORE_REST
        failing = failure.kind == "retryable" and often
        unasked = failure.kind == "rate_limited" and not failure.after
        rest = min(failure.after, MAX_REST)
        if replica.unreachable or failing or unasked:
            rest = max(rest, self._delay(replica.failures))
        replica.rest_until = max(replica.rest_until, time.monotonic() + rest)

        # No server at all: wait for a restart, but not for ever.
        patience = self.patience if self.answered else self.startup
        ends = self.reached + patience
        gone = all(one.unreachable for one in self.replicas)
        if gone and time.monotonic() > ends:
            names = ", ".join(one.url for one in self.replicas)
            reason = self.redact(failure.reason)
            raise InputError(f"no server answers at {names} ({reason}); start it and run again")
        # No rest goes beyond that time.
        if gone:
            replica.rest_until = min(replica.rest_until, max(ends, time.monotonic() + LAST_REST))

    async def _pick(self) -> Replica:
        """Choose the replica with the fewest calls that does not rest; wait if all do."""
        while True:
            now = time.monotonic()
            awake = []
            for replica in self.replicas:
                probed = replica.unreachable and replica.calls  # one call at a time tries it again
                if replica.rest_until <= now and not probed:
                    awake.append(replica)
            if awake:
                return min(awake, key=lambda replica: (replica.calls, replica.failures))
            # All rest: sleep until the first one wakes up.
            wait = max(0.1, min(replica.rest_until for replica in self.replicas) - now)
            await asyncio.sleep(wait + random.uniform(0, min(wait / 4, LAST_REST)))
