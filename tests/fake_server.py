"""A small OpenAI-compatible HTTP server for tests and measurements: scripted, hostile, or with a tiny Qwen-VL behind.

A script takes a request (a dict) and returns a Reply. In a process of its own: `python tests/servers.py --port 0
--median 0.2 --seed 0` prints its address, answers with good chains after log-normal latencies, and on SIGTERM
prints what it counted.
"""

import argparse
import asyncio
import base64
import hashlib
import io
import json
import math
import random
import re
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

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
    """What the server does: wait, then answer, or cut the connection in the middle, or never answer."""

    body: object = None
    status: int = 200
    headers: dict = field(default_factory=dict)
    wait: float = 0.0
    cut: bool = False
    hang: bool = False


Script = Callable[[dict], Reply]


class Server:
    """`with Server(script) as server:` serves at `server.url`; `server.requests` counts, `server.most` is the most at
    a time, `server.seen` keeps the requests if `keep`."""

    def __init__(self, script: Script, port: int = 0, keep: bool = False):
        self.script, self.port, self.keep = script, port, keep
        self.requests = self.open = self.most = 0
        self.waited, self.seen, self.headers = 0.0, [], []
        self.ready, self.loop, self.done = threading.Event(), None, None

    @property
    def url(self) -> str:
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
        self.loop, self.done, self.tasks = asyncio.get_running_loop(), asyncio.Event(), set()
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
        self.tasks.add(task := asyncio.current_task())
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                while await self.one(reader, writer):
                    pass
        finally:
            self.tasks.discard(task)
            writer.close()

    async def one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Read one request and answer it; False ends the connection."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        size = int(re.search(r"content-length: (\d+)", head, re.IGNORECASE)[1])
        request = json.loads(await reader.readexactly(size))
        self.requests, self.open = self.requests + 1, self.open + 1
        self.most = max(self.most, self.open)
        if self.keep:
            self.seen.append(request)
            self.headers.append(head)
        try:
            reply = self.script(request)
            self.waited += reply.wait
            if reply.wait:
                await asyncio.sleep(reply.wait)
            if reply.hang:
                await self.done.wait()
        finally:
            self.open -= 1
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        headers = {"content-type": "application/json", "content-length": len(body)} | reply.headers
        lines = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
        raw = f"HTTP/1.1 {reply.status} x\r\n{lines}\r\n".encode() + body
        writer.write(raw[: len(raw) // 2] if reply.cut else raw)
        await writer.drain()
        return not reply.cut


def answer(text: str | None, finish: str = "stop", **message) -> Reply:
    """A well-formed answer with this text; its usage counts letters, so that tests can add them up."""
    choice = {
        "index": 0,
        "finish_reason": finish,
        "message": {"role": "assistant", "content": text} | message,
    }
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return Reply(
        {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
    )


def texts(request: dict) -> list[str]:
    """The words of each turn."""
    turns = []
    for message in request["messages"]:
        content = message["content"]
        parts = (
            [content] if isinstance(content, str) else [part.get("text", "") for part in content]
        )
        turns.append("\n".join(parts))
    return turns


def pictures(request: dict) -> list[bytes]:
    """The JPEG files in a request, in order."""
    contents = [
        message["content"]
        for message in request["messages"]
        if isinstance(message["content"], list)
    ]
    urls = [
        part["image_url"]["url"]
        for parts in contents
        for part in parts
        if part["type"] == "image_url"
    ]
    return [base64.b64decode(url.partition(",")[2]) for url in urls]


def edit(request: dict) -> str:
    """The modification that a request is about, "" in the caption stage."""
    found = REQUEST.search("\n".join(texts(request)))
    return found[1] if found else ""


def stage(request: dict) -> str:
    """Which question a request asks: the last of them in the conversation."""
    if JOINT in request:
        return "joint"
    return [part for text in texts(request) for part, words in QUESTIONS.items() if words in text][
        -1
    ]


def good_chain(text: str, seed: bytes) -> dict[str, str]:
    """A chain that passes every filter, decided by the modification and the picture alone."""
    number = int.from_bytes(hashlib.sha256(seed).digest()[:4], "big")
    words = " ".join(text.split()[:30])
    return {
        "caption": f"A garment of pattern {number} in plain colours with an ordinary cut.",
        "reasoning": f"The garment and its kind are kept as they are. What changes is what was asked for: {words}. "
        "Everything else about it stays the same and no further detail is taken away.",
        "conclusion": f"A garment which now {words}.",
    }


def good(request: dict) -> Reply:
    """Answer every question well; the verifier is sure."""
    asked = stage(request)
    if asked == "score":
        return answer("0.9")
    chain = good_chain(edit(request), (pictures(request) or [b""])[0])
    return answer(json.dumps(chain) if asked == "joint" else chain[asked])


def slow(median: float, sigma: float, seed: int, script: Script = good) -> Script:
    """The script after log-normal latencies, drawn in the order of the requests."""
    rng = random.Random(seed)

    def wait(request: dict) -> Reply:
        reply = script(request)
        reply.wait = rng.lognormvariate(math.log(median), sigma) if median else 0.0
        return reply

    return wait


class TinyModel:
    """A script with a checkpoint behind it: what a serving engine does, one request at a time, `limit` tokens each."""

    def __init__(self, checkpoint: str, limit: int = 24):
        from cir_cot.chains.transformers_teacher import TransformersTeacher

        self.teacher, self.limit = TransformersTeacher(checkpoint, dtype="float32"), limit

    def __call__(self, request: dict) -> Reply:
        from cir_cot.chains.teacher import Picture

        turns = []
        for message in request["messages"]:
            content = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            turns.append((message["role"], [self.part(part, Picture) for part in parts]))
        limit = min(self.limit, request["max_completion_tokens"])
        text, whole, prompt, completion = self.teacher.generate([(turns, limit)])[0]
        reply = answer(text, "stop" if whole else "length")
        reply.body["usage"] = {"prompt_tokens": prompt, "completion_tokens": completion}
        return reply

    @staticmethod
    def part(part: dict, picture: type) -> object:
        if part["type"] == "text":
            return part["text"]
        from PIL import Image

        raw = base64.b64decode(part["image_url"]["url"].partition(",")[2])
        return picture(raw, math.prod(Image.open(io.BytesIO(raw)).size))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--median", type=float, default=0.0)
    parser.add_argument("--sigma", type=float, default=0.67)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
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
    main()
