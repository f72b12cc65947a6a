"""A report of results: report.md (numbers and words) and report.html (with pictures), both from the same tables.

Every text of a user, an annotation or a model is escaped. A right answer is marked by a frame, a check mark and a word,
never by colour alone.
"""

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from cir_cot import webpage
from cir_cot.files import write_text_atomic
from cir_cot.prompts import PARTS, text_to_cot
from cir_cot.records import Record
from cir_cot.storage import written

from .chain_quality import same_part
from .results import Result
from .results_folder import REPORT, writing_results
from .tables import Table, cell, choice_tables, flat, heading, leading, source_tables, summary_table

SHOWN = 6  # answers shown a query
BASELINES = ("image_only", "text_only", "shuffled", "no_chain")


def write_report(
    folder: str | Path,
    results: Sequence[Result],
    *,
    title: str = "Retrieval report",
    tables: Sequence[Table] = (),
    queries: int = 6,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Write report.md and report.html on the results into `folder`; InputError for files of anybody else there.

    `tables` come after the report's own. For each measured set, `queries` failures and as many successes of its first
    reading are shown, drawn with `seed`.
    """
    folder = Path(folder)
    tables = [summary_table(results), *source_tables(results), *choice_tables(results), *tables]
    samples = [(result, sample(result, queries, seed)) for result in leading(results)]
    words = markdown(title, tables, samples, results)
    pictures = page(title, tables, samples, results)
    with written(folder), writing_results(folder, REPORT, REPORT, overwrite):
        for name, text in zip(REPORT, (words, pictures), strict=True):
            write_text_atomic(folder / name, text)


# ---- what is in it


def sample(result: Result, count: int, seed: int) -> list[Record]:
    """Draw up to `count` failures, successes (a right answer first) and unlabelled queries, each in official order."""
    pools: dict[str, list[Record]] = {"missed": [], "found": [], "unknown": []}
    for record in result.benchmark.records:
        pools[outcome(result, record)].append(record)
    drawn = []
    for pool in pools.values():
        kept = sorted(random.Random(seed).sample(range(len(pool)), min(count, len(pool))))
        drawn += [pool[index] for index in kept]
    return drawn


def drawn_words(result: Result, records: Sequence[Record]) -> str:
    """Say how many of the missed and of the found queries are shown."""
    shown, there = (
        Counter(outcome(result, r) for r in records),
        Counter(outcome(result, r) for r in result.benchmark.records),
    )
    names = {"missed": "missed", "found": "found first", "unknown": "without a published answer"}
    return (
        "Drawn by the seed: "
        + ", ".join(f"{shown[k]} of {there[k]} {v}" for k, v in names.items() if there[k])
        + "."
    )


def outcome(result: Result, record: Record) -> str:
    """Tell whether a right answer came first: "found", "missed", or "unknown" where none is published."""
    if not record.targets:
        return "unknown"
    return "found" if place(result, record) == 1 else "missed"


def place(result: Result, record: Record) -> int | None:
    """Rank of the first right answer, from 1; None when it is not in the kept list."""
    ranking = result.rankings[record.id]
    return next((rank for rank, name in enumerate(ranking, 1) if name in record.targets), None)


def verdict(result: Result, record: Record) -> str:
    """Say in words where the right answer came."""
    if not record.targets:
        return "no published answer"
    rank = place(result, record)
    if rank is None:
        return (
            f"✗ missed: the right answer is not among the first {len(result.rankings[record.id])}"
        )
    return "✓ found first" if rank == 1 else f"✗ missed: the right answer is at rank {rank}"


def chain_lines(result: Result, record: Record) -> list[tuple[str, str]]:
    """(name, words) of each part of the chain that was written, compared with the annotation where there is one."""
    written = result.explanations[record.id]
    chain = text_to_cot(written)
    if chain is None:
        return (
            [("read with" if result.choices else "not a valid chain", written)] if written else []
        )
    lines = []
    for part in PARTS:
        same = record.cot is not None and same_part(chain, record.cot, part)
        note = "" if record.cot is None else " ✓ as annotated" if same else " ✗ not as annotated"
        lines.append((part + note, getattr(chain, part)))
        if record.cot is not None and not same:
            lines.append((f"the annotated {part}", getattr(record.cot, part)))
    return lines


def text_table(table: Table) -> str:
    """Align a table for a terminal: names to the left, numbers to the right, the note below."""
    rows = [
        [str(name) for name in table.header],
        *([cell(value) for value in row] for row in table.rows),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.header))]
    lines = []
    for first, *others in rows:
        cells = [value.rjust(width) for value, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join([*lines, table.note] if table.note else lines)


# ---- Markdown


def markdown(
    title: str, tables: Sequence[Table], samples: Sequence[tuple], results: Sequence[Result]
) -> str:
    """Compose report.md: every table, the sampled queries in words, the protocols."""
    lines = [f"# {plain(title)}", ""]
    for table in tables:
        lines += [f"## {plain(table.title)}", "", *([plain(table.note), ""] if table.note else [])]
        rows = [table.header, ["---"] * len(table.header), *table.rows]
        lines += ["| " + " | ".join(plain(cell(value)) for value in row) + " |" for row in rows] + [
            ""
        ]
    for result, records in samples:
        lines += [f"## Queries, {plain(heading(result))}", "", drawn_words(result, records), ""]
        for record in records:
            lines += [f"### {plain(record.id)}: {plain(verdict(result, record))}", ""]
            lines += [f"- reference {plain(record.reference)}, text: {plain(record.text)}"]
            lines += [
                f"- {plain(name)}: {plain(words)}" for name, words in chain_lines(result, record)
            ]
            for rank, name, score, right in answers(result, record):
                lines.append(f"- {rank} {plain(name)} {score}{' ✓ right' if right else ''}")
            lines.append("")
    return "\n".join(
        [
            *lines,
            "## Protocols",
            "",
            *("    " + line for line in protocols(results).split("\n")),
            "",
        ]
    )


def plain(text: str) -> str:
    """Escape text for one line of Markdown: no markup, no HTML, no line breaks."""
    escaped = escape(" ".join(str(text).split()), quote=False)
    return "".join("\\" + letter if letter in "\\`*[]|#" else letter for letter in escaped)


def protocols(results: Sequence[Result]) -> str:
    """List the protocol of every result as JSON."""
    return json.dumps([result.protocol for result in results], indent=1, ensure_ascii=False)


def answers(result: Result, record: Record) -> Iterator[tuple[str, str, str, bool]]:
    """(rank, image id, score, right or not) of the first answers, in words, and of a right one that came later."""
    ranking, scores = result.rankings[record.id], result.scores[record.id]
    first = place(result, record)
    later = [first] if first is not None and first > SHOWN else []
    for rank in [*range(1, min(SHOWN, len(ranking)) + 1), *later]:
        yield (
            f"{rank}.",
            ranking[rank - 1],
            f"{scores[rank - 1]:.3f}",
            ranking[rank - 1] in record.targets,
        )
    missing = [name for name in record.targets if first is None and name in result.images]
    for name in missing[:1]:
        yield "not listed:", name, "", True


# ---- HTML


def page(
    title: str, tables: Sequence[Table], samples: Sequence[tuple], results: Sequence[Result]
) -> str:
    """Compose report.html: one self-contained page."""
    drawn = [
        webpage.table(t.title, t.header, [[cell(value) for value in row] for row in t.rows], t.note)
        for t in tables
    ]
    body = [drawn[0], chart(results), *drawn[1:]]
    for result, records in samples:
        body.append(
            f"<h2>Queries, {escape(heading(result))}</h2><p class=note>{drawn_words(result, records)}</p>"
        )
        body += [article(result, record) for record in records]
    body.append(
        f"<h2>Protocols</h2><details><summary>JSON</summary><pre>{escape(protocols(results))}</pre></details>"
    )
    return webpage.document(title, body)


def chart(results: Sequence[Result]) -> str:
    """A bar for each result's first metric, labelled with its value."""
    values = []
    for result in results:
        for metric, value in list(flat(result.metrics).items())[:1]:
            words = f"{heading(result)}: {metric} {value:.2f}"
            values.append((words, value, result.protocol["reading"] in BASELINES))
    return webpage.bars(values, "; ".join(words for words, _, _ in values))


def article(result: Result, record: Record) -> str:
    """One query: what was asked, the chain, the first answers with scores, the right ones marked."""
    parts = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(words)}</dd>"
        for name, words in chain_lines(result, record)
    )
    items = []
    for rank, name, score, right in answers(result, record):
        mark = " <strong>✓ right</strong>" if right else ""
        alt = f"answer {rank}: {name}" + (", a right answer" if right else "")
        items.append(
            f"<li{' class=right' if right else ''}>{webpage.thumbnail(result.images.load(name), alt)}"
            f'<div class="rank">{escape(rank)} {escape(name)}<br>{score}{mark}</div></li>'
        )
    reference = webpage.thumbnail(
        result.images.load(record.reference), f"reference: {record.reference}"
    )
    return (
        f'<article><h3 class="{outcome(result, record)}">{escape(verdict(result, record))}</h3>'
        f'<div class="ask"><figure>{reference}'
        f"<figcaption>reference {escape(record.reference)}</figcaption></figure>"
        f'<p class="text">{escape(record.text)}</p></div>'
        f"{f'<dl>{parts}</dl>' if parts else ''}<ol>{''.join(items)}</ol></article>"
    )
