"""A teacher in this process: any image-text-to-text model of transformers, asked in batches.

Rows ask one question each, as they ask a server; questions that wait at the same time are generated
together.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cir_cot import compat  # noqa: F401  # isort: skip
import transformers
from PIL import Image
from qwen_vl_utils import process_vision_info

from cir_cot.errors import InputError
from cir_cot.models.checkpoint import DTYPES, load_model, load_processor, model_options
from cir_cot.models.resizing import picture_bounds, token_side

from .budget import Budget
from .teacher import Answer, Picture, Teacher, Turn, Unanswered, shorten

LINGER = 0.02  # seconds that a batch waits for rows which are still loading their pictures


@dataclass
class Question:
    """A row's question, and the future that gets its answer."""

    turns: Sequence[Turn]
    max_tokens: int
    answer: asyncio.Future


class TransformersTeacher(Teacher):
    """Ask a checkpoint in this process; greedy at temperature 0.

    Args:
        model: a folder or a name on the hub.
        budget: counts and bounds calls and tokens; unlimited if None.
        batch_size: how many rows are generated together, at most.
        temperature: of sampling.
        dtype: the model's precision, a key of DTYPES.
        device: where the model runs.

    Example:
        teacher = TransformersTeacher("Qwen/Qwen2.5-VL-7B-Instruct", device="cuda")
    """

    def __init__(
        self,
        model: str,
        budget: Budget | None = None,
        batch_size: int = 16,
        temperature: float = 0.0,
        dtype: str = "bfloat16",
        device: str | torch.device = "cpu",
    ):
        self.model = model
        self.budget = budget or Budget()
        self.batch_size = batch_size
        self.temperature = temperature
        # transformers ships no types: processor and model are Any here.
        self.processor: Any = load_processor(model)
        self.processor.tokenizer.padding_side = "left"  # answers begin where prompts end
        self.bounds = picture_bounds(self.processor.image_processor)
        self.side = token_side(self.processor.image_processor)
        options: dict[str, Any] = model_options(DTYPES[dtype], "sdpa", None)
        network: Any = load_model(model, **options)
        self.network = network.to(device).eval()
        # Longest first: a special token may contain another one.
        special = {*self.processor.tokenizer.all_special_tokens, *self._added()}
        self.special = sorted(special, key=len, reverse=True)
        self.waiting: list[Question] = []
        self.asked: list[Question] = []  # the batch that is being generated
        self.worker: asyncio.Task | None = None

    def _added(self) -> list[str]:
        """List the tokens that were added to the tokenizer's vocabulary."""
        return [token.content for token in self.processor.tokenizer.added_tokens_decoder.values()]

    async def close(self) -> None:
        """Stop the worker."""
        if self.worker:
            self.worker.cancel()

    async def ask(
        self, turns: Sequence[Turn], max_tokens: int, schema: dict | None = None
    ) -> Answer:
        """Answer one question, generated in a batch with others that wait; `schema` is refused."""
        if schema:
            raise InputError(
                "--stages joint needs a server that writes JSON by a schema; use --stages separate"
            )
        # The answer comes from whichever batch the question joins.
        question = Question(turns, max_tokens, asyncio.get_running_loop().create_future())
        async with self.budget.call(self.estimate(turns), max_tokens) as bill:
            # The first waiting question starts a worker, which ends when nothing waits.
            self.waiting.append(question)
            if self.worker is None or self.worker.done():
                self.worker = asyncio.create_task(self._work())
                self.worker.add_done_callback(self._pass_on)
            text, complete, prompt, completion = await question.answer
            bill(prompt, completion)
        return Answer(text, complete)

    async def _work(self) -> None:
        """Generate batch after batch until nothing waits."""
        while self.waiting:
            await asyncio.sleep(LINGER)
            self.asked = self.waiting[: self.batch_size]
            self.waiting = self.waiting[self.batch_size :]
            if await self._answer(self.asked) or len(self.asked) == 1:
                continue
            # A single row may be at fault, and a single row takes less memory.
            for one in self.asked:
                await self._answer([one])

    async def _answer(self, batch: Sequence[Question]) -> bool:
        """Generate the answers of a batch; False if that fails (a batch of one gets the error)."""
        try:
            questions = [(one.turns, one.max_tokens) for one in batch]
            rows = await asyncio.to_thread(self.generate, questions)
        except (RuntimeError, ValueError) as error:  # out of memory is a RuntimeError
            if len(batch) == 1 and not batch[0].answer.done():
                batch[0].answer.set_exception(self._failure(error))
            return False
        # A row may have been cancelled meanwhile.
        for one, row in zip(batch, rows, strict=True):
            if not one.answer.done():
                one.answer.set_result(row)
        return True

    def _failure(self, error: RuntimeError | ValueError) -> Exception:
        """Convert a model's error: a refused value fails the row, anything else ends the job."""
        # Errors of CUDA have many lines; a reason has one.
        what = " ".join(f"{type(error).__name__}: {error}".split())
        if isinstance(error, ValueError) and not isinstance(error, InputError):
            return Unanswered(f"generation: {what}", 1)
        cure = "if memory is short, lower --max-pixels or --dtype; finished rows are kept"
        return InputError(f"{self.model}: no answer could be generated ({shorten(what)}); {cure}")

    def _pass_on(self, worker: asyncio.Task) -> None:
        """Give the error that ended the worker to all rows that would otherwise wait for ever."""
        # A worker that ended by itself has no error to pass on.
        error = None if worker.cancelled() else worker.exception()
        for one in (*self.asked, *self.waiting):
            if one.answer.done():
                continue
            if error is None:
                one.answer.cancel()
            else:
                one.answer.set_exception(error)
        self.waiting.clear()

    @torch.inference_mode()
    def generate(
        self, questions: Sequence[tuple[Sequence[Turn], int]]
    ) -> list[tuple[str, bool, int, int]]:
        """Generate the answers of a batch.

        Args:
            questions: (conversation, token limit) of each row.

        Returns:
            (text, whether it ended by itself, prompt tokens, answer tokens) of each row.
        """
        # Prompts and pictures, padded to the longest row.
        chats = [self._messages(turns) for turns, _ in questions]
        texts = [self.processor.apply_chat_template(chat, **TEMPLATE) for chat in chats]
        pictures = [self._pictures(chat) for chat in chats]
        inputs = self.processor(text=texts, images=pictures, padding=True, return_tensors="pt")
        inputs = inputs.to(self.network.device)

        # Generate up to the longest limit of the batch.
        config = self._generation_config(max(limit for _, limit in questions))
        tokens = self.network.generate(**inputs, generation_config=config)  # (B, prompt + answer)
        written = tokens[:, inputs["input_ids"].shape[1] :].tolist()  # (B, answer)

        # Cut each row at its own limit, or where it ended.
        rows = []
        ends = self._ends()
        for ids, (_, limit), mask in zip(written, questions, inputs["attention_mask"], strict=True):
            end = next((at for at, token in enumerate(ids) if token in ends), len(ids))
            text = self.processor.tokenizer.decode(ids[: min(end, limit)], skip_special_tokens=True)
            rows.append((text, end < min(len(ids), limit), int(mask.sum()), min(end + 1, limit)))
        return rows

    def _generation_config(self, max_new_tokens: int) -> transformers.GenerationConfig:
        """Return the decoding settings: greedy, or sampled at the teacher's temperature."""
        sampling: dict[str, Any] = {"do_sample": bool(self.temperature)}
        if self.temperature:
            sampling["temperature"] = self.temperature
        return transformers.GenerationConfig(
            max_new_tokens=max_new_tokens,
            pad_token_id=self.processor.tokenizer.pad_token_id,
            eos_token_id=self._ends(),
            **sampling,
        )

    def _ends(self) -> list[int]:
        """List the tokens that end an answer: the model's own and the tokenizer's."""
        # The configuration holds one id, several or none.
        ends = self.network.generation_config.eos_token_id
        ends = [ends] if isinstance(ends, int) else list(ends or [])
        return list(dict.fromkeys([*ends, self.processor.tokenizer.eos_token_id]))

    def _messages(self, turns: Sequence[Turn]) -> list[dict]:
        """Convert a conversation to the messages of a chat template."""
        messages = []
        for role, content in turns:
            messages.append({"role": role, "content": [self._part(part) for part in content]})
        return messages

    def _part(self, part: str | Picture) -> dict:
        """Convert a text or a picture to an entry of a message."""
        if not isinstance(part, Picture):
            return {"type": "text", "text": self.plain(part)}
        return {"type": "image", "image": part.image, **self.bounds}

    def _pictures(self, chat: list[dict]) -> list[Image.Image]:
        """List a conversation's pictures, resized to sides that the processor keeps."""
        return process_vision_info(chat, image_patch_size=self.side // 2)[0] or []

    def plain(self, text: str) -> str:
        """Break up the model's special tokens in a text by a space behind their first letters."""
        # A replacement may uncover another token: repeat until none is left.
        while found := next((token for token in self.special if token in text), None):
            text = text.replace(found, f"{found[0]} {found[1:]}")
        return text


TEMPLATE = {"add_generation_prompt": True, "tokenize": False}
