"""Build Qwen2.5-VL's own tokenizer without the hub, from the vocabulary that Alibaba's `dashscope` package ships.

Lengths of chains, budgets and the spelling of tags depend on the vocabulary. With this one they are those of the real
checkpoints, on a machine that downloads nothing: 151,643 words and bytes, then 22 added tokens at their published ids.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from cir_cot import compat  # noqa: F401  # isort: skip
import transformers
from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

from cir_cot.errors import InputError

from .special_tokens import named_tokenizer
from .tiny_qwen import CHAT_TEMPLATE

# How Qwen2 cuts a text into pieces, of its tokenizer.json: numbers are single digits.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# In the order of their ids, from 151643 on.
ADDED = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
INSTALL = "pip install 'cir-cot[real]'"


def vocabulary_file() -> Path | None:
    """Return the file of Qwen's vocabulary, None where dashscope is not installed."""
    # Found without importing the package, which would load a web client.
    spec = find_spec("dashscope")
    places = spec.submodule_search_locations if spec else None
    for place in places or ():
        file = Path(place) / "resources" / "qwen.tiktoken"
        if file.is_file():
            return file
    return None


@cache
def _converted(file: Path) -> str:
    """Return the tokenizer as tokenizers' JSON; the conversion takes seconds."""
    converter = TikTokenConverter(str(file), pattern=PIECES, extra_special_tokens=list(ADDED))
    return converter.converted().to_str()


def qwen_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Return Qwen2.5-VL's tokenizer of 151,665 entries, with Qwen's form of turns and no system prompt.

    Raises:
        InputError: dashscope is not installed.

    Example:
        qwen_tokenizer()("Hello world!")["input_ids"]  # [9707, 1879, 0]
    """
    file = vocabulary_file()
    if file is None:
        raise InputError(f"Qwen's vocabulary needs the package dashscope: {INSTALL}")
    return named_tokenizer(Tokenizer.from_str(_converted(file)), CHAT_TEMPLATE)
