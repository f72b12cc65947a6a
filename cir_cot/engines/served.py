"""Chain retriever whose chains a serving engine writes: the `full` reading of `--engine vllm|sglang`.

1. Each query's prompt goes to the engine, which serves the export of the same retriever.
2. A valid chain is encoded by the local model with `embed_with`, unless the engine returned the hidden state.
3. A chain that the engine had to truncate, or that is not valid, is written again by the local model, which keeps the
   chain format; the row is flagged.

Everything else, targets and queries without a chain, is computed locally. An engine that serves something else is
refused: prompts of another length, answers that end at another token, and states unlike the local ones.
"""

import asyncio
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from PIL import Image
from torch import Tensor

from cir_cot.chains.openai_client import check_address
from cir_cot.chains.openai_servers import OpenAIServers
from cir_cot.chains.teacher import Unanswered
from cir_cot.errors import InputError
from cir_cot.heads.cot import CotRetriever
from cir_cot.heads.grammar import Grammar
from cir_cot.models.resizing import picture_bounds, smart_size, token_side
from cir_cot.prompts import PARTS, QUERY, RET, query_prompt, text_to_cot
from cir_cot.records import Cot
from cir_cot.retriever import Flag, QueryOutput, Retriever, inference

from .chat_server import (
    ENGINES,
    ChainAnswer,
    Engine,
    chat_request,
    encode_png,
    read_answer,
    without_special_tokens,
)
from .states import check_states, embed_states

# Tags take about 25 tokens of Qwen's vocabulary, beside the sections' budget.
TAG_TOKENS = 64


@dataclass(frozen=True)
class Prompt:
    """One query as the engine gets it.

    Attributes:
        picture: the reference, already at the size that the processor chooses, as a data URL.
        text: the instruction, without special tokens.
        tokens: length of the complete prompt, picture and the chain's start included.
    """

    picture: str
    text: str
    tokens: int


class ServedRetriever:
    """Retriever that writes its chains on a server and computes everything else with a local chain head.

    Args:
        local: the retriever that was exported.
        engine: a name of ENGINES.
        urls: address of each server of the export.
        model: as the servers name the export.
        key: the API key.

    Example:
        retriever = serve_with(load_retriever("runs/model"), "vllm", ["http://localhost:8000/v1"], "runs/merged")
        output = retriever.encode_query([image], ["the same, but red"])
    """

    readings = ("full", "fast")

    def __init__(
        self, local: CotRetriever, engine: str, urls: Sequence[str], model: str, key: str = ""
    ):
        self.local = local
        self.engine: Engine = ENGINES[engine]
        self.urls = list(urls)
        self.model = model
        self.key = key
        self.dim = local.dim
        self.depth = local.depth
        self.reading = "full"
        self._encoder = local.encoder("left")
        tokenizer = self._encoder.tokenizer
        self._specials = [str(token) for token in tokenizer.get_added_vocab()]
        start = Grammar(self._encoder, PARTS, local.max_new_tokens).start
        self._start_ids = list(start)
        self._start = cast(str, tokenizer.decode(start))  # a list only for a list of rows
        self._states_checked = False

    def conditions(self) -> dict:
        """Return what numbers depend on beside the weights: the local head's, and the engine."""
        return {**self.local.conditions(), "engine": self.engine.name}

    def encode_target(self, images: Sequence[Image.Image]) -> Tensor:
        """Encode N candidate images locally -> (N, D)."""
        with inference(self.local):
            return self.local.encode_target(images)

    def embed_with(
        self, images: Sequence[Image.Image], texts: Sequence[str], chains: Sequence[Cot]
    ) -> QueryOutput:
        """Encode B composed queries locally with supplied chains."""
        with inference(self.local):
            return self.local.embed_with(images, texts, chains)

    def stream(
        self, images: Sequence[Image.Image], texts: Sequence[str], reading: str | None = None
    ) -> Iterator[QueryOutput]:
        """Yield the complete output: chains arrive from the server at their end."""
        yield self.encode_query(images, texts, reading)

    def encode_query(
        self, images: Sequence[Image.Image], texts: Sequence[str], reading: str | None = None
    ) -> QueryOutput:
        """Encode B composed queries; `reading` is one of `readings`.

        Raises:
            InputError: the server cannot be reached, or serves something else than this retriever's export.
        """
        reading = reading or self.reading
        if reading not in self.readings:
            names = ", ".join(self.readings)
            raise InputError(
                f"reading {reading!r} is not one of {names}, which {self.engine.name} can write; use --engine "
                "transformers"
            )
        with inference(self.local):
            if reading == "fast" or not images:
                return self.local.encode_query(images, texts, "fast")
            # One text for the engine and for the local model: without special tokens.
            texts = [without_special_tokens(text, self._specials) for text in texts]
            answers = asyncio.run(self._ask_all(images, texts))
            return self._encode(images, texts, answers)

    def _encode(
        self, images: Sequence[Image.Image], texts: Sequence[str], answers: Sequence[ChainAnswer]
    ) -> QueryOutput:
        """Encode queries with the chains that were answered; decode the others locally."""
        written = [self._start + answer.text for answer in answers]
        chains = [text_to_cot(text) for text in written]
        vectors = torch.zeros(len(images), self.dim)  # (B, D)
        flags: list[str] = list(map(self._problem, answers, chains))
        # Rows whose chain is valid: from the engine's states, or in one local pass.
        good = [row for row, flag in enumerate(flags) if not flag]
        if good:
            vectors[good] = self._vectors(
                [images[row] for row in good],
                [texts[row] for row in good],
                [cast(Cot, chains[row]) for row in good],
                [answers[row].state for row in good],
            )
        # All other rows.
        other = [row for row, flag in enumerate(flags) if flag]
        if other:
            output = self.local.encode_query(
                [images[row] for row in other], [texts[row] for row in other], "full"
            )
            vectors[other] = output.embeddings
            for row, chain in zip(other, output.explanations, strict=True):
                written[row] = chain
        return QueryOutput(vectors, written, flags)

    def _problem(self, answer: ChainAnswer, chain: Cot | None) -> Flag:
        """Return why a row has to be decoded locally, an empty flag if its chain is valid."""
        name = self.engine.name
        if not answer.ended:
            return Flag("missing_token", f"no retrieval token from {name}: decoded locally")
        if chain is None:
            return Flag("forced_form", f"chain of {name} is not valid: decoded locally")
        return Flag("", "")

    def _vectors(
        self,
        images: Sequence[Image.Image],
        texts: Sequence[str],
        chains: Sequence[Cot],
        states: Sequence[Tensor | None],
    ) -> Tensor:
        """Return the embeddings (K, D) of valid chains."""
        given = [state for state in states if state is not None]
        if not self.engine.has_states:
            return self.local.embed_with(images, texts, chains).embeddings
        if len(given) < len(states):
            raise InputError(
                f"{self.engine.name} returned {len(given)} hidden states for {len(states)} chains; start it with "
                "--enable-return-hidden-states --return-hidden-states-mode last"
            )
        vectors = embed_states(self.local, given, self.engine.name)
        # The first batch is computed both ways: states may be of another layer, token or model.
        if not self._states_checked:
            local = self.local.embed_with(images, texts, chains).embeddings
            check_states(vectors, local, self.depth, self.engine.name)
            self._states_checked = True
        return vectors

    async def _ask_all(
        self, images: Sequence[Image.Image], texts: Sequence[str]
    ) -> list[ChainAnswer]:
        """Ask for all chains at once: the engine batches them."""
        # Connections belong to the event loop of one call.
        servers = OpenAIServers(self.model, self.urls, self.key)
        tasks = []
        for image, text in zip(images, texts, strict=True):
            tasks.append(asyncio.create_task(self._ask(servers, self._prompt(image, text))))
        # The first error ends the others, too.
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await servers.close()

    def _prompt(self, image: Image.Image, text: str) -> Prompt:
        """Prepare a query: its picture at the processor's size, and its instruction."""
        processor = self._encoder.processor.image_processor
        side = token_side(processor)
        height, width = smart_size(image.height, image.width, side, **picture_bounds(processor))
        picture = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        prompt = query_prompt(text, QUERY)
        # Count the tokens of the complete prompt.
        visual = processor.get_number_of_image_patches(height, width) // processor.merge_size**2
        inputs, _ = self._encoder.tokenise([visual], [prompt], [self._start_ids])
        return Prompt(encode_png(picture), prompt, inputs["input_ids"].shape[1])

    async def _ask(self, servers: OpenAIServers, prompt: Prompt) -> ChainAnswer:
        """Ask for one chain and, where the engine has them, the state of the embedding."""
        limit = self.local.max_new_tokens + TAG_TOKENS
        answer = await self._send(servers, prompt, self._start, limit, prompt.tokens)
        # The state that produced the retrieval token is the one before it. The state at it takes one more token.
        if not answer.ended or not self.engine.has_states or self.local.readout == "before_ret":
            return answer
        chain = self._start + answer.text
        tokens = prompt.tokens - len(self._start_ids) + len(self._encoder.plain_ids([chain])[0]) + 1
        after = await self._send(servers, prompt, chain + RET, 1, tokens)
        return replace(answer, state=after.state)

    async def _send(
        self, servers: OpenAIServers, prompt: Prompt, start: str, limit: int, tokens: int
    ) -> ChainAnswer:
        """Send one request and check its answer."""
        ret_id = self._encoder.ret_id
        body = chat_request(self.model, prompt.picture, prompt.text, start, limit, ret_id)
        if self.engine.has_states:
            body["return_hidden_states"] = "last"
        try:
            response, _ = await servers.complete(body, tokens, limit)
        except Unanswered as error:
            raise InputError(f"{self.engine.name} wrote no chain: {error.reason}") from error
        return read_answer(self.engine, response, tokens, ret_id, RET)


def serve_with(local: Retriever, engine: str, urls: Sequence[str], model: str) -> ServedRetriever:
    """Let an engine write the chains of a loaded retriever.

    Args:
        local: a chain head.
        engine: a name of ENGINES.
        urls: servers of its export; the API key is read from OPENAI_API_KEY.
        model: as the servers name the export.
    """
    if not isinstance(local, CotRetriever):
        raise InputError(f"--engine {engine}: this retriever writes no chains; leave it out")
    key = os.environ.get("OPENAI_API_KEY", "")
    # An address that is none is refused now, not at the first query.
    for url in urls:
        check_address("engine-url", url, lambda text: text)
    return ServedRetriever(local, engine, urls, model, key)
