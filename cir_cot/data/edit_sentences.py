"""Say the change of a label as people would: "in red", "with longer sleeves", "a dress instead of a shirt".

The kind of a column follows from its name and from all its values; each kind has several templates.
A file of a user's own templates replaces those of the columns that it names.
"""

import random
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cir_cot.errors import InputError, shown
from cir_cot.files import read_json

PLACES = ("name", "new", "old")  # what a user's template may hold in braces

YES = {"yes", "true", "y", "1"}
NO = {"no", "false", "n", "0"}
NONE = {"none", "without", "nothing"}
COLOURS = {
    "red", "blue", "green", "yellow", "orange", "purple", "pink", "brown", "black",
    "white", "grey", "gray", "beige", "navy", "cyan", "magenta", "turquoise", "gold",
    "silver", "khaki", "cream", "ivory", "burgundy", "maroon", "teal", "violet", "olive",
    "tan",
}  # fmt: skip
COLOUR_NAMES = {"colour", "color"}
KIND_NAMES = {"kind", "category", "type", "item", "product", "class", "garment"}
MATERIAL_NAMES = {"material", "fabric"}
PATTERN_NAMES = {"pattern", "print"}
# Values in order, and how a text asks for less and for more.
SCALES = (
    (("sleeveless", "cap", "short", "elbow", "three-quarter", "long"), "shorter", "longer"),
    (("mini", "short", "knee", "midi", "long", "maxi", "floor"), "shorter", "longer"),
    (("xxs", "xs", "s", "m", "l", "xl", "xxl"), "smaller", "larger"),
    (("tiny", "small", "medium", "large", "huge"), "smaller", "larger"),
    (("flat", "low", "medium", "mid", "high"), "lower", "higher"),
    (("thin", "medium", "thick"), "thinner", "thicker"),
    (("narrow", "regular", "wide"), "narrower", "wider"),
    (("tight", "slim", "regular", "loose"), "tighter", "looser"),
    (("light", "medium", "dark"), "lighter", "darker"),
)

# The first template of a kind is the one that joins well with another edit.
TEMPLATES = {
    "yes": ("with {a_name}", "add {a_name}", "it should have {a_name}", "like this, with {a_name}"),
    "no": ("without {a_name}", "no {name}", "the same without {the_name}"),
    "is": ("{name}", "make it {name}", "one that is {name}"),
    "is not": ("not {name}", "one that is not {name}"),
    "more": ("with {a_more}", "{more} {name}", "make the {name} {more}"),
    "more to": ("with {a_more}, {new}", "{more} {name}, {new}"),
    "none": ("without {a_name}", "no {name}", "remove the {name}"),
    "some": ("with {a_thing}", "add {a_thing}"),
    "colour": ("in {new}", "make it {new}", "the same in {new}", "{new} instead of {old}"),
    "part": ("with {a_thing}", "make the {name} {new}", "{new} {name} instead of {old}"),
    "kind": ("{a_new} instead of {a_old}", "{a_new} in this style", "change it to {a_new}"),
    "material": ("made of {new}", "in {new}, not {old}", "{new} instead of {old}"),
    "pattern": ("with {a_thing}", "make it {new}", "{new} instead of {old}"),
    "label": ("with {a_thing}", "{new} {name} instead of {old}", "change the {name} to {new}"),
}


@dataclass(frozen=True)
class Change:
    """One label that changes."""

    column: str
    old: str
    new: str


@dataclass(frozen=True)
class Column:
    """What the templates of a column depend on.

    Attributes:
        kind: a key of TEMPLATES for most columns; "flag", "scale" and "number" for those whose templates depend on
            the change.
        values: all values of the column, those of a scale in its order.
        less: comparative of a scale downwards.
        more: comparative upwards.
    """

    kind: str
    values: tuple[str, ...] = ()
    less: str = ""
    more: str = ""


Own = Mapping[str, Sequence[str] | Mapping[str, Sequence[str]]]


class Wording:
    """Choose sentences for changes of labels.

    Args:
        descriptions: of all pictures, {column: value} each; the kinds of columns follow from them.
        own: a user's templates by column: sentences, or sentences by new value.
    """

    def __init__(self, descriptions: Iterable[Mapping[str, str]], own: Own | None = None):
        values: dict[str, dict[str, None]] = {}
        for description in descriptions:
            for name, value in description.items():
                values.setdefault(name, {})[value] = None
        self.columns = {name: column_of(name, tuple(found)) for name, found in values.items()}
        self.own = own or {}

    def sentences(self, changes: Sequence[Change], count: int, draw: random.Random) -> list[str]:
        """Return at most `count` different sentences that ask for all changes."""
        if len(changes) == 1:
            found = list(dict.fromkeys(self._forms(changes[0])))
            return draw.sample(found, min(count, len(found)))
        # Several changes: the forms that join well, in any order.
        joined = []
        for order in (changes, changes[::-1]):
            joined.append(" and ".join(self._forms(change)[0] for change in order))
        return draw.sample(joined, min(count, len(joined)))

    def _forms(self, change: Change) -> list[str]:
        """Return every sentence for one change, the one that joins well first."""
        name = spoken(change.column)
        own = self.own.get(change.column)
        if isinstance(own, Mapping):
            own = own.get(change.new)
        if own:
            places = {"name": name, "new": change.new, "old": change.old}
            return [template.format_map(places) for template in own]
        key, more = self._template(change)
        kind = name.removeprefix("has ").removeprefix("is ")
        places = {
            "name": kind,
            "a_name": with_article(kind),
            "the_name": f"the {kind}",
            "new": change.new,
            "old": change.old,
            "a_new": with_article(change.new),
            "a_old": with_article(change.old),
            "a_thing": with_article(f"{change.new} {kind}"),
            "more": more,
            "a_more": with_article(f"{more} {kind}"),
        }
        return [template.format_map(places) for template in TEMPLATES[key]]

    def _template(self, change: Change) -> tuple[str, str]:
        """Return the key of a change's templates, and the comparative that they need."""
        column = self.columns[change.column]
        old = change.old.lower()
        new = change.new.lower()
        if column.kind == "flag":
            key = "yes" if new in YES else "no"
            if spoken(change.column).startswith("is "):
                key = {"yes": "is", "no": "is not"}[key]
            return key, ""
        if new in NONE or old in NONE:
            return ("none" if new in NONE else "some"), ""
        if column.kind == "number":
            return "more to", "higher" if float(new) > float(old) else "lower"
        if column.kind == "scale":
            place = column.values.index(old)
            upwards = column.values.index(new) > place
            beyond = column.values[place + 1 :] if upwards else column.values[:place]
            more = column.more if upwards else column.less
            # "Longer" alone would ask for every value beyond.
            return ("more" if len(beyond) == 1 else "more to"), more
        return column.kind, ""


def column_of(name: str, values: tuple[str, ...]) -> Column:
    """Tell the kind of a column from its name and all its values."""
    lowered = [value.lower() for value in values]
    word = spoken(name).lower()
    if set(lowered) <= YES | NO:
        return Column("flag")
    if all(map(_is_number, lowered)):
        return Column("number")
    for scale, less, more in SCALES:
        if set(lowered) <= {*scale} and len(lowered) > 1:
            return Column("scale", tuple(value for value in scale if value in lowered), less, more)
    named = {
        "colour": COLOUR_NAMES,
        "kind": KIND_NAMES,
        "material": MATERIAL_NAMES,
        "pattern": PATTERN_NAMES,
    }
    for kind, names in named.items():
        if word in names:
            return Column(kind)
    # A part that has a colour, such as a collar.
    if set(lowered) <= COLOURS:
        return Column("part")
    return Column("label")


def _is_number(value: str) -> bool:
    try:
        return float(value) == float(value)  # no NaN
    except ValueError:
        return False


def spoken(column: str) -> str:
    """Return a column's name as it is said: `sleeve_length` is "sleeve length"."""
    return " ".join(column.replace("_", " ").split())


def with_article(words: str) -> str:
    """Return a singular noun with "a" or "an", a plural one as it is."""
    last = words.rsplit(" ", maxsplit=1)[-1].lower()
    if last.endswith("s") and not last.endswith(("ss", "us", "is")):
        return words
    return f"{'an' if words[:1].lower() in 'aeiou' else 'a'} {words}"


# ---- a user's own templates


def read_templates(path: Path, columns: Iterable[str]) -> Own:
    """Read a JSON file {column: sentences, or {new value: sentences}}.

    Args:
        path: the file. A sentence may hold {name}, {new} and {old}.
        columns: of the labels.

    Raises:
        InputError: names the entry that is no list of sentences, is of no column, or has another place in braces.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: must map columns to sentences, got {shown(content)}")
    known = list(columns)
    own: dict[str, Sequence[str] | Mapping[str, Sequence[str]]] = {}
    for column, entry in content.items():
        if column not in known:
            raise InputError(f"{path}: {shown(column)} is no column; they are {', '.join(known)}")
        if isinstance(entry, dict):
            by_value = {}
            for value, sentences in entry.items():
                by_value[value] = _checked(sentences, f"{path}: {column}: {value}")
            own[column] = by_value
        else:
            own[column] = _checked(entry, f"{path}: {column}")
    return own


def _checked(sentences: object, where: str) -> list[str]:
    """Return sentences if they are some, with known places only."""
    if not isinstance(sentences, list) or not sentences:
        raise InputError(f"{where}: give a list of sentences, got {shown(sentences)}")
    for sentence in sentences:
        if not isinstance(sentence, str) or not sentence.strip():
            raise InputError(f"{where}: {shown(sentence)} is no sentence")
        try:
            parts = list(string.Formatter().parse(sentence))
        except ValueError as error:
            raise InputError(f"{where}: {shown(sentence)}: {error}") from error
        for _, place, form, conversion in parts:
            if place is not None and (place not in PLACES or form or conversion):
                raise InputError(
                    f"{where}: {shown(sentence)}: {{{place}}} is none of {{name}}, {{new}} and {{old}}"
                )
    return sentences
