"""What is wrong with a chain, as far as its words tell: a plain list of (name, function), to check and to annotate.

After TRACE (arXiv 2603.02929); numbers that are not the paper's are marked ours. The last step of its filtering, a
verifier model that sees the pictures, asks a teacher; here its answer is read, where an annotation records one.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from cir_cot.prompts import PARTS
from cir_cot.records import Record

TEACHER = ("model", "prompts", "seen_target")


LENGTHS = {
    "reasoning": (16, 256),
    "conclusion": (2, 64),
}  # in tokens; here words and punctuation marks
LONGEST_LOOP, LOOPS = 12, 3  # ours: up to 12 words said 3 times in a row
NGRAM, OCCURRENCES = 6, 3  # ours: 6 words that stand at 3 places
CONFIDENCE = 0.7  # the verifier's must be above it
TAGS = re.compile(
    r"</?(?:caption|reasoning|conclusion)>|<ret>|<\|[^|<>]*\|>|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
)
TARGET = re.compile(r"\b(?:target|second|2nd)\s+(?:image|picture|photo(?:graph)?)\b", re.IGNORECASE)
REFUSAL = re.compile(
    r"\bas an ai\b|\bi(?:'m| am) (?:sorry|unable)\b|\bi (?:cannot|can't|can not|am not able)\b|\bi apologi[sz]e\b",
    re.IGNORECASE,
)
COMMON = re.compile(  # words too common to be salient
    r"the|and|are|has|have|had|with|without|its|his|her|their|this|that|these|those|but|not|was|were|for|from|into|than|"
    r"then|them|they|more|less|most|least|very|much|many|makes?|made|changed?|changes|instead|same|one|two|some|any|all|"
    r"only|just|also|there|shows?|shown|image|picture|photo|add|added|adds|removed?|replaced?|object|different|other|"
    r"similar|like|looks?"
)
REMOVED = re.compile(  # ours: what a text wants gone, up to its next statement, is not looked for in the conclusion
    r"\b(?:remov\w*|without|no|not|delet\w*|eras\w*|drop\w*|los(?:e|es|ing)|lack\w*|fewer|less|(?:instead|rather) "
    r"(?:of|than))\b.*?(?=\b(?:but|is|are|has|have|with|add|make|change)\b|[.;]|$)",
    re.IGNORECASE | re.DOTALL,
)


def blank(record: Record) -> str | None:
    """A part that says nothing."""
    empty = [part for part in PARTS if not getattr(record.cot, part).strip()]
    return f"the {empty[0]} is blank" if empty else None


def tags(record: Record) -> str | None:
    """A part with a tag or a special token in it: the template writes them, each once and in order; or with a NUL."""
    for part in PARTS:
        if found := TAGS.search(getattr(record.cot, part)):
            return f"the {part} holds {found[0]!r}"
    return None


def target_image(record: Record) -> str | None:
    """A chain that speaks of a picture which only the teacher saw."""
    for part in PARTS:
        if found := TARGET.search(getattr(record.cot, part)):
            return f"the {part} mentions the {found[0]!r}"
    return None


def refusal(record: Record) -> str | None:
    """A teacher that declined."""
    for part in PARTS:
        if found := REFUSAL.search(getattr(record.cot, part)):
            return f"the {part} refuses: {found[0]!r}"
    return None


def length(record: Record) -> str | None:
    """Reasoning of 16-256 tokens, a conclusion of 2-64."""
    for part, (least, most) in LENGTHS.items():
        count = size(getattr(record.cot, part))
        if not least <= count <= most:
            return f"the {part} has {count} words and marks, not {least} to {most}"
    return None


def repetition(record: Record) -> str | None:
    """A loop: the same words several times in a row, or a long phrase at several places."""
    for part in PARTS:
        words = re.findall(r"\w+", getattr(record.cot, part).lower())
        for size in range(1, LONGEST_LOOP + 1):
            for start in range(len(words) - LOOPS * size + 1):
                if words[start] != words[start + size]:
                    continue  # what nearly every place says, before anything is copied
                phrase = words[start : start + size]
                if words[start : start + LOOPS * size] == phrase * LOOPS:
                    return f"the {part} says {' '.join(phrase)!r} {LOOPS} times in a row"
        phrases = Counter(
            tuple(words[start : start + NGRAM]) for start in range(len(words) - NGRAM + 1)
        )
        for phrase, count in phrases.most_common(1):
            if count >= OCCURRENCES:
                return f"the {part} says {' '.join(phrase)!r} at {count} places"
    return None


def copied_caption(record: Record) -> str | None:
    """A conclusion that describes the reference again."""
    same = normalised(record.cot.conclusion) == normalised(record.cot.caption)
    return "the conclusion is the caption" if same else None


def salient_word(record: Record) -> str | None:
    """A conclusion without any salient word of what the modification asks for (by their first four letters: ours)."""
    wanted = {word[:4] for word in salient(REMOVED.sub(" ", record.text))}
    said = {word[:4] for word in normalised(record.cot.conclusion).split()}
    return (
        f"the conclusion holds no word of {record.text!r}" if wanted and not wanted & said else None
    )


def verifier(record: Record) -> str | None:
    """A conclusion that the verifier model was not confident of, by the `confidence` its `teacher` entry records."""
    confidence = (record.teacher or {}).get("confidence")
    if confidence is None:
        return None
    if isinstance(confidence, bool) or not isinstance(confidence, (int, float)):
        return f"the verifier's confidence is {confidence!r}, no number"
    return (
        None
        if confidence > CONFIDENCE
        else f"the verifier's confidence is {confidence}, not above {CONFIDENCE}"
    )


FILTERS: list[tuple[str, Callable[[Record], str | None]]] = [
    ("blank", blank),
    ("tags", tags),
    ("target_image", target_image),
    ("refusal", refusal),
    ("length", length),
    ("repetition", repetition),
    ("copied_caption", copied_caption),
    ("salient_word", salient_word),
    ("verifier", verifier),
]


def duplicates(records: Sequence[Record]) -> list[tuple[Record, Record]]:
    """(record, the first such one) of records that say the same conclusion for the same reference and text."""
    first: dict[tuple[str, str, str], Record] = {}
    found = []
    for record in records:
        key = (record.reference, normalised(record.text), normalised(record.cot.conclusion))
        if key in first:
            found.append((record, first[key]))
        first.setdefault(key, record)
    return found


def size(text: str) -> int:
    """Count words and punctuation marks: near enough to tokens for a limit, and the same with every tokenizer."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def salient(text: str) -> list[str]:
    """The words of a text that say something: three letters or more, none of COMMON."""
    return [
        word for word in normalised(text).split() if len(word) > 2 and not COMMON.fullmatch(word)
    ]


def normalised(text: str) -> str:
    """Lower case, words only, one space between them."""
    return " ".join(re.findall(r"\w+", text.lower()))


def teachers(records: Iterable[Record]) -> list[tuple[dict, int]]:
    """({"model", "prompts", "seen_target"}, count of chains) of every teacher; None where nothing is recorded."""
    told = Counter(tuple((r.teacher or {}).get(key) for key in TEACHER) for r in records if r.cot)
    return [(dict(zip(TEACHER, facts, strict=True)), count) for facts, count in told.most_common()]


def problems(record: Record) -> dict[str, str]:
    """{filter: what it says} of the filters that a chain does not pass."""
    found = {name: problem(record) for name, problem in FILTERS}
    return {name: what for name, what in found.items() if what}
