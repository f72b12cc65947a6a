"""A teacher that runs here: any image-and-text model of transformers, asked in batches.

Rows ask one question each, as they do a server; the questions that wait at the same moment are generated together.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cir_cot import compat  # noqa: F401  # isort: skip
import transformers
from PIL import Image
from qwen_vl_utils import process_vision_info

from cir_cot.errors import InputError
from cir_cot.models.checkpoint import DTYPES, load_model, load_processor, model_options
from cir_cot.models.resizing import picture_bounds, token_side

from .budget import Budget
from .teacher import Answer, Picture, Turn, Unanswered, estimate, shorten

LINGER = 0.02  # seconds that a batch waits for rows that are still loading their pictures


@dataclass
class Question:
    """A row's question and where its answer goes."""

    turns: Sequence[Turn]
    max_tokens: int
    answer: asyncio.Future


class TransformersTeacher:
    """Asks the checkpoint `model`, at most `batch_size` rows at a time; greedy at temperature 0."""

    def __init__(
        self,
        model: str,
        budget: Budget | None = None,
        batch_size: int = 16,
        temperature: float = 0.0,
        dtype: str = "bfloat16",
        device: str | torch.device = "cpu",
    ):
        self.model, self.budget = model, budget or Budget()
        self.batch_size, self.temperature = batch_size, temperature
        self.processor = load_processor(model)
        self.processor.tokenizer.padding_side = "left"  # answers begin where prompts end
        self.bounds = picture_bounds(self.processor.image_processor)
        self.side = token_side(self.processor.image_processor)
        self.network = (
            load_model(model, **model_options(DTYPES[dtype], "sdpa", None)).to(device).eval()
        )
        self.special = sorted(
            {*self.processor.tokenizer.all_special_tokens, *self._added()}, key=len, reverse=True
        )
        self.waiting: list[Question] = []
        self.asked: list[Question] = []  # of the batch under way
        self.worker: asyncio.Task | None = None

    def _added(self) -> list[str]:
        return [token.content for token in self.processor.tokenizer.added_tokens_decoder.values()]

    async def close(self) -> None:
        """Stop the worker."""
        if self.worker:
            self.worker.cancel()

    async def ask(
        self, turns: Sequence[Turn], max_tokens: int, schema: dict | None = None
    ) -> Answer:
        """One answer, generated in a batch with whatever else waits."""
        if schema:
            raise InputError(
                "--stages joint needs a server that writes JSON by a schema; use --stages separate"
            )
        question = Question(turns, max_tokens, asyncio.get_running_loop().create_future())
        async with self.budget.call(estimate(turns), max_tokens) as bill:
            self.waiting.append(question)
            if self.worker is None or self.worker.done():
                self.worker = asyncio.create_task(self._work())
                self.worker.add_done_callback(self._pass_on)
            text, whole, prompt, completion = await question.answer
            bill(prompt, completion)
        return Answer(text, whole)

    async def _work(self) -> None:
        """Generate batch after batch until nothing waits."""
        while self.waiting:
            await asyncio.sleep(LINGER)
            self.asked = self.waiting[: self.batch_size]
            self.waiting = self.waiting[self.batch_size :]
            if await self._answer(self.asked) or len(self.asked) == 1:
                continue
            # One row may be at fault, and one row alone takes less memory.
            for one in self.asked:
                await self._answer([one])

    async def _answer(self, batch: Sequence[Question]) -> bool:
        """Generate the answers of a batch; where it fails, False, and a batch of one gets the error."""
        try:
            rows = await asyncio.to_thread(
                self.generate, [(one.turns, one.max_tokens) for one in batch]
            )
        except (RuntimeError, ValueError) as error:  # out of memory is a RuntimeError
            if len(batch) == 1 and not batch[0].answer.done():
                batch[0].answer.set_exception(self._failure(error))
            return False
        for one, row in zip(batch, rows, strict=True):
            if not one.answer.done():
                one.answer.set_result(row)
        return True

    def _failure(self, error: RuntimeError | ValueError) -> Exception:
        """What an error of the model means: a value that it refuses is the row's fault, all else ends the job."""
        what = " ".join(f"{type(error).__name__}: {error}".split())
        if isinstance(error, ValueError) and not isinstance(error, InputError):
            return Unanswered(f"generation: {what}", 1)
        cure = "where memory is short, lower --max-pixels or take a smaller --dtype; what is done is kept"
        return InputError(f"{self.model}: no answer could be generated ({shorten(what)}); {cure}")

    def _pass_on(self, worker: asyncio.Task) -> None:
        """Give what ended the worker to the rows that still wait, which would wait for ever."""
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
        """(text, did it end by itself, prompt tokens, answer's tokens) of each question."""
        chats = [self._messages(turns) for turns, _ in questions]
        texts = [self.processor.apply_chat_template(chat, **TEMPLATE) for chat in chats]
        pictures = [self._pictures(chat) for chat in chats]
        inputs = self.processor(text=texts, images=pictures, padding=True, return_tensors="pt").to(
            self.network.device
        )
        longest = max(limit for _, limit in questions)
        sampling = (
            {"do_sample": True, "temperature": self.temperature}
            if self.temperature
            else {"do_sample": False}
        )
        padding = self.processor.tokenizer.pad_token_id
        config = transformers.GenerationConfig(
            max_new_tokens=longest, pad_token_id=padding, eos_token_id=self._ends(), **sampling
        )
        written = self.network.generate(**inputs, generation_config=config)[
            :, inputs["input_ids"].shape[1] :
        ]  # (B, T)
        rows = []
        for ids, (_, limit), mask in zip(
            written.tolist(), questions, inputs["attention_mask"], strict=True
        ):
            end = next((at for at, token in enumerate(ids) if token in self._ends()), len(ids))
            text = self.processor.tokenizer.decode(ids[: min(end, limit)], skip_special_tokens=True)
            rows.append((text, end < min(len(ids), limit), int(mask.sum()), min(end + 1, limit)))
        return rows

    def _ends(self) -> list[int]:
        ends = self.network.generation_config.eos_token_id
        ends = [ends] if isinstance(ends, int) else list(ends or [])
        return list(dict.fromkeys([*ends, self.processor.tokenizer.eos_token_id]))

    def _messages(self, turns: Sequence[Turn]) -> list[dict]:
        return [
            {"role": role, "content": [self._part(part) for part in parts]} for role, parts in turns
        ]

    def _part(self, part: str | Picture) -> dict:
        if not isinstance(part, Picture):
            return {"type": "text", "text": self.plain(part)}
        return {"type": "image", "image": part.image, **self.bounds}

    def _pictures(self, chat: list[dict]) -> list[Image.Image]:
        """Pictures of a conversation, in sides that the processor leaves as they are."""
        return process_vision_info(chat, image_patch_size=self.side // 2)[0] or []

    def plain(self, text: str) -> str:
        """Text in which no special token of the model is left: each gets a space behind its first letter."""
        while found := next((token for token in self.special if token in text), None):
            text = text.replace(found, f"{found[0]} {found[1:]}")
        return text


TEMPLATE = {"add_generation_prompt": True, "tokenize": False}
