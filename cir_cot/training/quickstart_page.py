"""Tell two queries on the quickstart's page: one that its chain finds, one that a correction repairs."""

from collections.abc import Sequence
from html import escape

from cir_cot.evaluation.corrections import written_right
from cir_cot.evaluation.report_queries import first_answers, query_html
from cir_cot.evaluation.results import Result
from cir_cot.evaluation.samples import outcome, verdict
from cir_cot.records import Record


def stories(measured: Sequence[Result]) -> list[str]:
    """Compose the two queries of a split as pieces of HTML; one that does not occur is left out.

    Args:
        measured: the split's results, with the readings full, fast and oracle.
    """
    named = {result.protocol["reading"]: result for result in measured}
    full = named["full"]
    fast = named["fast"]
    oracle = named["oracle"]
    told = []
    # Found with the chain that the model wrote, and missed without one.
    for record in full.benchmark.records:
        if outcome(full, record) == "found" and outcome(fast, record) == "missed":
            title = f"What the chain is for ({full.benchmark.split})"
            told.append(_told(title, full, fast, record, "The same query without a chain"))
            break
    # Missed with a wrong chain, and found with its correction.
    for record in full.benchmark.records:
        missed = outcome(full, record) == "missed" and not written_right(full, record)
        if missed and outcome(oracle, record) == "found":
            title = f"A wrong chain, and its correction ({full.benchmark.split})"
            told.append(_told(title, full, oracle, record, "The same query, its chain corrected"))
            break
    return told


def _told(title: str, full: Result, other: Result, record: Record, what: str) -> str:
    """Compose a query as the model read it, and the first answers of another reading."""
    return (
        f"<h2>{escape(title)}</h2><article>{query_html(full, record)}</article><article>"
        f'<h3 class="{outcome(other, record)}">{escape(what)}: {escape(verdict(other, record))}</h3>'
        f"{first_answers(other, record)}</article>"
    )
