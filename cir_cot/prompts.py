"""Every string a model reads or writes, in one place, under one version.

A chain has three parts, caption -> reasoning -> conclusion (CIR-CoT, arXiv 2510.08003); the tags below and the
retrieval token behind them are our choice, because the paper's are not public. The tags are ordinary text, so a
chain survives any tokenizer; only the retrieval token is an added token.
"""

import re

from .records import Cot, InputError

PROMPTS_VERSION = "1"
RET = "<ret>"
PARTS = ("caption", "reasoning", "conclusion")
CHAIN_START = "<caption>"

QUERY = "Modify this picture: {text}\nGive the caption, the reasoning and the conclusion."
TARGET = "Represent this picture."

# What the tiny base is taught before it ever sees a chain (train/tiny_base.py).
DESCRIBE = "Describe this picture."
SELECT = "Which objects of this picture are meant by: {text}"
APPLY = "Describe this picture after the modification: {text}"

_CHAIN = re.compile("".join(rf"\s*<{part}>(?P<{part}>.*?)</{part}>" for part in PARTS) + r"\s*", re.DOTALL)
_TAG = re.compile(r"</?(?:caption|reasoning|conclusion)>|<ret>")


def query_prompt(text: str) -> str:
    """Return the instruction of a composed query; `text` is the user's modification, taken as it is."""
    return QUERY.replace("{text}", text)


def cot_to_text(cot: Cot) -> str:
    """Write a chain as tagged text, without the retrieval token; InputError if a part holds a tag of its own.

    Round trip: ``text_to_cot(cot_to_text(cot)) == cot`` for every chain whose parts have no outer white space.
    """
    for part in PARTS:
        if found := _TAG.search(getattr(cot, part)):
            raise InputError(f"the {part} of a chain holds {found.group()!r}; remove the tag from the annotation")
    return "".join(f"<{part}>{getattr(cot, part)}</{part}>" for part in PARTS)


def text_to_cot(text: str) -> Cot | None:
    """Read tagged text as a chain; None when a part is missing, empty, repeated or out of order."""
    match = _CHAIN.fullmatch(text)
    if match is None:
        return None
    parts = {part: match[part].strip() for part in PARTS}
    if any(not value or _TAG.search(value) for value in parts.values()):
        return None
    return Cot(**parts)
