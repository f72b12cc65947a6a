"""Filters of chains: find what is wrong with a chain from its text alone.

The filters follow TRACE (arXiv 2603.02929); numbers that are not the paper's are marked "ours".
TRACE's last filter asks a verifier model that sees the pictures: annotation asks it, and records
the score in `teacher`; the filter here compares that score with the threshold.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cir_cot.prompts import PARTS
from cir_cot.records import Cot, Record

TEACHER = ("model", "prompts", "seen_target")

# Limits in tokens, counted here as words and punctuation marks.
LENGTHS = {"reasoning": (16, 256), "conclusion": (2, 64)}
LONGEST_LOOP = 12  # ours: up to 12 words ...
LOOPS = 3  # ... said 3 times in a row
NGRAM = 6  # ours: 6 words ...
OCCURRENCES = 3  # ... that stand at 3 places
CONFIDENCE = 0.7  # the verifier's confidence must be above it
# Tags of the chat template, special tokens, control characters.
TAGS = re.compile(
    r"</?(?:caption|reasoning|conclusion)>|<ret>|<\|[^|<>]*\|>|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
)
# Words for the target picture.
TARGET = re.compile(r"\b(?:target|second|2nd)\s+(?:image|picture|photo(?:graph)?)\b", re.IGNORECASE)
# Phrases of a model that declines.
REFUSAL = re.compile(
    r"\bas an ai\b|\bi(?:'m| am) (?:sorry|unable)\b|\bi (?:cannot|can't|can not|am not able)\b|\bi apologi[sz]e\b",
    re.IGNORECASE,
)
# Words too common to be salient.
COMMON = re.compile(
    r"the|and|are|has|have|had|with|without|its|his|her|their|this|that|these|those|but|not|was|were|for|from|into|than|"
    r"then|them|they|more|less|most|least|very|much|many|makes?|made|changed?|changes|instead|same|one|two|some|any|all|"
    r"only|just|also|there|shows?|shown|image|picture|photo|add|added|adds|removed?|replaced?|object|different|other|"
    r"similar|like|looks?"
)
# Ours: what a text wants removed, up to its next statement, is not expected in the conclusion.
REMOVED = re.compile(
    r"\b(?:remov\w*|without|no|not|delet\w*|eras\w*|drop\w*|los(?:e|es|ing)|lack\w*|fewer|less|(?:instead|rather) "
    r"(?:of|than))\b.*?(?=\b(?:but|is|are|has|have|with|add|make|change)\b|[.;]|$)",
    re.IGNORECASE | re.DOTALL,
)


def chain(record: Record) -> Cot:
    """Return the chain of a record that has one, as all records here do."""
    assert record.cot is not None, f"record {record.id!r} has no chain"
    return record.cot


def blank(record: Record) -> str:
    """Find a section without text."""
    empty = [part for part in PARTS if not getattr(chain(record), part).strip()]
    return f"the {empty[0]} is blank" if empty else ""


def tags(record: Record) -> str:
    """Find a tag, a special token or a control character: only the chat template may write tags."""
    for part in PARTS:
        if found := TAGS.search(getattr(chain(record), part)):
            return f"the {part} holds {found[0]!r}"
    return ""


def target_image(record: Record) -> str:
    """Find a mention of the target picture, which only the teacher saw."""
    for part in PARTS:
        if found := TARGET.search(getattr(chain(record), part)):
            return f"the {part} mentions the {found[0]!r}"
    return ""


def refusal(record: Record) -> str:
    """Find a phrase with which a teacher declines."""
    for part in PARTS:
        if found := REFUSAL.search(getattr(chain(record), part)):
            return f"the {part} refuses: {found[0]!r}"
    return ""


def length(record: Record) -> str:
    """Find reasoning or a conclusion outside its LENGTHS."""
    for part, (least, most) in LENGTHS.items():
        count = size(getattr(chain(record), part))
        if not least <= count <= most:
            return f"the {part} has {count} words and marks, not {least} to {most}"
    return ""


def repetition(record: Record) -> str:
    """Find a section that repeats itself: a loop, or a long phrase at several places."""
    for part in PARTS:
        # Punctuation does not interrupt a repetition.
        words = re.findall(r"\w+", getattr(chain(record), part).lower())
        if loop := loop_in(words):
            return f"the {part} says {loop!r} {LOOPS} times in a row"
        # A long phrase that returns, not necessarily in a row.
        starts = range(len(words) - NGRAM + 1)
        phrases = Counter(tuple(words[start : start + NGRAM]) for start in starts)
        for phrase, count in phrases.most_common(1):
            if count >= OCCURRENCES:
                return f"the {part} says {' '.join(phrase)!r} at {count} places"
    return ""


def loop_in(words: list[str]) -> str:
    """Return the shortest phrase that stands LOOPS times in a row; "" if there is none."""
    for size in range(1, LONGEST_LOOP + 1):
        for start in range(len(words) - LOOPS * size + 1):
            # Nearly every place ends here, before anything is copied.
            if words[start] != words[start + size]:
                continue
            phrase = words[start : start + size]
            if words[start : start + LOOPS * size] == phrase * LOOPS:
                return " ".join(phrase)
    return ""


def copied_caption(record: Record) -> str:
    """Find a conclusion that repeats the caption."""
    cot = chain(record)
    same = normalised(cot.conclusion) == normalised(cot.caption)
    return "the conclusion is the caption" if same else ""


def salient_word(record: Record) -> str:
    """Find a conclusion without any salient word of what the modification asks for."""
    # Ours: words are compared by their first four letters, so that inflections match.
    wanted = {word[:4] for word in salient(REMOVED.sub(" ", record.text))}
    said = {word[:4] for word in normalised(chain(record).conclusion).split()}
    missing = wanted and not wanted & said
    return f"the conclusion holds no word of {record.text!r}" if missing else ""


def verifier(record: Record) -> str:
    """Find a recorded verifier score that is not above CONFIDENCE."""
    confidence = (record.teacher or {}).get("confidence")
    if confidence is None:
        return ""
    # JSON's true is a number for Python.
    if isinstance(confidence, bool) or not isinstance(confidence, (int, float)):
        return f"the verifier's confidence is {confidence!r}, no number"
    if confidence > CONFIDENCE:
        return ""
    return f"the verifier's confidence is {confidence}, not above {CONFIDENCE}"


@dataclass(frozen=True)
class Filter:
    """A filter of chains.

    Attributes:
        name: as reports and the quarantine say it.
        description: what it leaves out, as the dataset card says it.
        problem: returns what is wrong with a record's chain; "" if nothing is.
    """

    name: str
    description: str
    problem: Callable[[Record], str]


# In the order in which annotation applies them.
FILTERS = [
    Filter("blank", "A section without text.", blank),
    Filter(
        "tags",
        "A section with a tag, a special token or a control character in it.",
        tags,
    ),
    Filter(
        "target_image",
        "A chain that mentions the target picture, which only the teacher saw.",
        target_image,
    ),
    Filter("refusal", "A teacher that declined to answer.", refusal),
    Filter("length", "Reasoning outside 16-256 tokens, or a conclusion outside 2-64.", length),
    Filter(
        "repetition",
        "A loop: the same words several times in a row, or a long phrase at several places.",
        repetition,
    ),
    Filter("copied_caption", "A conclusion that describes the reference again.", copied_caption),
    Filter(
        "salient_word",
        "A conclusion without any salient word of what the modification asks for.",
        salient_word,
    ),
    Filter(
        "verifier",
        "A conclusion that the verifier model was not confident of, by its recorded score.",
        verifier,
    ),
]


def duplicates(records: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Find records that repeat reference, text and conclusion: (record, the first one)."""
    first: dict[tuple[str, str, str], Record] = {}
    found = []
    for record in records:
        conclusion = normalised(chain(record).conclusion)
        key = (record.reference, normalised(record.text), conclusion)
        # The first one stays, later ones are duplicates.
        if key in first:
            found.append((record, first[key]))
        first.setdefault(key, record)
    return found


def size(text: str) -> int:
    """Count words and punctuation marks: close to tokens, and the same with every tokenizer."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def salient(text: str) -> list[str]:
    """List the salient words of a text: three letters or more, none of COMMON."""
    words = normalised(text).split()
    return [word for word in words if len(word) > 2 and not COMMON.fullmatch(word)]


def normalised(text: str) -> str:
    """Return the words of a text in lower case, with one space between them."""
    return " ".join(re.findall(r"\w+", text.lower()))


def teachers(records: Iterable[Record]) -> list[tuple[dict, int]]:
    """Count the chains of every teacher: (its TEACHER keys, None if not recorded; chains)."""
    counts: Counter[tuple] = Counter()
    for record in records:
        if record.cot:
            counts[tuple((record.teacher or {}).get(key) for key in TEACHER)] += 1
    return [
        (dict(zip(TEACHER, facts, strict=True)), count) for facts, count in counts.most_common()
    ]


def problems(record: Record) -> dict[str, str]:
    """Return {filter's name: what is wrong} of the filters that a chain does not pass."""
    found = {one.name: one.problem(record) for one in FILTERS}
    return {name: what for name, what in found.items() if what}
