"""TODO."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from cir_cot.data import load_benchmark
from cir_cot.data.benchmark import Benchmark, label
from cir_cot.errors import InputError, UnavailableError
from cir_cot.images import ImageStore
from cir_cot.records import Record, attach_chains

from .filters import FILTERS, duplicates

EXAMPLES = 5  # of each problem; the count is always of all
FEW = 0.001  # ours: official FashionIQ shares 3 of its 6,016 val pairs with train, which no user can cure
# Worth knowing, and official data has all of it; every other finding is an error.
WARNINGS = (
    "blank_caption",
    "reference_is_target",
    "duplicate_query",
    "duplicate_image",
    "image_in_train",
    "few_queries_in_train",
    "chain_duplicate",  # official data asks a few queries twice: the same answer is no fault of the chain
)


def check(
    name: str, root: str, split: str, chains: Sequence[str] | None = None
) -> tuple[dict, list[Record], dict[str, ImageStore]]:
    """The report, the records with their chains, and the store of each picture that they name.

    The report: {"errors", "warnings": [{"check", "count", "examples"}], "filters": the same by filter, those without a
    finding included, "notes", "parts": counts of each category}.
    """
    for path in chains or ():
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file of chains")
    found: list[tuple[str, list[str]]] = []
    notes: list[str] = []
    parts: dict[str, dict] = {}
    stores: dict[str, ImageStore] = {}
    try:
        benchmarks = load_benchmark(name, root, split)
    except UnavailableError:
        raise
    except InputError as error:
        return summary(name, split, [("schema", [str(error)])], notes, parts), [], {}
    for benchmark in benchmarks:
        found += check_queries(benchmark)
        parts[label(benchmark)] = counts = {
            "queries": len(benchmark.records),
            "gallery": len(benchmark.gallery),
        }
        try:
            store = benchmark.images()
        except UnavailableError as error:
            notes.append(f"pictures not checked: {error}")
            continue
        found += check_images(benchmark, store, counts)
        stores |= dict.fromkeys(named(benchmark.records), store)
    found += check_leaks(name, root, benchmarks, notes)
    records, of_chains = check_chains(benchmarks, chains or (), parts)
    return summary(name, split, found + of_chains, notes, parts), records, stores


def summary(
    name: str, split: str, found: Iterable[tuple[str, list[str]]], notes: list[str], parts: dict
) -> dict:
    """The report; among errors and warnings a check without findings is left out, among the filters none is."""
    cases: dict[str, list[str]] = {}
    for check, some in found:
        cases.setdefault(check, []).extend(some)
    rows = [
        {"check": check, "count": len(all_), "examples": all_[:EXAMPLES]}
        for check, all_ in cases.items()
    ]
    report = {"benchmark": name, "split": split, "parts": parts}
    report["errors"] = [row for row in rows if row["count"] and row["check"] not in WARNINGS]
    report["warnings"] = [row for row in rows if row["count"] and row["check"] in WARNINGS]
    report["filters"] = [row for row in rows if row["check"].startswith("chain_")]
    return report | {"notes": notes}


def named(records: Iterable[Record]) -> list[str]:
    """The pictures of the queries, each once."""
    return list(
        dict.fromkeys(image for record in records for image in (record.reference, *record.targets))
    )


def check_queries(benchmark: Benchmark) -> list[tuple[str, list[str]]]:
    """What records say of themselves and of the gallery."""
    where, gallery = label(benchmark), benchmark.members
    seen: dict[tuple[str, str], str] = {}
    cases: dict[str, list[str]] = {}

    def case(check: str, record: Record, what: str) -> None:
        cases.setdefault(check, []).append(f"{where} {record.id}: {what}")

    for record in benchmark.records:
        if not record.text.strip(" .,?"):
            case("blank_text", record, "no text")
        if benchmark.captions and not all(
            caption.strip(" .,?") for caption in benchmark.captions[record.id]
        ):
            case("blank_caption", record, "one of the two captions is blank")
        if record.reference in record.targets:
            case(
                "reference_is_target",
                record,
                f"{record.reference}: a sure miss where the reference is removed",
            )
        for target in record.targets:
            if gallery and target not in gallery:
                case("target_not_in_gallery", record, target)
            if record.subset and target not in record.subset:
                case("target_not_in_subset", record, target)
        first = seen.setdefault((record.reference, record.text), record.id)
        if first != record.id:
            case("duplicate_query", record, f"same reference and text as {first}")
    return list(cases.items())


def check_images(
    benchmark: Benchmark, store: ImageStore, counts: dict
) -> list[tuple[str, list[str]]]:
    """Decode every picture of the gallery and of the queries; without the unusable ones the gallery is effective."""
    names = list(dict.fromkeys([*benchmark.gallery, *named(benchmark.records)]))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        look = tqdm(
            pool.map(lambda name: look_at(store, name), names),
            total=len(names),
            unit=" pictures",
            disable=None,
        )
        states = dict(zip(names, look, strict=True))
    copies: dict[str, list[str]] = {}
    for name, (state, detail) in states.items():
        if state == "fine":
            copies.setdefault(detail, []).append(name)
    bad = {name for name, (state, _) in states.items() if state != "fine"}
    counts["effective_gallery"] = sum(name not in bad for name in benchmark.gallery)
    return [
        ("missing_image", [detail for state, detail in states.values() if state == "missing"]),
        ("corrupt_image", [detail for state, detail in states.values() if state == "corrupt"]),
        ("duplicate_image", [" = ".join(names) for names in copies.values() if len(names) > 1]),
    ]


def look_at(store: ImageStore, name: str) -> tuple[str, str]:
    """("fine", digest of the picture), ("missing", why) or ("corrupt", why)."""
    try:
        store.path(name)
    except InputError as error:
        return "missing", str(error)
    try:
        store.load(name)
        return "fine", store.fingerprint(name)
    except InputError as error:
        return "corrupt", str(error)


def check_leaks(
    name: str, root: str, benchmarks: list[Benchmark], notes: list[str]
) -> list[tuple[str, list[str]]]:
    """Pictures and queries that this split shares with the train split, where there is one."""
    if benchmarks[0].split == "train":
        return []
    try:
        train = load_benchmark(name, root, "train")
    except UnavailableError as error:
        notes.append(f"leaks from train not checked: {error}")
        return []
    except InputError as error:
        return [("schema", [str(error)])]
    known = {image for benchmark in train for image in benchmark.gallery}
    shared = sorted({image for benchmark in benchmarks for image in benchmark.gallery} & known)
    queries = {
        pair for benchmark in train for record in benchmark.records for pair in pairs(record)
    }
    leaked = [
        f"{label(benchmark)} {record.id}: {record.reference} -> {' '.join(record.targets)}"
        for benchmark in benchmarks
        for record in benchmark.records
        if queries.intersection(pairs(record))
    ]
    few = len(leaked) <= FEW * sum(len(benchmark.records) for benchmark in benchmarks)
    return [
        ("image_in_train", shared),
        ("few_queries_in_train" if few else "query_in_train", leaked),
    ]


def pairs(record: Record) -> list[tuple[str, str]]:
    """(reference, target) of each target."""
    return [(record.reference, target) for target in record.targets]


def check_chains(
    benchmarks: list[Benchmark], paths: Sequence[str], parts: dict
) -> tuple[list[Record], list[tuple[str, list[str]]]]:
    """The records with the chains of `paths` or, without one, their own; and what every filter says of them."""
    records = [record for benchmark in benchmarks for record in benchmark.records]
    try:
        for path in paths:
            records = attach_chains(records, path)
    except InputError as error:
        return records, [("chain_schema", [str(error)])]
    chained = [record for record in records if record.cot]
    if not chained and not paths:
        return records, []
    parts["chains"] = {"chains": len(chained), "without": len(records) - len(chained)}
    found = [(f"chain_{name}", failing(chained, problem)) for name, problem in FILTERS]
    again = [
        f"{record.source} {record.id}: says what {first.id} says"
        for record, first in duplicates(chained)
    ]
    seen = (
        ""
        if benchmarks[0].split == "train"
        else "the teacher saw the target, which only training may"
    )
    leaked = failing(chained, lambda record: (record.teacher or {}).get("seen_target") and seen)
    return records, [*found, ("chain_seen_target", leaked), ("chain_duplicate", again)]


def failing(records: list[Record], problem: Callable[[Record], str | None]) -> list[str]:
    """`source id: what` of the records with the problem."""
    cases = ((record, problem(record)) for record in records)
    return [f"{record.source} {record.id}: {what}".strip() for record, what in cases if what]
