"""Write a report of results as report.md and as report.html (with pictures), from the same tables.

All text from users, annotations and models is escaped. A right answer is marked by a frame, a check
mark and a word, never by colour alone.
"""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from cir_cot import webpage
from cir_cot.files import write_text_atomic
from cir_cot.records import Record
from cir_cot.storage import written

from .report_charts import rank_charts, rank_tables, training_charts
from .report_queries import queries_section
from .results import Result
from .results_folder import REPORT, writing_results
from .samples import answers, chain_lines, drawn_text, sample, verdict
from .tables import (
    Table,
    cell,
    flat,
    heading,
    leading,
    routing_tables,
    source_tables,
    summary_table,
)
from .uncertainty import doubts, interval_table, paired_tables

BASELINES = ("image_only", "text_only", "shuffled", "no_chain")
MARKUP = "\\`*[]|#"  # characters that mean something in Markdown

Samples = Sequence[tuple[Result, Sequence[Record]]]  # the queries to show of each result


def write_report(
    folder: str | Path,
    results: Sequence[Result],
    *,
    title: str = "Retrieval report",
    tables: Sequence[Table] = (),
    stories: Sequence[str] = (),
    queries: int = 6,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Write report.md and report.html about results.

    Args:
        folder: Folder to write, created if needed.
        results: What is reported; the first result of each measured set shows its queries.
        title: Title of both files.
        tables: Tables to show after the report's own.
        stories: Pieces of HTML that report.html shows before its tables but the first.
        queries: How many failures, and how many successes, to show of each measured set.
        seed: Seed of the drawn queries.
        overwrite: Also replace files that no measurement wrote.

    Raises:
        InputError: One of the files exists and no measurement wrote it.
    """
    folder = Path(folder)
    # Compose both files before the folder is touched.
    summary = summary_table(results)
    warnings = " ".join(doubts(results))
    tables = [
        Table(summary.title, summary.header, summary.rows, f"{summary.note} {warnings}".strip()),
        *interval_table(results),
        *paired_tables(results),
        *rank_tables(results),
        *source_tables(results),
        *routing_tables(results),
        *tables,
    ]
    samples = [(result, sample(result, queries, seed, results)) for result in leading(results)]
    texts = (
        markdown(title, tables, samples, results),
        page(title, tables, samples, results, stories),
    )
    with written(folder), writing_results(folder, REPORT, REPORT, overwrite):
        for name, text in zip(REPORT, texts, strict=True):
            write_text_atomic(folder / name, text)


def protocols(results: Sequence[Result]) -> str:
    """Return the protocols of all results as a JSON list."""
    return json.dumps([result.protocol for result in results], indent=1, ensure_ascii=False)


# ---- Markdown


def markdown(
    title: str, tables: Sequence[Table], samples: Samples, results: Sequence[Result]
) -> str:
    """Compose report.md: every table, the drawn queries, the protocols."""
    # The tables.
    lines = [f"# {plain(title)}", ""]
    for table in tables:
        lines += [*_markdown_table(table), ""]
    # The drawn queries of each measured set.
    for result, records in samples:
        lines += [f"## Queries, {plain(heading(result))}", "", drawn_text(result, records), ""]
        for record in records:
            lines += [*_markdown_query(result, record), ""]
    # The protocols, as a code block.
    lines += ["## Protocols", ""]
    lines += [f"    {line}" for line in protocols(results).split("\n")]
    return "\n".join([*lines, ""])


def _markdown_table(table: Table) -> list[str]:
    """Return the lines of a table with its title and note."""
    lines = [f"## {plain(table.title)}", ""]
    if table.note:
        lines += [plain(table.note), ""]
    for row in (table.header, ["---"] * len(table.header), *table.rows):
        lines.append(f"| {' | '.join(plain(cell(value)) for value in row)} |")
    return lines


def _markdown_query(result: Result, record: Record) -> list[str]:
    """Return the lines of a query: reference and text, chain, first answers."""
    lines = [f"### {plain(record.id)}: {plain(verdict(result, record))}", ""]
    lines.append(f"- reference {plain(record.reference)}, text: {plain(record.text)}")
    for name, text, _ in chain_lines(result, record):
        lines.append(f"- {plain(name)}: {plain(text)}")
    for rank, name, score, right in answers(result, record):
        lines.append(f"- {rank} {plain(name)} {score}{' ✓ right' if right else ''}")
    return lines


def plain(text: object) -> str:
    """Escape text for one line of Markdown: no markup, no HTML, no line breaks."""
    escaped = escape(" ".join(str(text).split()), quote=False)
    return "".join(f"\\{letter}" if letter in MARKUP else letter for letter in escaped)


# ---- HTML


def page(
    title: str,
    tables: Sequence[Table],
    samples: Samples,
    results: Sequence[Result],
    stories: Sequence[str] = (),
) -> str:
    """Compose report.html: one self-contained page."""
    # The summary and its charts come first.
    drawn = []
    for table in tables:
        rows = []
        for row in table.rows:
            rows.append([cell(value) for value in row])
        drawn.append(webpage.table(table.title, table.header, rows, table.note))
    curves = [*rank_charts(results), *training_charts(results)]
    body = [drawn[0], chart(results), *curves, *stories, *drawn[1:]]
    # Then the drawn queries of each measured set.
    for number, (result, records) in enumerate(samples):
        body.append(queries_section(result, records, results, f"q{number}"))
    # Then the protocols, folded.
    details = f"<details><summary>JSON</summary><pre>{escape(protocols(results))}</pre></details>"
    body.append(f"<h2>Protocols</h2>{details}")
    return webpage.document(title, body)


def chart(results: Sequence[Result]) -> str:
    """Draw a bar for the first metric of each result, labelled with its value."""
    # The first metric is the benchmark's primary one; without published answers there is none.
    values = []
    for result in results:
        for metric, value in list(flat(result.metrics).items())[:1]:
            text = f"{heading(result)}: {metric} {value:.2f}"
            values.append((text, value, result.protocol["reading"] in BASELINES))
    return webpage.bars(values, "; ".join(text for text, _, _ in values))
