"""The scripted teacher server of benchmarks/, loaded by its path, and a script with a tiny Qwen-VL behind it.

It lies in benchmarks/, which import nothing from tests/.
"""

import base64
import importlib.util
import io
import math
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "teacher_server.py"
_spec = importlib.util.spec_from_file_location("benchmark_teacher_server", SCRIPT)
_module = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = _module  # a dataclass looks its module up
_spec.loader.exec_module(_module)

Reply = _module.Reply
Server = _module.Server
answer = _module.answer
edit = _module.edit
good = _module.good
good_chain = _module.good_chain
pictures = _module.pictures
slow = _module.slow
stage = _module.stage
texts = _module.texts


class TinyModel:
    """A script with a checkpoint behind it: what a serving engine does, one request at a time, `limit` tokens each."""

    def __init__(self, checkpoint: str, limit: int = 24):
        from cir_cot.chains.transformers_teacher import TransformersTeacher

        self.teacher = TransformersTeacher(checkpoint, dtype="float32")
        self.limit = limit

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
