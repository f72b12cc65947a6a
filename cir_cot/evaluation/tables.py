"""Build the tables of a report: summary, metrics by source, load of experts or prompts."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cir_cot.data.scoring import mean_of_categories
from cir_cot.records import Record

from .results import Result

# Keys of a benchmark's protocol that the summary shows in a set's name or in a column.
IN_THE_TABLE = ("benchmark", "split", "category", "gallery_size", "queries")


@dataclass(frozen=True)
class Table:
    """A table of the report: title, column names, rows of cells, and a note below the title."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""


def heading(result: Result) -> str:
    """Name a result, e.g. "fashioniq.dress.val · full"."""
    return f"{result.name} · {label(result)}"


def label(result: Result) -> str:
    """Name the reading of a result, e.g. "image only"; the oracle is marked as an upper bound."""
    reading = (result.protocol["reading"] or "own").replace("_", " ")
    return "oracle (upper bound)" if reading == "oracle" else reading


def leading(results: Sequence[Result]) -> list[Result]:
    """Return the first result of each measured set: the one whose queries are shown."""
    first: dict[str, Result] = {}
    for result in results:
        first.setdefault(result.name, result)
    return list(first.values())


def flat(metrics: dict) -> dict[str, float]:
    """Return the metrics that are numbers; nested ones (by aspect) are in results.json only."""
    return {name: value for name, value in metrics.items() if isinstance(value, (int, float))}


def summary_table(results: Sequence[Result]) -> Table:
    """Return a row for each result and each mean over categories, a column for each metric."""
    rows: list[tuple[list, Mapping[str, float]]] = []
    groups: dict[str, dict[str, dict[str, float]]] = {}
    # A row for each result, grouped by benchmark and reading.
    for result in results:
        benchmark = result.benchmark
        sizes = [len(benchmark.records), len(benchmark.gallery)]
        rows.append(([heading(result), *sizes], _telling(result)))
        group = f"{benchmark.name}.{benchmark.split} · {label(result)}, mean of categories"
        groups.setdefault(group, {})[result.name] = flat(result.metrics)
    # A row for the mean of each group.
    for group, metrics in groups.items():
        if len(metrics) > 1:
            rows.append(([group, "", ""], mean_of_categories(metrics)["average"]))
    # A column for each metric that any row has.
    names: dict[str, None] = {}
    for _, values in rows:
        names |= dict.fromkeys(values)
    cells = []
    for first, values in rows:
        cells.append([*first, *(values.get(name, "") for name in names)])
    header = ["set · reading", "queries", "gallery", *names]
    return Table("Summary", header, cells, _protocols_note(results))


def _telling(result: Result) -> dict[str, float]:
    """Return a result's metrics without recalls at as many images as there are: these are 100 for any model."""
    size = len(result.benchmark.gallery)
    kept = {}
    for name, value in flat(result.metrics).items():
        depth = name.removeprefix("R@")
        if not (name.startswith("R@") and depth.isdigit() and 0 < size <= int(depth)):
            kept[name] = value
    return kept


def _protocols_note(results: Sequence[Result]) -> str:
    """Write the protocol of each measured set, sets of the same protocol together."""
    sets: dict[str, list[str]] = {}
    for result in leading(results):
        sets.setdefault(protocol_text(result), []).append(result.name)
    return " ".join(
        ["In percent.", *(f"{', '.join(names)}: {text}." for text, names in sets.items())]
    )


def protocol_text(result: Result) -> str:
    """Describe the protocol of a measured set; a metric means nothing without it."""
    protocol = result.benchmark.protocol
    values = {key: value for key, value in protocol.items() if key not in IN_THE_TABLE}
    if result.protocol["sample"]:
        values["asked"] = result.protocol["sample"]
    parts = [f"{key.replace('_', ' ')} {value}" for key, value in values.items()]
    return ", ".join([*parts, "ties against the model"])


def source_tables(results: Sequence[Result]) -> Iterator[Table]:
    """Yield the first metric by source, for each measured set with several sources."""
    for first in leading(results):
        if not first.by_source:
            continue
        # A column for each reading of this set.
        readings = [result for result in results if result.name == first.name]
        # The first metric is the benchmark's primary one.
        metric = next(iter(flat(first.metrics)))
        rows = []
        for source, metrics in first.by_source.items():
            values = [result.by_source[source][metric] for result in readings]
            rows.append([source, metrics["queries"], *values])
        header = ["source", "queries", *map(label, readings)]
        yield Table(f"{metric} by source, {first.name}", header, rows)


def routing_tables(results: Sequence[Result]) -> Iterator[Table]:
    """Yield the load of each expert or prompt, in all and by source, for heads that route."""
    for result in leading(results):
        if not result.routing:
            continue
        # Group the queries: all, then by source where there are several.
        groups: dict[str, list[Record]] = {"all": list(result.benchmark.records)}
        if result.by_source:
            for record in result.benchmark.records:
                groups.setdefault(record.source, []).append(record)
        # Write a row for each part, with a column for each group.
        names = list(next(iter(result.routing.values())))
        loads = [load(result, records, names) for records in groups.values()]
        rows: list[list] = []
        for name, *column in zip(names, *loads, strict=True):
            rows.append([name, bar(column[0]), *column])
        rows.append(["entropy", "", *map(evenness, loads)])
        note = (
            "In percent of the choices; each column of loads sums to 100. "
            "Entropy: that of even loads is 100."
        )
        yield Table(f"Load by source, {result.name}", ["part", "", *groups], rows, note)


def load(result: Result, records: Sequence[Record], names: Sequence[str]) -> list[float]:
    """Return the mean share of each named part over the records, in percent."""
    shares = [result.routing[record.id] for record in records]
    loads = []
    for name in names:
        total = sum(share[name] for share in shares)
        loads.append(100 * total / len(records))
    return loads


def evenness(loads: Sequence[float]) -> float:
    """Return the entropy of loads in percent of that of even loads; 100 for a single part."""
    if len(loads) == 1:
        return 100.0
    # A part without load adds nothing to the entropy.
    shares = [value / sum(loads) for value in loads if value]
    return 100 * sum(p * math.log(1 / p) for p in shares) / math.log(len(loads))


def bar(percent: float) -> str:
    """Draw a percentage as a bar of block characters, one for each started 2 %."""
    return "\N{FULL BLOCK}" * -int(-percent // 2)


def cell(value: object) -> str:
    """Format a cell: floats with two decimals."""
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def text_table(table: Table) -> str:
    """Align a table for a terminal: first column to the left, others to the right, note below."""
    # Format every cell.
    rows = [[str(name) for name in table.header]]
    for row in table.rows:
        rows.append([cell(value) for value in row])
    # Pad each column to its widest cell.
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [value.rjust(width) for value, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    if table.note:
        lines.append(table.note)
    return "\n".join(lines)
