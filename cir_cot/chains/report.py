"""A web page on a set of chains: findings, lengths, words, kinds of edits, and chains beside their pictures.

Reads the report of `cir-cot check`. One self-contained file: see webpage.py, which escapes every text.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from statistics import quantiles

from cir_cot import webpage
from cir_cot.errors import InputError
from cir_cot.images import ImageStore
from cir_cot.prompts import PARTS
from cir_cot.records import Record

from .filters import FILTERS, LENGTHS, REMOVED, problems, salient, size, teachers

PASSING, FAILING = 8, 3  # chains shown: those that pass, and those that fail one filter
WORDS = 20
BINS = 10
# Ours: kinds of a modification by its words, for a look at the data. A text may be of several kinds.
EDITS = {
    "add": re.compile(r"\b(?:add\w*|plus|also|includ\w*|put|place)\b", re.IGNORECASE),
    "remove": REMOVED,
    "change": re.compile(
        r"\b(?:chang\w*|replac\w*|make|turn\w*|instead|becom\w*|swap\w*)\b", re.IGNORECASE
    ),
    "describe": re.compile(
        r"\b(?:is|are|has|have|with|shows?)\b", re.IGNORECASE
    ),  # FashionIQ's "is blue with dots"
    "compare": re.compile(
        r"\b(?:more|less|fewer|most|least|same|(?:short|long|light|dark|bright|larg|small|bigg|tight|loos|wid|narrow|thick|"
        r"thinn?|high|low|old|young|clos|full|plain|simpl|fanci|dressi|flowi)er)\b",
        re.IGNORECASE,
    ),
    "count": re.compile(
        r"\b(?:\d+|one|two|three|four|five|six|several|many|few|single|both)\b", re.IGNORECASE
    ),
}


def page(
    report: dict, records: Sequence[Record], stores: Mapping[str, ImageStore], seed: int = 0
) -> str:
    """Compose the page of the findings and of the records' chains; `stores` maps image ids to where they are."""
    chained = [record for record in records if record.cot]
    body = [
        parts_table(report),
        findings_table(report),
        *(f"<p class=note>{escape(n)}</p>" for n in report["notes"]),
    ]
    if chained:
        body += [
            section("Filters", filter_bars(report, len(chained))),
            *length_sections(chained),
            section(
                "Kinds of edits",
                edit_bars(chained),
                "By words of the modification; one may be of several kinds.",
            ),
            words_table(chained),
            teachers_table(chained),
        ]
        for title, drawn in samples(chained, seed):
            body.append(f"<h2>{escape(title)}</h2>")
            body += [article(record, problems(record), stores) for record in drawn]
    return webpage.document(f"Chains of {report['benchmark']} {report['split']}", body)


def parts_table(report: dict) -> str:
    """What was checked: queries, galleries, chains."""
    rows = [
        [part, ", ".join(f"{key} {n}" for key, n in counts.items())]
        for part, counts in report["parts"].items()
    ]
    verdict = f"{len(report['errors'])} kinds of errors, {len(report['warnings'])} of warnings."
    return webpage.table("What was checked", ["part", "counts"], rows, verdict)


def findings_table(report: dict) -> str:
    """Every finding with its count and its first example."""
    rows = [
        [f"{kind}: {row['check']}", str(row["count"]), row["examples"][0][:200]]
        for kind in ("errors", "warnings")
        for row in report[kind]
    ]
    return webpage.table(
        "Findings", ["check", "count", "first example"], rows, "" if rows else "Nothing was found."
    )


def section(title: str, content: str, note: str = "") -> str:
    """A heading, a line of explanation, a chart."""
    words = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<h2>{escape(title)}</h2>{words}{content}"


def filter_bars(report: dict, total: int) -> str:
    """A bar for each filter: the share of the chains that it found."""
    counts = [(row["check"].removeprefix("chain_"), row["count"]) for row in report["filters"]]
    return share_bars(counts, total, "chains found by each filter")


def share_bars(counts: Iterable[tuple[str, int]], total: int, what: str) -> str:
    """A bar for each (name, count), as a share of `total`."""
    values = [
        (f"{name}: {count} ({100 * count / total:.1f} %)", 100 * count / total, False)
        for name, count in counts
    ]
    return webpage.bars(values, what)


def length_sections(records: Sequence[Record]) -> Iterable[str]:
    """How long modification and parts are, in words and marks: a table, and a histogram of each part."""
    texts = {"modification": [record.text for record in records]}
    texts |= {part: [getattr(record.cot, part) for record in records] for part in PARTS}
    lengths = {name: [size(text) for text in some] for name, some in texts.items()}
    rows = []
    for name, values in lengths.items():
        cuts = quantiles(values, n=20, method="inclusive") if len(values) > 1 else values * 19
        allowed = " to ".join(map(str, LENGTHS[name])) if name in LENGTHS else ""
        rows.append(
            [
                name,
                *(f"{v:.0f}" for v in (min(values), cuts[0], cuts[9], cuts[18], max(values))),
                allowed,
            ]
        )
    header = ["text", "least", "5 %", "median", "95 %", "most", "allowed"]
    yield webpage.table("Lengths", header, rows, "In words and punctuation marks.")
    for part in PARTS:
        yield section(
            f"Length of the {part}",
            share_bars(histogram(lengths[part]), len(records), f"length of {part}"),
        )


def histogram(values: Sequence[int]) -> list[tuple[str, int]]:
    """("from-to", count) of at most BINS equal ranges of whole numbers that hold every value."""
    low = min(values)
    width = -(-(max(values) - low + 1) // BINS)
    counts = Counter((value - low) // width for value in values)
    starts = [low + width * index for index in range(max(counts) + 1)]
    names = [f"{start}" if width == 1 else f"{start}-{start + width - 1}" for start in starts]
    return [(name, counts[index]) for index, name in enumerate(names)]


def kinds(text: str) -> list[str]:
    """The kinds of edits of a modification, or ["other"]."""
    return [kind for kind, words in EDITS.items() if words.search(text)] or ["other"]


def edit_bars(records: Sequence[Record]) -> str:
    """A bar for each kind of edit."""
    counts = Counter(kind for record in records for kind in kinds(record.text))
    return share_bars(
        [(kind, counts[kind]) for kind in (*EDITS, "other")], len(records), "kinds of edits"
    )


def words_table(records: Sequence[Record]) -> str:
    """The commonest salient words of modifications, captions and conclusions, by how many chains have them."""
    texts = [[record.text for record in records]]
    texts += [
        [getattr(record.cot, part) for record in records] for part in ("caption", "conclusion")
    ]
    counts = [Counter(word for text in some for word in set(salient(text))) for some in texts]
    common = [[f"{word} {count}" for word, count in some.most_common(WORDS)] for some in counts]
    rows = [
        [str(place + 1), *(some[place] if place < len(some) else "" for some in common)]
        for place in range(WORDS)
    ]
    known = ", ".join(f"{len(some)} in {name}" for some, name in zip(counts, COLUMNS, strict=True))
    return webpage.table(
        "Words",
        ["", *COLUMNS],
        rows,
        f"Salient words and in how many chains; different ones: {known}.",
    )


COLUMNS = ("modifications", "captions", "conclusions")


def teachers_table(records: Sequence[Record]) -> str:
    """Who wrote the chains."""
    rows = [
        [*("not recorded" if value is None else str(value) for value in facts.values()), str(count)]
        for facts, count in teachers(records)
    ]
    return webpage.table(
        "Teachers", ["model", "prompts' version", "saw the target", "chains"], rows
    )


def samples(records: Sequence[Record], seed: int) -> list[tuple[str, list[Record]]]:
    """(heading, chains) to show: some of each filter's, some that pass; drawn by the seed."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        for name in problems(record) or [""]:
            groups.setdefault(name, []).append(record)
    drawn = []
    for name in [*(name for name, _ in FILTERS), ""]:
        group, most = groups.get(name, []), FAILING if name else PASSING
        if group:
            kept = sorted(random.Random(seed).sample(range(len(group)), min(most, len(group))))
            title = f"Found by {name}" if name else "Passed every filter"
            drawn.append(
                (f"{title}: {len(kept)} of {len(group)}", [group[index] for index in kept])
            )
    return drawn


def article(record: Record, found: Mapping[str, str], stores: Mapping[str, ImageStore]) -> str:
    """One query with its pictures and its chain, and what the filters say of it."""
    verdict = (
        "; ".join(f"✗ {name}: {what}" for name, what in found.items()) or "✓ passes every filter"
    )
    figures = [figure("reference", record.reference, stores)]
    figures += [figure("target", target, stores) for target in record.targets[:2]]
    parts = "".join(
        f"<dt>{part}</dt><dd>{escape(getattr(record.cot, part))}</dd>" for part in PARTS
    )
    return (
        f'<article><h3 class="{"missed" if found else "found"}">{escape(f"{record.source} {record.id}".strip())}: '
        f'{escape(verdict)}</h3><p class="text">{escape(record.text)}</p>'
        f'<div class="ask">{"".join(figures)}</div><dl>{parts}</dl></article>'
    )


def figure(what: str, image: str, stores: Mapping[str, ImageStore]) -> str:
    """A picture with its name; a sentence in its place where it cannot be shown."""
    words = f"{what} {image}"
    try:
        shown = (
            webpage.thumbnail(stores[image].load(image), words)
            if image in stores
            else "<p>no picture</p>"
        )
    except InputError:
        shown = "<p>no readable picture</p>"
    return f"<figure>{shown}<figcaption>{escape(words)}</figcaption></figure>"
