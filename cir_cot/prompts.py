"""Define every string that a model reads or writes, in one place, under one version.

A chain has three sections, caption, reasoning and conclusion (CIR-CoT, arXiv 2510.08003). The tags
around them and the retrieval token after them are our choice, because the paper's are not public.
The tags are ordinary text, so any tokenizer keeps a chain intact; only the retrieval token is an
added token.
"""

import re

from .errors import InputError
from .records import Cot

PROMPTS_VERSION = "1"  # changes with any of the strings; results and caches name it
RET = "<ret>"  # the retrieval token: its hidden state becomes the embedding of a query
PARTS = ("caption", "reasoning", "conclusion")

# ---- prompts of retrieval; {text} is the modification

QUERY = "Modify this picture: {text}\nGive the caption, the reasoning and the conclusion."
TARGET = "Represent this picture."
# A query of a head that writes no chain.
COMPOSE = "Represent this picture after the modification: {text}"

# ---- prompts of a reranker, before and after the candidate picture; {chain} is tagged text or nothing

JUDGE = "Modify this picture: {text}\n{chain}Is the next picture the wanted one?"
JUDGE_ANSWER = "Answer yes or no."
ANSWERS = ("yes", "no")

# ---- prompts of the tiny base's curriculum, before it sees a chain (train/tiny_base.py)

DESCRIBE = "Describe this picture."
DESCRIPTION = "Represent this description: {text}"
SELECT = "Which objects of this picture are meant by: {text}"
DESCRIBE_SELECT = "Describe this picture, then say which objects are meant by: {text}"
APPLY = "Describe this picture after the modification: {text}"
REVISE = "Describe this picture after these notes: {text}"

# ---- prompts of a teacher (data_gen/annotate.py)

ANNOTATOR = (
    "You annotate queries for picture retrieval: a reference picture and a request that says how the wanted picture "
    "differs from it. Answer in plain sentences, without headings, lists, tags or remarks about yourself."
)
ASK = {
    "caption": "Describe this picture in one or two sentences: what it shows, with the kind, colours, pattern, shape "
    "and parts that matter to somebody who looks for a similar one.",
    "reasoning": "Somebody looks for another picture, like this one, with this request: {text}\nReason in two to four "
    "sentences, at least 20 words: what is kept, what is removed, what is changed and into what, what is added.",
    "conclusion": "Now describe the wanted picture in one concrete sentence of at most 40 words, in the words of the "
    "request where they fit. Whoever reads that sentence alone must be able to find it.",
    "joint": "Somebody looks for another picture, like this one, with this request: {text}\nAnswer with a JSON object "
    "of three strings. caption: the picture as it is, in one or two sentences, with the kind, colours, pattern, shape "
    "and parts that matter. reasoning: in two to four sentences, at least 20 words, what is kept, removed, changed and "
    "added. conclusion: the wanted picture in one concrete sentence of at most 40 words, in the words of the request "
    "where they fit; whoever reads that sentence alone must be able to find it.",
}
# Added where the teacher sees the target, too.
SEEN = (
    "The picture before these words is what was found for the request. Reason towards it, but write as if you knew "
    "only the first picture and the request: never mention that you see it, never speak of a target or a second "
    "picture."
)
# After an answer that a filter refused.
ASK_AGAIN = "This answer cannot be used ({reason}). Write it again, without that fault."
# Asked of the verifier.
ASK_SCORE = (
    "The first picture with the request: {text}\nThe second picture is what was found. Somebody describes what was "
    "wanted: {conclusion}\nHow well does this description fit the request and the second picture? Answer with one "
    "number from 0 (not at all) to 1 (fully) and nothing else."
)

# ---- parsing

_CHAIN = re.compile(
    "".join(rf"\s*<{part}>(?P<{part}>.*?)</{part}>" for part in PARTS) + r"\s*", re.DOTALL
)
TAG = re.compile(r"</?(?:caption|reasoning|conclusion)>|<ret>")


def query_prompt(text: str, prompt: str = QUERY) -> str:
    """Return the instruction of a composed query; the modification is inserted unchanged."""
    return prompt.replace("{text}", text)


def judge_prompt(text: str, chain: Cot | None) -> str:
    """Return what a reranker reads before the candidate picture: modification and chain."""
    # split first: a text that contains "{chain}" must stay as it is
    before, after = JUDGE.split("{chain}")
    written = "" if chain is None else cot_to_text(chain) + "\n"
    return before.replace("{text}", text) + written + after


def annotation_prompt(stage: str, text: str = "") -> str:
    """Return the question of a stage of annotation, a key of ASK, about a modification."""
    return ASK[stage].replace("{text}", text)


def score_prompt(text: str, conclusion: str) -> str:
    """Return the verifier's question about a conclusion."""
    # split first: a text that contains "{conclusion}" must stay as it is
    before, after = ASK_SCORE.split("{conclusion}")
    return before.replace("{text}", text) + conclusion + after


def cot_to_text(cot: Cot) -> str:
    """Return a chain as tagged text, without the retrieval token.

    For every chain whose sections have no outer white space, `text_to_cot(cot_to_text(cot)) ==
    cot`.

    Raises:
        InputError: a section contains a tag.

    Example:
        >>> cot_to_text(Cot("a red dress", "It becomes blue.", "a blue dress"))
        '<caption>a red dress</caption><reasoning>It becomes blue.</reasoning><conclusion>a blue
        dress</conclusion>'
    """
    for part in PARTS:
        if found := TAG.search(getattr(cot, part)):
            raise InputError(
                f"the {part} of a chain holds {found.group()!r}; remove the tag from the annotation"
            )
    return "".join(f"<{part}>{getattr(cot, part)}</{part}>" for part in PARTS)


def written_parts(text: str) -> dict[str, str]:
    """Return {section: text} of tagged text that may be incomplete, as while it is decoded."""
    found = re.finditer(rf"<({'|'.join(PARTS)})>(.*?)(?:</\1>|$)", text, re.DOTALL)
    return {match[1]: match[2] for match in found}


def text_to_cot(text: str) -> Cot | None:
    """Return the chain of tagged text; None if a section is missing, empty, repeated or misplaced."""
    match = _CHAIN.fullmatch(text)
    if match is None:
        return None
    parts = {part: match[part].strip() for part in PARTS}
    if any(not value or TAG.search(value) for value in parts.values()):
        return None
    return Cot(**parts)
