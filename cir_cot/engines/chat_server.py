"""The chat protocol of vLLM and SGLang as far as chains need it: requests, answers and their checks.

Both engines serve an export (`cir-cot export`) behind the OpenAI API. They differ in two fields: how they report the
token that ended an answer, and whether they can return a hidden state.

- vLLM reports `stop_reason`. It can write hidden states to files on its own machine only, so they are not used.
- SGLang reports `matched_stop`. Started with --enable-return-hidden-states and --return-hidden-states-mode last, it
  returns the state that produced the last token, after the final norm.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cir_cot.chains.openai_messages import answer_text, is_count
from cir_cot.errors import InputError, shown


@dataclass(frozen=True)
class Engine:
    """What distinguishes one engine's protocol.

    Attributes:
        name: as `--engine` and results spell it.
        stop_field: field of a choice that holds the id of the token which ended the answer.
        has_states: whether a response can hold a hidden state.
    """

    name: str
    stop_field: str
    has_states: bool


ENGINES = {
    "vllm": Engine("vllm", "stop_reason", has_states=False),
    "sglang": Engine("sglang", "matched_stop", has_states=True),
}


@dataclass(frozen=True)
class ChainAnswer:
    """An engine's answer to one query.

    Attributes:
        text: the text after the given start, without the retrieval token.
        ended: whether the retrieval token ended it; otherwise it was truncated.
        state: hidden state (H,) that produced the last token, or None.
    """

    text: str
    ended: bool
    state: Tensor | None


def encode_png(picture: Image.Image) -> str:
    """Encode a picture without loss and without metadata -> a data URL."""
    clean = picture.convert("RGB")
    clean.info = {}
    file = io.BytesIO()
    clean.save(file, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def chat_request(
    model: str, picture: str, prompt: str, start: str, max_tokens: int, ret_id: int
) -> dict:
    """Return the body of a request whose answer continues `start` up to the retrieval token.

    Args:
        model: as the server names it.
        picture: data URL.
        prompt: the user's text; it must spell no special token.
        start: beginning of the answer.
        max_tokens: most tokens of the rest.
        ret_id: id of the retrieval token.
    """
    user = [
        {"type": "image_url", "image_url": {"url": picture}},
        {"type": "text", "text": prompt},
    ]
    return {
        "model": model,
        "messages": [
            {"role": "user", "content": user},
            {"role": "assistant", "content": start},
        ],
        # The answer continues the assistant's turn instead of opening another one.
        "add_generation_prompt": False,
        "continue_final_message": True,
        "max_tokens": max_tokens,
        "temperature": 0.0,
        "stop_token_ids": [ret_id],
        "skip_special_tokens": False,
    }


def read_answer(
    engine: Engine, response: dict, prompt_tokens: int, ret_id: int, ret: str
) -> ChainAnswer:
    """Check a server's response and return the answer.

    Args:
        engine: whose protocol the server speaks.
        response: its JSON.
        prompt_tokens: length of the prompt, picture and start included, as the retriever counts it.
        ret_id: id of the retrieval token.
        ret: its text.

    Raises:
        InputError: the prompt had another length, or the answer ended at another token than the retrieval token: the
            server runs another model, template or picture size.
    """
    # A prompt of another length is another prompt.
    counted = (response.get("usage") or {}).get("prompt_tokens")
    if not is_count(counted) or counted != prompt_tokens:
        raise InputError(
            f"{engine.name} counts {shown(counted)} prompt tokens where the retriever counts {prompt_tokens}; "
            "serve the export of this retriever, with its own chat template and processor files"
        )
    text, complete = answer_text(response)
    choice = response["choices"][0]
    if not complete:
        return ChainAnswer(text, ended=False, state=_state(choice))
    stopped = choice.get(engine.stop_field)
    if stopped != ret_id:
        raise InputError(
            f"{engine.name} ended an answer at {shown(stopped)} and not at the retrieval token {ret} ({ret_id}): "
            f"{shown(text[-80:])}; serve the export of this retriever"
        )
    # Some versions keep the stop token in the text.
    return ChainAnswer(text.removesuffix(ret), ended=True, state=_state(choice))


def _state(choice: dict[str, Any]) -> Tensor | None:
    """Return the hidden state of a choice, None where there is none."""
    values = choice.get("hidden_states")
    if values is None:
        return None
    # A list of one state is accepted as well: versions differ.
    if isinstance(values, list) and len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    if not isinstance(values, list) or not all(_is_number(value) for value in values):
        raise InputError(
            "the server's hidden_states are no list of numbers; start it with --return-hidden-states-mode last"
        )
    return torch.tensor(values, dtype=torch.float32)  # (H,)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def without_special_tokens(text: str, specials: Sequence[str]) -> str:
    """Break up what a server would read as a special token: "<ret>" becomes "< ret>"."""
    for token in sorted(specials, key=len, reverse=True):
        text = text.replace(token, f"{token[:1]} {token[1:]}")
    return text
