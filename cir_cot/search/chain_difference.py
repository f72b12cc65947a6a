"""Show two chains side by side as HTML, with the words that differ marked."""

import re
from difflib import SequenceMatcher
from html import escape

from cir_cot.prompts import PARTS, written_parts

WORDS = re.compile(r"(?:\w+|[^\w\s])\s*")  # a word or a sign, with the space after it


def marked(first: str, second: str) -> tuple[str, str]:
    """Return two texts as HTML, each with the words that the other lacks within <mark>; case does not count."""
    words = [WORDS.findall(text.strip()) for text in (first, second)]
    alike = [[word.strip().lower() for word in text] for text in words]
    matcher = SequenceMatcher(None, alike[0], alike[1], autojunk=False)
    # Runs of words, alike or not, in the order of either text.
    left, right = "", ""
    for kind, begin, end, start, stop in matcher.get_opcodes():
        left += _run(words[0][begin:end], kind != "equal")
        right += _run(words[1][start:stop], kind != "equal")
    return left, right


def _run(words: list[str], differs: bool) -> str:
    """Return a run of words as HTML; the space after it is not marked."""
    text = "".join(words)
    inner = text.rstrip()
    if not differs or not inner:
        return escape(text)
    return f"<mark>{escape(inner)}</mark>{text[len(inner) :]}"


def difference(first: str, second: str, names: tuple[str, str]) -> str:
    """Return the sections of two chains side by side as HTML; "" where neither is a chain.

    Args:
        first: an explanation; one that is no chain, as of a reading that writes none, is said so.
        second: the other explanation.
        names: what the columns are called.
    """
    chains = [written_parts(text) for text in (first, second)]
    if not any(chains):
        return ""
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    rows = []
    for part in PARTS:
        texts = [chain.get(part, "") for chain in chains]
        # Nothing is marked beside a section that is not there.
        cells = list(marked(*texts)) if all(texts) else [escape(text) or "–" for text in texts]
        both = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row">{part.capitalize()}</th>{both}</tr>')
    said = "Words that differ are marked." if all(chains) else "Only one of them writes a chain."
    head = f"<thead><tr>{heads}</tr></thead>"
    return (
        f'<h2>Both chains</h2><p class="note">{said}</p>'
        f'<table class="chains">{head}<tbody>{"".join(rows)}</tbody></table>'
    )
