"""Serve a scripted teacher over OpenAI's HTTP protocol, for measurements and tests.

A script maps a request (a dict) to a Reply: an answer, an error, or hostile behaviour.
`python benchmarks/teacher_server.py --median 0.2 --seed 0` runs a server in a process of its own: it prints its
address, answers with good chains after log-normal latencies, and prints its counts as JSON on SIGTERM.
"""

import argparse
import asyncio
import base64
import hashlib
import json
import math
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from cir_cot.cli import run

REQUEST = re.compile(r"with this request: (.*?)\n", re.DOTALL)
JOINT = "response_format"
QUESTIONS = {
    "caption": "Describe this picture",
    "reasoning": "Reason in two",
    "conclusion": "Now describe",
    "score": "Answer with one number",
}


@dataclass
class Reply:
    """Say what the server does: wait, then answer, close the connection in the middle, or never answer."""

    body: object = None
    status: int = 200
    headers: dict = field(default_factory=dict)
    wait: float = 0.0
    cut: bool = False
    hang: bool = False


Script = Callable[[dict], Reply]


class Server:
    """Serve a script at `url` within a with statement.

    `requests` counts requests, `most` is the largest number at a time, and `seen` keeps them if `keep`.
    """

    def __init__(self, script: Script, port: int = 0, keep: bool = False):
        self.script = script
        self.port = port
        self.keep = keep
        # Counts.
        self.requests = 0
        self.open = 0
        self.most = 0
        self.waited = 0.0  # seconds
        self.seen: list[dict] = []
        self.headers: list[str] = []
        # Set by the thread that serves.
        self.ready = threading.Event()
        self.loop = None
        self.done = None

    @property
    def url(self) -> str:
        """Return the base URL for a client."""
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> "Server":
        self.thread = threading.Thread(target=lambda: asyncio.run(self.serve()), daemon=True)
        self.thread.start()
        self.ready.wait()
        return self

    def __exit__(self, *_) -> None:
        self.loop.call_soon_threadsafe(self.done.set)
        self.thread.join()

    async def serve(self) -> None:
        """Serve until `done` is set."""
        self.loop = asyncio.get_running_loop()
        self.done = asyncio.Event()
        self.tasks = set()
        server = await asyncio.start_server(
            self.connection, "127.0.0.1", self.port, limit=2**20, backlog=512
        )
        self.port = server.sockets[0].getsockname()[1]
        self.ready.set()
        await self.done.wait()
        server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        task = asyncio.current_task()
        self.tasks.add(task)
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                while await self.one(reader, writer):
                    pass
        finally:
            self.tasks.discard(task)
            writer.close()

    async def one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Read one request and answer it; False ends the connection."""
        # Read the request.
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        size = int(re.search(r"content-length: (\d+)", head, re.IGNORECASE)[1])
        request = json.loads(await reader.readexactly(size))
        self.requests += 1
        self.open += 1
        self.most = max(self.most, self.open)
        if self.keep:
            self.seen.append(request)
            self.headers.append(head)
        # Behave as the script says.
        try:
            reply = self.script(request)
            self.waited += reply.wait
            if reply.wait:
                await asyncio.sleep(reply.wait)
            if reply.hang:
                await self.done.wait()
        finally:
            self.open -= 1
        # Answer, or send one half of the answer.
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        headers = {"content-type": "application/json", "content-length": len(body)} | reply.headers
        lines = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
        raw = f"HTTP/1.1 {reply.status} x\r\n{lines}\r\n".encode() + body
        writer.write(raw[: len(raw) // 2] if reply.cut else raw)
        await writer.drain()
        return not reply.cut


def answer(text: str | None, finish: str = "stop", **message) -> Reply:
    """Return a well-formed answer with a text, and a usage of 110 tokens."""
    choice = {
        "index": 0,
        "finish_reason": finish,
        "message": {"role": "assistant", "content": text} | message,
    }
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
    return Reply(body | {"choices": [choice], "usage": usage})


def texts(request: dict) -> list[str]:
    """Return the text of each turn."""
    turns = []
    for message in request["messages"]:
        content = message["content"]
        parts = (
            [content] if isinstance(content, str) else [part.get("text", "") for part in content]
        )
        turns.append("\n".join(parts))
    return turns


def pictures(request: dict) -> list[bytes]:
    """Return the JPEG files of a request, in order."""
    found = []
    for message in request["messages"]:
        if isinstance(message["content"], list):
            urls = [
                part["image_url"]["url"]
                for part in message["content"]
                if part["type"] == "image_url"
            ]
            found += [base64.b64decode(url.partition(",")[2]) for url in urls]
    return found


def edit(request: dict) -> str:
    """Return the modification text of a request, "" in the caption stage."""
    found = REQUEST.search("\n".join(texts(request)))
    return found[1] if found else ""


def stage(request: dict) -> str:
    """Name the question that a request asks: the last one in the conversation."""
    if JOINT in request:
        return "joint"
    asked = [
        part for text in texts(request) for part, phrase in QUESTIONS.items() if phrase in text
    ]
    return asked[-1]


def good_chain(text: str, seed: bytes) -> dict[str, str]:
    """Return a chain that passes every filter; it depends on the modification and the picture only."""
    number = int.from_bytes(hashlib.sha256(seed).digest()[:4], "big")
    words = " ".join(text.split()[:30])
    return {
        "caption": f"A garment of pattern {number} in plain colours with an ordinary cut.",
        "reasoning": f"The garment and its kind are kept as they are. What changes is what was asked for: {words}. "
        "Everything else about it stays the same and no further detail is taken away.",
        "conclusion": f"A garment which now {words}.",
    }


def good(request: dict) -> Reply:
    """Answer every question with a good chain, and the verifier's with a high score."""
    asked = stage(request)
    if asked == "score":
        return answer("0.9")
    chain = good_chain(edit(request), (pictures(request) or [b""])[0])
    return answer(json.dumps(chain) if asked == "joint" else chain[asked])


def slow(median: float, sigma: float, seed: int, script: Script = good) -> Script:
    """Delay a script by log-normal latencies, drawn in the order of the requests."""
    rng = random.Random(seed)

    def wait(request: dict) -> Reply:
        reply = script(request)
        reply.wait = rng.lognormvariate(math.log(median), sigma) if median else 0.0
        return reply

    return wait


def main(argv: Sequence[str]) -> None:
    """Serve until SIGTERM, then print the counts."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="teacher_server.py", description="A fake teacher"
    )
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--median", type=float, default=0.0, help="of the latencies, seconds")
    parser.add_argument("--sigma", type=float, default=0.67, help="of their logarithm")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    server = Server(slow(args.median, args.sigma, args.seed), args.port)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with server:
        print(server.url, flush=True)
        while not stop.wait(3600):
            pass
        counted = {
            "requests": server.requests,
            "latency": server.waited,
            "most": server.most,
            "cpu": time.process_time(),
        }
    print(json.dumps(counted), flush=True)


if __name__ == "__main__":
    run(main)
