"""Make queries from pairs of images whose labels or captions differ a little.

Either every image has labels (columns of a CSV file), or every image has one caption. The text of a
query states what differs; every image with exactly the wanted description is a target.
`triplet_files` reads descriptions and writes a folder dataset.
"""

import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

from cir_cot.records import Cot, Record

from .edit_sentences import Change, Wording

CAPTION = "caption"  # the column that makes a file one of captions; every other column is a label
MAX_COMPARED = 50  # descriptions compared with a reference: those that share most with it

# What still counts as one edit. The numbers are ours.
MAX_LABELS_CHANGED = 2
MAX_PARTS_CHANGED = 3  # of a caption: runs of words that are replaced, added or removed
MIN_ALIKE = 0.5  # SequenceMatcher's ratio of two captions' words

# Conjunctions that would follow "with" or "without".
LEADING_CONJUNCTION = re.compile(r"^(?:(?:and|with|,)\s+)+", re.IGNORECASE)

Description = Mapping[str, str]  # {column: value} of one image
Values = tuple[tuple[str, str], ...]  # the same, hashable: equal for images that look the same


class Edit(NamedTuple):
    """Hold the difference of two descriptions: as a plain text, what stays the same, and the labels that change."""

    text: str
    kept: str
    changes: tuple[Change, ...] = ()


# ---- queries


def triplets(
    described: Mapping[str, Description],
    edits: int,
    draw: random.Random,
    chains: bool,
    source: str,
    wording: Wording | None = None,
    texts: int = 1,
) -> Iterator[Record]:
    """Yield queries: each image with up to `edits` edits that lead to other images.

    Args:
        described: {image id: description}.
        edits: queries on each image, at most.
        draw: chooses among the possible edits.
        chains: whether to write chains, in the wording of the descriptions.
        source: of the records.
        wording: of changes of labels; None states column, new value and old value.
        texts: differently worded queries for the same edit of labels, at most.
    """
    # images with equal descriptions are targets of the same queries
    groups: dict[Values, list[str]] = {}
    for image, description in described.items():
        groups.setdefault(tuple(description.items()), []).append(image)

    # an inverted index, so that only descriptions that share something are compared
    index: dict[str, list[Values]] = {}
    for values in groups:
        for feature in features(dict(values)):
            index.setdefault(feature, []).append(values)

    for image, description in described.items():
        found = _edits_of(description, index)
        for number, (edit, values) in enumerate(draw.sample(found, min(edits, len(found)))):
            cot = chain(description, dict(values), edit) if chains else None
            targets = tuple(groups[values])
            # Captions are already worded as people do.
            said = [edit.text]
            if wording is not None and edit.changes:
                said = wording.sentences(edit.changes, texts, draw)
            for variant, text in enumerate(said):
                name = f"{image}-{number}" + (f"-{variant}" if variant else "")
                yield Record(name, image, text, targets, cot, source=source)


def _edits_of(
    description: Description, index: Mapping[str, Sequence[Values]]
) -> list[tuple[Edit, Values]]:
    """Return the edits from a description to those that share most with it, best first."""
    shared: Counter[Values] = Counter()
    for feature in features(description):
        shared.update(index[feature])
    found = []
    # an image with the same description is no target of an edit
    own = tuple(description.items())
    for values, _ in shared.most_common(MAX_COMPARED):
        edit = None if values == own else edit_between(description, dict(values))
        if edit is not None:
            found.append((edit, values))
    return found


def features(description: Description) -> list[str]:
    """Return what two images can share: labels with their values, or a caption's words."""
    if CAPTION in description:
        return list(dict.fromkeys(description[CAPTION].lower().split()))
    return [f"{name} {value}" for name, value in description.items()]


def edit_between(old: Description, new: Description) -> Edit | None:
    """Return the edit that leads from one description to another.

    None where too much differs, or where one has labels that the other lacks.
    """
    # a label that only one of them has is unknown for the other
    if old.keys() != new.keys():
        return None
    if CAPTION in old:
        return edit_of_captions(old[CAPTION], new[CAPTION])
    # labels: name what changes, keep the rest
    changed = [name for name in old if old[name] != new[name]]
    if not 1 <= len(changed) <= MAX_LABELS_CHANGED:
        return None
    text = " and ".join(f"{name} {new[name]} instead of {old[name]}" for name in changed)
    kept = ", ".join(f"{name} {old[name]}" for name in old if name not in changed)
    changes = tuple(Change(name, old[name], new[name]) for name in changed)
    return Edit(text, kept, changes)


def edit_of_captions(old: str, new: str) -> Edit | None:
    """Return the edit between two captions by the words that differ; None if too many do.

    Example:
        >>> edit_of_captions("a red shirt with buttons", "a blue shirt with buttons").text
        'blue instead of red'
    """
    # captions: align their words
    before = old.lower().rstrip(".").split()
    after = new.lower().rstrip(".").split()
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    parts = []
    kept = []
    # each run of words that differs is one part of the edit
    for kind, start, end, new_start, new_end in matcher.get_opcodes():
        words = " ".join(before[start:end])
        removed = LEADING_CONJUNCTION.sub("", words)
        added = LEADING_CONJUNCTION.sub("", " ".join(after[new_start:new_end]))
        if kind == "equal":
            kept.append(words)
        elif kind == "replace":
            parts.append(f"{added} instead of {removed}")
        elif kind == "insert":
            parts.append(f"with {added}")
        else:
            parts.append(f"without {removed}")
    if not 1 <= len(parts) <= MAX_PARTS_CHANGED or matcher.ratio() < MIN_ALIKE:
        return None
    return Edit(", ".join(parts), ", ".join(kept))


# ---- chains


def chain(old: Description, new: Description, edit: Edit) -> Cot:
    """Return a chain in the wording of the descriptions: as correct as they are, and as plain."""
    reasoning = (
        f"These stay as they are in the reference picture: {edit.kept or 'none'}. "
        f"The modification asks for this: {edit.text}."
    )
    return Cot(describe(old), reasoning, describe(new))


def describe(description: Description) -> str:
    """Return a description as a sentence."""
    if CAPTION in description:
        text = description[CAPTION]
    else:
        text = ", ".join(f"{name} {value}" for name, value in description.items())
    return text.rstrip(".") + "."
