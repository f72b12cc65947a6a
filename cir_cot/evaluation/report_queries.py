"""Compose the queries of report.html: pictures, chains, first answers, and filters over the queries."""

from collections import Counter
from collections.abc import Sequence
from html import escape

from cir_cot import webpage
from cir_cot.records import Record

from .results import Result
from .samples import (
    answers,
    chain_lines,
    different_words,
    drawn_text,
    groups,
    other_readings,
    outcome,
    verdict,
)
from .tables import heading


def queries_section(
    result: Result, records: Sequence[Record], results: Sequence[Result], name: str
) -> str:
    """Compose the drawn queries of a measured set, with a filter for each group that they are in.

    Args:
        result: The result whose queries are shown.
        records: The drawn queries.
        results: All results of the report; other readings of the same queries make groups.
        name: Name of the list, unique in the page.
    """
    # Count the groups, of all queries and of those that are shown.
    others = other_readings(result, results)
    total: Counter[str] = Counter()
    for record in result.benchmark.records:
        total.update(groups(result, record, others))
    shown = [groups(result, record, others) for record in records]
    counts: Counter[str] = Counter()
    for names in shown:
        counts.update(names)
    # A filter for each group of which some are shown, by the order of their first query.
    labels = [f"{group} ({count} of {total[group]})" for group, count in counts.items()]
    places = {group: place for place, group in enumerate(counts)}
    items = []
    for record, names in zip(records, shown, strict=True):
        items.append((query_html(result, record), [places[group] for group in names]))
    note = f'<p class="note">{drawn_text(result, records)} A click on a picture enlarges it.</p>'
    title = f"<h2>Queries, {escape(heading(result))}</h2>"
    return f"{title}{note}{webpage.filtered(name, labels, items)}"


def query_html(result: Result, record: Record) -> str:
    """Compose one query: reference and text, chain, first answers with scores and marks."""
    reference = webpage.zoomable(
        result.images.load(record.reference), f"reference: {record.reference}"
    )
    # The chain, as a list of its sections.
    parts = []
    for name, text, other in chain_lines(result, record):
        parts.append(f"<dt>{escape(name)}</dt><dd>{marked(text, other)}</dd>")
    chain = f"<dl>{''.join(parts)}</dl>" if parts else ""
    return (
        f'<h3 class="{outcome(result, record)}">{escape(verdict(result, record))}</h3>'
        f'<div class="ask"><figure>{reference}'
        f"<figcaption>reference {escape(record.reference)}</figcaption></figure>"
        f'<p class="text">{escape(record.text)}</p></div>'
        f"{chain}{first_answers(result, record)}"
    )


def marked(text: str, other: str | None) -> str:
    """Return a text as HTML, with marks on the words that the other text, if any, lacks."""
    if other is None:
        return escape(text)
    parts = []
    for words, differ in different_words(text, other):
        parts.append(f"<mark>{escape(words)}</mark>" if differ else escape(words))
    return " ".join(parts)


def first_answers(result: Result, record: Record) -> str:
    """Compose the list of a query's first answers, with their pictures."""
    items = [_answer_item(result, *answer) for answer in answers(result, record)]
    return f"<ol>{''.join(items)}</ol>"


def _answer_item(result: Result, rank: str, name: str, score: str, right: bool) -> str:
    """Compose one ranked image, marked where it is right."""
    picture = result.images.load(name)
    if right:
        thumbnail = webpage.zoomable(picture, f"answer {rank}: {name}, a right answer")
        mark = " <strong>✓ right</strong>"
        opening = "<li class=right>"
    else:
        thumbnail = webpage.zoomable(picture, f"answer {rank}: {name}")
        mark = ""
        opening = "<li>"
    caption = f'<div class="rank">{escape(rank)} {escape(name)}<br>{score}{mark}</div>'
    return f"{opening}{thumbnail}{caption}</li>"
