"""A web page about chains: findings, lengths, words, kinds of edits, and examples with pictures.

It shows the report of `cir-cot check`, in one self-contained file; `webpage.py` escapes every text.
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

from .filters import FILTERS, LENGTHS, REMOVED, chain, problems, salient, size, teachers

PASSING = 8  # shown chains that pass every filter
FAILING = 3  # shown chains that fail a filter, for each filter
WORDS = 20  # rows of the table of words
BINS = 10  # bars of a histogram
COLUMNS = ("modifications", "captions", "conclusions")  # of the table of words
# Ours: kinds of modifications by their words, for a first look. A text may be of several kinds.
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
    """Compose the page.

    Args:
        report: as `check.check` returns it.
        records: the checked records, with their chains.
        stores: the store of each picture.
        seed: draws the chains that are shown.

    Returns:
        The page's HTML.
    """
    # What was checked and found, of every dataset.
    body = [parts_table(report), findings_table(report)]
    for note in report["notes"]:
        body.append(f"<p class=note>{escape(note)}</p>")

    # Statistics and examples, of datasets with chains.
    chained = [record for record in records if record.cot]
    if chained:
        note = "By words of the modification; one may be of several kinds."
        body.append(section("Filters", filter_bars(report, len(chained))))
        body += length_sections(chained)
        body.append(section("Kinds of edits", edit_bars(chained), note))
        body.append(words_table(chained))
        body.append(teachers_table(chained))
        for title, drawn in samples(chained, seed):
            body.append(f"<h2>{escape(title)}</h2>")
            body += [article(record, problems(record), stores) for record in drawn]
    return webpage.document(f"Chains of {report['benchmark']} {report['split']}", body)


def parts_table(report: dict) -> str:
    """Tabulate what was checked: queries, galleries, chains."""
    rows = []
    for part, counts in report["parts"].items():
        rows.append([part, ", ".join(f"{key} {n}" for key, n in counts.items())])
    verdict = f"{len(report['errors'])} kinds of errors, {len(report['warnings'])} of warnings."
    return webpage.table("What was checked", ["part", "counts"], rows, verdict)


def findings_table(report: dict) -> str:
    """Tabulate every finding with its count and its first example."""
    rows = []
    for kind in ("errors", "warnings"):
        for row in report[kind]:
            example = row["examples"][0][:200]
            rows.append([f"{kind}: {row['check']}", str(row["count"]), example])
    note = "" if rows else "Nothing was found."
    return webpage.table("Findings", ["check", "count", "first example"], rows, note)


def section(title: str, content: str, note: str = "") -> str:
    """Compose a heading, a line of explanation and a chart."""
    line = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<h2>{escape(title)}</h2>{line}{content}"


def filter_bars(report: dict, total: int) -> str:
    """Draw the share of chains that each filter found."""
    # The report names filters chain_<filter>.
    counts = [(row["check"].removeprefix("chain_"), row["count"]) for row in report["filters"]]
    return share_bars(counts, total, "chains found by each filter")


def share_bars(counts: Iterable[tuple[str, int]], total: int, what: str) -> str:
    """Draw a bar for each (name, count), in percent of `total`."""
    values = []
    for name, count in counts:
        percent = 100 * count / total
        values.append((f"{name}: {count} ({percent:.1f} %)", percent, False))
    return webpage.bars(values, what)


def length_sections(records: Sequence[Record]) -> Iterable[str]:
    """Yield a table of lengths of modifications and sections, and a histogram of each section."""
    # Lengths in words and punctuation marks.
    lengths = {"modification": [size(record.text) for record in records]}
    for part in PARTS:
        lengths[part] = [size(getattr(record.cot, part)) for record in records]

    # The table, with the limits of the length filter.
    rows = []
    for name, values in lengths.items():
        cuts = quantiles(values, n=20, method="inclusive") if len(values) > 1 else values * 19
        points = (min(values), cuts[0], cuts[9], cuts[18], max(values))
        allowed = " to ".join(map(str, LENGTHS[name])) if name in LENGTHS else ""
        rows.append([name, *(f"{point:.0f}" for point in points), allowed])
    header = ["text", "least", "5 %", "median", "95 %", "most", "allowed"]
    yield webpage.table("Lengths", header, rows, "In words and punctuation marks.")

    # The histograms.
    for part in PARTS:
        chart = share_bars(histogram(lengths[part]), len(records), f"length of {part}")
        yield section(f"Length of the {part}", chart)


def histogram(values: Sequence[int]) -> list[tuple[str, int]]:
    """Count values in at most BINS equal ranges: ("from-to", count) of each."""
    low = min(values)
    width = -(-(max(values) - low + 1) // BINS)  # rounded up, so that every value has a range
    counts = Counter((value - low) // width for value in values)
    bins = []
    for index in range(max(counts) + 1):
        start = low + width * index
        name = f"{start}" if width == 1 else f"{start}-{start + width - 1}"
        bins.append((name, counts[index]))
    return bins


def kinds(text: str) -> list[str]:
    """List the kinds of edits of a modification, or ["other"]."""
    return [kind for kind, words in EDITS.items() if words.search(text)] or ["other"]


def edit_bars(records: Sequence[Record]) -> str:
    """Draw the share of each kind of edit."""
    counts: Counter[str] = Counter()
    for record in records:
        # A text may count several times.
        counts.update(kinds(record.text))
    values = [(kind, counts[kind]) for kind in (*EDITS, "other")]
    return share_bars(values, len(records), "kinds of edits")


def words_table(records: Sequence[Record]) -> str:
    """Tabulate the commonest salient words of modifications, captions and conclusions."""
    counts = {name: Counter[str]() for name in COLUMNS}
    for record in records:
        # A word counts once a chain.
        counts["modifications"].update(set(salient(record.text)))
        counts["captions"].update(set(salient(chain(record).caption)))
        counts["conclusions"].update(set(salient(chain(record).conclusion)))

    # One row a place, one column a text.
    columns = [counts[name].most_common(WORDS) for name in COLUMNS]
    rows = []
    for place in range(WORDS):
        row = [str(place + 1)]
        for column in columns:
            row.append(f"{column[place][0]} {column[place][1]}" if place < len(column) else "")
        rows.append(row)
    known = ", ".join(f"{len(counts[name])} in {name}" for name in COLUMNS)
    note = f"Salient words and in how many chains; different ones: {known}."
    return webpage.table("Words", ["", *COLUMNS], rows, note)


def teachers_table(records: Sequence[Record]) -> str:
    """Tabulate who wrote the chains."""
    rows = []
    for facts, count in teachers(records):
        texts = ["not recorded" if value is None else str(value) for value in facts.values()]
        rows.append([*texts, str(count)])
    header = ["model", "prompts' version", "saw the target", "chains"]
    return webpage.table("Teachers", header, rows)


def samples(records: Sequence[Record], seed: int) -> list[tuple[str, list[Record]]]:
    """Draw the chains that are shown: (heading, chains) of each filter's and of those that pass."""
    # Group the chains by filter; "" holds those that pass every filter.
    groups: dict[str, list[Record]] = {}
    for record in records:
        for name in problems(record) or [""]:
            groups.setdefault(name, []).append(record)

    drawn = []
    for name in [*(one.name for one in FILTERS), ""]:
        group = groups.get(name, [])
        if not group:
            continue
        most = FAILING if name else PASSING
        # The same seed shows the same chains, in file order.
        kept = sorted(random.Random(seed).sample(range(len(group)), min(most, len(group))))
        title = f"Found by {name}" if name else "Passed every filter"
        heading = f"{title}: {len(kept)} of {len(group)}"
        drawn.append((heading, [group[index] for index in kept]))
    return drawn


def article(record: Record, found: Mapping[str, str], stores: Mapping[str, ImageStore]) -> str:
    """Show one query with its pictures and its chain, and what the filters find in it."""
    # The filters' verdict as the heading.
    verdict = "; ".join(f"✗ {name}: {what}" for name, what in found.items())
    verdict = verdict or "✓ passes every filter"
    style = "missed" if found else "found"
    title = f"{record.source} {record.id}".strip()

    # Reference and at most two targets, then the sections.
    figures = [figure("reference", record.reference, stores)]
    figures += [figure("target", target, stores) for target in record.targets[:2]]
    parts = ""
    for part in PARTS:
        parts += f"<dt>{part}</dt><dd>{escape(getattr(record.cot, part))}</dd>"
    return (
        f'<article><h3 class="{style}">{escape(title)}: '
        f'{escape(verdict)}</h3><p class="text">{escape(record.text)}</p>'
        f'<div class="ask">{"".join(figures)}</div><dl>{parts}</dl></article>'
    )


def figure(what: str, image: str, stores: Mapping[str, ImageStore]) -> str:
    """Show a picture with its name, or say that it cannot be shown."""
    caption = f"{what} {image}"
    shown = "<p>no picture</p>"
    if image in stores:
        try:
            shown = webpage.zoomable(stores[image].load(image), caption)
        except InputError:
            shown = "<p>no readable picture</p>"
    return f"<figure>{shown}<figcaption>{escape(caption)}</figcaption></figure>"
