"""Check a dataset and its chains: schema, pictures, gallery, leaks from train, filters."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from cir_cot.data import load_benchmark
from cir_cot.data.benchmark import Benchmark, label
from cir_cot.data.chain_files import attach_chains
from cir_cot.data.check import Finding, check_images, check_leaks, check_queries, named
from cir_cot.errors import InputError, UnavailableError
from cir_cot.images import ImageStore
from cir_cot.records import Record

from .filters import FILTERS, duplicates

EXAMPLES = 5  # examples of each finding; the count is of all cases
# Findings that official data has, too; every other finding is an error.
WARNINGS = (
    "blank_caption",
    "reference_is_target",
    "duplicate_query",
    "duplicate_image",
    "image_in_train",
    "few_queries_in_train",
    "chain_duplicate",  # official data asks a few queries twice: an equal chain is no fault
)


def check(
    name: str, root: str, split: str, chains: Sequence[str] | None = None
) -> tuple[dict, list[Record], dict[str, ImageStore]]:
    """Check one split of a benchmark.

    Args:
        name: the benchmark, a key of BENCHMARKS.
        root: its folder.
        split: the split to check.
        chains: JSONL files of chains; without one the records' own chains are checked.

    Returns:
        The report, the records with their chains, and the store of each picture that they name. The
        report is {"errors", "warnings": [{"check", "count", "examples"}], "filters": the same by
        filter, including those without a finding, "notes": what was not checked, "parts": the
        counts of each category}.

    Example:
        report, records, stores = check("cirr", "data/cirr_dataset", "val")
    """
    # A mistyped file name must not look like a file without chains.
    for path in chains or ():
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file of chains")
    found: list[Finding] = []
    notes: list[str] = []
    parts: dict[str, dict] = {}
    stores: dict[str, ImageStore] = {}

    # A dataset that cannot be read is one finding.
    try:
        benchmarks = load_benchmark(name, root, split)
    except UnavailableError:
        raise
    except InputError as error:
        return summary(name, split, [("schema", [str(error)])], notes, parts), [], {}

    # Queries of each category, and pictures where they are at hand.
    for benchmark in benchmarks:
        found += check_queries(benchmark)
        counts = {"queries": len(benchmark.records), "gallery": len(benchmark.gallery)}
        parts[label(benchmark)] = counts
        try:
            store = benchmark.images()
        except UnavailableError as error:
            notes.append(f"pictures not checked: {error}")
            continue
        found += check_images(benchmark, store, counts)
        stores |= dict.fromkeys(named(benchmark.records), store)

    # The split against train, then its chains.
    found += check_leaks(name, root, benchmarks, notes)
    records, of_chains = check_chains(benchmarks, chains or (), parts)
    return summary(name, split, found + of_chains, notes, parts), records, stores


def summary(name: str, split: str, found: Iterable[Finding], notes: list[str], parts: dict) -> dict:
    """Compose the report: errors and warnings with cases only, and every filter of chains."""
    # Categories report the same check separately: merge them.
    cases: dict[str, list[str]] = {}
    for check, some in found:
        cases.setdefault(check, []).extend(some)

    # Sort the findings; a check without cases is left out, a filter never is.
    errors = []
    warnings = []
    filters = []
    for check, some in cases.items():
        row = {"check": check, "count": len(some), "examples": some[:EXAMPLES]}
        if some and check in WARNINGS:
            warnings.append(row)
        elif some:
            errors.append(row)
        if check.startswith("chain_"):
            filters.append(row)
    return {
        "benchmark": name,
        "split": split,
        "parts": parts,
        "errors": errors,
        "warnings": warnings,
        "filters": filters,
        "notes": notes,
    }


def check_chains(
    benchmarks: list[Benchmark], paths: Sequence[str], parts: dict
) -> tuple[list[Record], list[Finding]]:
    """Attach the chains of `paths` to the records, and run every filter.

    Args:
        benchmarks: the categories of the split.
        paths: JSONL files of chains; without one the records' own chains are checked.
        parts: gets the counts of chains.

    Returns:
        The records with their chains, and the findings.
    """
    # Chains of the files replace the records' own.
    records = [record for benchmark in benchmarks for record in benchmark.records]
    try:
        for path in paths:
            records = attach_chains(records, path)
    except InputError as error:
        return records, [("chain_schema", [str(error)])]
    # A dataset without chains has nothing more to check.
    chained = [record for record in records if record.cot]
    if not chained and not paths:
        return records, []
    parts["chains"] = {"chains": len(chained), "without": len(records) - len(chained)}

    # The filters of one chain.
    found = [(f"chain_{one.name}", failing(chained, one.problem)) for one in FILTERS]

    # Only a training split may have chains whose teacher saw the target.
    seen = "the teacher saw the target, which only training may"
    train = benchmarks[0].split == "train"
    leaked = failing(chained, lambda record: "" if train or not saw_target(record) else seen)

    # Chains that repeat another one.
    repeated = []
    for record, first in duplicates(chained):
        repeated.append(f"{record.source} {record.id}: repeats {first.id}")
    return records, [*found, ("chain_seen_target", leaked), ("chain_duplicate", repeated)]


def saw_target(record: Record) -> bool:
    """Tell whether the teacher of a record's chain saw the target picture."""
    return bool((record.teacher or {}).get("seen_target"))


def failing(records: list[Record], problem: Callable[[Record], str]) -> list[str]:
    """List `source id: what` of the records that have the problem."""
    cases = []
    for record in records:
        if what := problem(record):
            cases.append(f"{record.source} {record.id}: {what}".strip())
    return cases
