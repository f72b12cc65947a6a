"""Clean a model's answer: remove its thinking, code fence and tags; find the scores in it.

Every function takes time linear in the answer's length: answers are untrusted, and a slow pattern
would block all other rows.
"""

import re

# Every run of digits and points, matched once.
NUMBER = re.compile(r"[\d.]+")
SCORE = re.compile(r"0(?:\.[0-9]+)?|1(?:\.0+)?|\.[0-9]+")


def without_thinking(text: str) -> str:
    """Remove a leading <think> block, which some servers leave in a reasoning model's answer."""
    text = text.strip()
    if not text.startswith("<think>"):
        return text
    # An unfinished block stays: the filters then refuse the answer.
    before, end, after = text.partition("</think>")
    return after.strip() if end else before


def without_fence(text: str) -> str:
    """Remove a Markdown code fence around the answer, which servers without JSON schemas add."""
    text = text.strip()
    # Six backticks are the shortest fence: an opening and a closing one.
    if len(text) < 6 or not (text.startswith("```") and text.endswith("```")):
        return text
    return text[3:-3].removeprefix("json").strip()


def strip_wrapping(text: str, part: str) -> str:
    """Remove thinking and the section's own tag around an answer; the filters judge all else."""
    text = without_thinking(text)
    return text.removeprefix(f"<{part}>").removesuffix(f"</{part}>").strip()


def scores(text: str) -> list[str]:
    """Find the numbers from 0 to 1 in a text."""
    # A full stop behind a number ends the sentence and is no part of it.
    numbers = (number.rstrip(".") for number in NUMBER.findall(text))
    return [number for number in numbers if SCORE.fullmatch(number)]
