"""TODO."""

import csv
import hashlib
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from cir_cot.errors import InputError
from cir_cot.images import EXTENSIONS
from cir_cot.records import Cot, Record

CAPTION = "caption"  # the column that makes a file one of captions; every other column is a label
NEAR = 50  # pictures compared with a reference: those that share most with it
LABELS_CHANGED = 2  # ours: an edit changes one label or two
WORDS_CHANGED, ALIKE = (
    3,
    0.5,
)  # ours: a caption's edit has at most 3 parts, and half of the words stay
LEAD = re.compile(
    r"^(?:(?:and|with|,)\s+)+", re.IGNORECASE
)  # of what is put behind "with" or "without"


class Edit(NamedTuple):
    """What leads from one description to another: the words of a query, and what stays."""

    text: str
    kept: str


def picture_ids(folder: Path) -> list[str]:
    """Ids of the pictures below a folder: their paths without the extension."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; put the pictures there, or a link to them")
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in EXTENSIONS]
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in files]
    if not names:
        raise InputError(
            f"{folder}: no pictures ({', '.join(EXTENSIONS)}) in it, or it cannot be read"
        )
    for one, other in pairwise(sorted(names)):
        if one == other:
            raise InputError(
                f"{folder}: two pictures have the id {one!r}; give one of them another name"
            )
    return names


def read_descriptions(path: Path, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """{image id: {column: value}} in the order of the file, blank values left out; InputError names the line."""
    known, described = set(names), {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no CSV in UTF-8 ({error})") from error
    header = [name.strip() for name in rows[0]] if rows else []
    if (
        header[:1] != ["image"]
        or len(header) < 2
        or len(set(header)) < len(header)
        or not all(header)
    ):
        raise InputError(
            f"{path}:1: the header must be 'image' and different names of labels or 'caption', got {header}"
        )
    if CAPTION in header and len(header) > 2:
        raise InputError(
            f"{path}:1: 'caption' stands alone beside 'image'; leave {header[1:]} or the captions out"
        )
    for number, row in enumerate(rows[1:], 2):
        if not any(row):
            continue
        where = f"{path}: row {number}"
        if len(row) != len(header):
            raise InputError(f"{where}: {len(row)} values under {len(header)} names")
        image, *values = (" ".join(value.split()) for value in row)
        if image not in known:
            raise InputError(
                f"{where}: no picture {image!r}; it is the path in images/ without the extension"
            )
        if image in described:
            raise InputError(f"{where}: image {image!r} has a line already")
        described[image] = {
            name: value for name, value in zip(header[1:], values, strict=True) if value
        }
    return described


def split(images: list[str], share: float) -> dict[str, list[str]]:
    """Divide images into train and val by a digest of their ids: none ever moves, whatever is added to the folder."""

    def held(image: str) -> bool:
        return int.from_bytes(hashlib.sha256(image.encode()).digest()[:8], "big") < share * 2**64

    return {"train": [i for i in images if not held(i)], "val": [i for i in images if held(i)]}


def triplets(
    described: Mapping[str, dict[str, str]],
    edits: int,
    draw: random.Random,
    chains: bool,
    source: str,
) -> Iterator[Record]:
    """Yield records: each picture with up to `edits` edits that lead to other pictures.

    Every picture with exactly the wanted labels (or caption) is a target.
    """
    groups: dict[tuple, list[str]] = {}
    for image, values in described.items():
        groups.setdefault(tuple(values.items()), []).append(image)
    where: dict[str, list[tuple]] = {}
    for group in groups:
        for feature in features(dict(group)):
            where.setdefault(feature, []).append(group)
    for image, values in described.items():
        shared = Counter(group for feature in features(values) for group in where[feature])
        near = [group for group, _ in shared.most_common(NEAR) if group != tuple(values.items())]
        found = [(edit, group) for group in near if (edit := edit_between(values, dict(group)))]
        for number, (edit, group) in enumerate(draw.sample(found, min(edits, len(found)))):
            cot = chain(values, dict(group), edit) if chains else None
            yield Record(
                f"{image}-{number}", image, edit.text, tuple(groups[group]), cot, source=source
            )


def features(values: Mapping[str, str]) -> list[str]:
    """What two pictures can share, each once: labels with their values, or a caption's words."""
    if CAPTION in values:
        return list(dict.fromkeys(values[CAPTION].lower().split()))
    return [f"{name} {value}" for name, value in values.items()]


def edit_between(old: Mapping[str, str], new: Mapping[str, str]) -> Edit | None:
    """The edit that leads from one description to the other; None where they differ too much or in what is known."""
    if old.keys() != new.keys():
        return None
    if CAPTION in old:
        return edit_of_captions(old[CAPTION], new[CAPTION])
    changed = [name for name in old if old[name] != new[name]]
    if not 1 <= len(changed) <= LABELS_CHANGED:
        return None
    text = " and ".join(f"{name} {new[name]} instead of {old[name]}" for name in changed)
    return Edit(text, ", ".join(f"{name} {old[name]}" for name in old if name not in changed))


def edit_of_captions(old: str, new: str) -> Edit | None:
    """The edit between two captions, by the words that differ."""
    before, after = (text.lower().rstrip(".").split() for text in (old, new))
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    parts, kept = [], []
    for kind, a, b, c, d in matcher.get_opcodes():
        gone, come = (LEAD.sub("", " ".join(words)) for words in (before[a:b], after[c:d]))
        if kind == "equal":
            kept.append(" ".join(before[a:b]))
        else:
            forms = {
                "replace": f"{come} instead of {gone}",
                "insert": f"with {come}",
                "delete": f"without {gone}",
            }
            parts.append(forms[kind])
    if not 1 <= len(parts) <= WORDS_CHANGED or matcher.ratio() < ALIKE:
        return None
    return Edit(", ".join(parts), ", ".join(kept))


def chain(old: Mapping[str, str], new: Mapping[str, str], edit: Edit) -> Cot:
    """A chain in the words of the descriptions: true as far as they are, and as plain."""
    reasoning = (
        f"These stay as they are in the reference picture: {edit.kept or 'none'}. The modification asks for this: "
        f"{edit.text}."
    )
    return Cot(describe(old), reasoning, describe(new))


def describe(values: Mapping[str, str]) -> str:
    """A description as a sentence."""
    words = (
        values[CAPTION]
        if CAPTION in values
        else ", ".join(f"{name} {value}" for name, value in values.items())
    )
    return words.rstrip(".") + "."
