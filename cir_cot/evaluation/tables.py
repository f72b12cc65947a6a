"""The tables of a report: the summary, by source, and which parts of a routing head the queries went through."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cir_cot.data.scoring import mean_of_categories
from cir_cot.records import Record

from .results import Result


@dataclass(frozen=True)
class Table:
    """A table of the report: a title, the names of the columns, rows of cells, and a line of explanation."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""


def heading(result: Result) -> str:
    """Name a result, e.g. "fashioniq.dress.val · full"."""
    return f"{result.name} · {label(result)}"


def label(result: Result) -> str:
    """Name the reading of a result, e.g. "image only"; the oracle is called what it is."""
    reading = (result.protocol["reading"] or "own").replace("_", " ")
    return "oracle (upper bound)" if reading == "oracle" else reading


def leading(results: Sequence[Result]) -> list[Result]:
    """The first result of each measured set: the one whose queries are shown."""
    first: dict[str, Result] = {}
    for result in results:
        first.setdefault(result.name, result)
    return list(first.values())


def flat(metrics: dict) -> dict[str, float]:
    """The plain numbers among the metrics; nested ones (by aspect) are left to results.json."""
    return {name: value for name, value in metrics.items() if isinstance(value, (int, float))}


def summary_table(results: Sequence[Result]) -> Table:
    """One row a result, then the mean over the categories of a benchmark; one column a metric, in percent."""
    rows, groups = [], {}
    for result in results:
        sizes = [len(result.benchmark.records), len(result.benchmark.gallery)]
        rows.append(([heading(result), *sizes], flat(result.metrics)))
        group = f"{result.benchmark.name}.{result.benchmark.split} · {label(result)}, mean of categories"
        groups.setdefault(group, {})[result.name] = flat(result.metrics)
    for group, metrics in groups.items():
        if len(metrics) > 1:
            rows.append(([group, "", ""], mean_of_categories(metrics)["average"]))
    names = list(dict.fromkeys(name for _, metrics in rows for name in metrics))
    cells = [[*first, *(metrics.get(name, "") for name in names)] for first, metrics in rows]
    sets: dict[str, list[str]] = {}
    for result in leading(results):
        sets.setdefault(protocol_words(result), []).append(result.name)
    note = " ".join(
        ["In percent.", *(f"{', '.join(names)}: {words}." for words, names in sets.items())]
    )
    return Table("Summary", ["set · reading", "queries", "gallery", *names], cells, note)


def protocol_words(result: Result) -> str:
    """Say under which protocol a set was measured: no number means anything without."""
    told = (
        "benchmark",
        "split",
        "category",
        "gallery_size",
        "queries",
    )  # in the name and the columns
    facts = {key: value for key, value in result.benchmark.protocol.items() if key not in told}
    facts |= {"asked": result.protocol["sample"]} if result.protocol["sample"] else {}
    words = [f"{key.replace('_', ' ')} {value}" for key, value in facts.items()]
    return ", ".join([*words, "ties against the model"])


def source_tables(results: Sequence[Result]) -> Iterator[Table]:
    """A table for each measured set with several sources: the first metric by source, one column a reading."""
    for first in leading(results):
        same = [result for result in results if result.name == first.name]
        if first.by_source:
            metric = next(iter(flat(first.metrics)))
            rows = [
                [source, numbers["queries"], *(result.by_source[source][metric] for result in same)]
                for source, numbers in first.by_source.items()
            ]
            yield Table(
                f"{metric} by source, {first.name}", ["source", "queries", *map(label, same)], rows
            )


def choice_tables(results: Sequence[Result]) -> Iterator[Table]:
    """A table for each measured set of a head that chooses among parts: the load of each part, in all and by source."""
    for result in leading(results):
        if not result.choices:
            continue
        groups: dict[str, list[Record]] = {"all": list(result.benchmark.records)}
        for record in result.benchmark.records if result.by_source else ():
            groups.setdefault(record.source, []).append(record)
        names = list(next(iter(result.choices.values())))
        loads = [load(result, records, names) for records in groups.values()]
        rows = [
            [name, bar(column[0]), *column] for name, *column in zip(names, *loads, strict=True)
        ]
        rows.append(["entropy", "", *map(evenness, loads)])
        note = "In percent of the choices; each column of loads sums to 100. Entropy: that of even loads is 100."
        yield Table(f"Load by source, {result.name}", ["part", "", *groups], rows, note)


def load(result: Result, records: Sequence[Record], names: Sequence[str]) -> list[float]:
    """Mean share of each named part over the records, in percent."""
    return [100 * sum(result.choices[r.id][name] for r in records) / len(records) for name in names]


def evenness(loads: Sequence[float]) -> float:
    """Entropy of loads in percent of what it is when all are even; of a single part, 100."""
    shares = [value / sum(loads) for value in loads if value]
    return (
        100 * sum(p * math.log(1 / p) for p in shares) / math.log(len(loads))
        if len(loads) > 1
        else 100.0
    )


def bar(percent: float) -> str:
    """Draw a percentage as a bar of letters, one for each begun two percent: a histogram inside a table."""
    return "\N{FULL BLOCK}" * -int(-percent // 2)


def cell(value: object) -> str:
    """A table's cell as text: numbers of metrics with two decimals."""
    return f"{value:.2f}" if isinstance(value, float) else str(value)
