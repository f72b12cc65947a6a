"""Read what a model says: without its thinking, its code fence, its tags; the scores in it.

Every function takes time linear in the answer's length: an answer is data from a stranger, and other rows wait for it.
"""

import re

NUMBER = re.compile(
    r"[\d.]+"
)  # every run of digits and points, read once: linear in the answer's length
SCORE = re.compile(r"0(?:\.[0-9]+)?|1(?:\.0+)?|\.[0-9]+")


def without_thinking(text: str) -> str:
    """Remove a leading <think> block: reasoning models write one where their server has no parser for it."""
    text = text.strip()
    if not text.startswith("<think>"):
        return text
    before, end, after = text.partition("</think>")
    return after.strip() if end else before


def without_fence(text: str) -> str:
    """Remove a Markdown code fence around the whole text, as servers without JSON schemas answer."""
    text = text.strip()
    if len(text) < 6 or not (text.startswith("```") and text.endswith("```")):
        return text
    return text[3:-3].removeprefix("json").strip()


def own_words(text: str, part: str) -> str:
    """An answer without its thinking and without the part's own tag around it; all else stays for the filters."""
    text = without_thinking(text)
    return text.removeprefix(f"<{part}>").removesuffix(f"</{part}>").strip()


def scores(text: str) -> list[str]:
    """Find the numbers from 0 to 1 in a text."""
    numbers = (number.rstrip(".") for number in NUMBER.findall(text))
    return [number for number in numbers if SCORE.fullmatch(number)]
