"""Study what chains contribute: evaluate each reading, test whether retrieval follows the chain."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from cir_cot.data.benchmark import Benchmark
from cir_cot.data.scoring import score_rankings
from cir_cot.files import write_text_atomic
from cir_cot.records import Cot, Record
from cir_cot.retriever import QueryOutput, Retriever
from cir_cot.storage import written

from .chain_quality import chain_metrics, percent, swap_chains
from .encode import encode_gallery
from .encoded_rows import Encoding, rows_of
from .evaluate import evaluate, sample_queries
from .readings import ChainReader, Encode, Pictures, modification_texts
from .report import write_report
from .results import Result, results_json, save_results
from .results_folder import RESULTS, writing_results
from .tables import Table, flat
from .uncertainty import paired

READINGS = ("full", "fast", "oracle", "shuffled")
CHAINS_NOTE = (
    "valid: all parts, in order; missing_token: cut off at the length limit; exact: as annotated. "
    "In percent."
)
FAITHFULNESS_NOTE = (
    "With another query's chain: first answers that change, and metrics with that query's targets "
    "as right."
)


class Study(NamedTuple):
    """Results of one measured set by reading, and the query whose chain each query was read with.

    `donors` maps a record id to the record that lent its chain; None where no chains could be lent.
    """

    results: dict[str, Result]
    donors: dict[str, Record] | None


def study_chains(
    retriever: Retriever,
    benchmark: Benchmark,
    *,
    model: str = "",
    limit: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = False,
    announce: Callable[[str], None] = lambda reading: None,
    encoding: Encoding | None = None,
    gallery: Tensor | None = None,
) -> Study:
    """Evaluate the readings full and fast, and where possible oracle and shuffled.

    The oracle needs an annotated chain for each query; shuffled reads each query with the chain
    that the model wrote for another query.

    Args:
        retriever: A retriever that writes chains.
        benchmark: Queries, gallery and protocol.
        model: Name of the checkpoint, for the protocol.
        limit: Evaluate a sample of this many queries.
        batch_size: Pictures in one forward pass.
        seed: Seed of the sample and of the lent chains.
        progress: Show progress bars.
        announce: Called with each reading before it is evaluated.
        encoding: Where rows are kept, see `evaluate`.
        gallery: (N, D) embeddings of the gallery, to reuse them.
    """
    sample_queries(benchmark, limit, seed)  # refuses a limit before anything is encoded
    # All readings share the gallery's embeddings.
    images = benchmark.images()
    if gallery is None:
        rows = rows_of(encoding, "gallery")
        names = benchmark.gallery
        gallery = encode_gallery(retriever, names, images, batch_size, progress, rows)
    measure = partial(evaluate, retriever, benchmark, images, gallery=gallery, model=model)
    options: dict[str, Any] = {"limit": limit, "batch_size": batch_size, "seed": seed}

    def ask(reading: str, encode: Encode | None = None) -> Result:
        announce(reading)
        return measure(encode, reading=reading, encoding=encoding, progress=progress, **options)

    results = {reading: ask(reading) for reading in ("full", "fast")}
    asked = results["full"].benchmark.records
    # The annotated chains are an upper bound; a partial one would not be comparable.
    if all(record.cot for record in asked):
        results["oracle"] = ask("oracle")
    # Another query's chain shows whether retrieval follows the chain.
    donors = swap_chains(asked, results["full"].explanations, seed)
    if donors is not None:
        lent = {name: donor.cot for name, donor in donors.items() if donor.cot is not None}
        results["shuffled"] = ask("shuffled", _encode_with(retriever, lent))
    return Study(results, donors)


def _encode_with(retriever: Retriever, chains: dict[str, Cot]) -> Encode:
    """Return a function that encodes records with given chains, by record id."""
    assert isinstance(retriever, ChainReader)

    def encode(records: Sequence[Record], pictures: Pictures) -> QueryOutput:
        lent = [chains[record.id] for record in records]
        return retriever.embed_with(pictures, modification_texts(records), lent)

    return encode


def faithfulness(study: Study) -> dict:
    """Measure whether retrieval goes where a lent chain leads; {} where no chains were lent.

    Returns:
        "moved": first answers that changed, in percent. "followed": metrics of the shuffled reading
        with the lender's targets as right, not for GeneCIS, where they are no candidates.
    """
    if study.donors is None:
        return {}
    # Count the queries whose first answer changed with the chain.
    full = study.results["full"]
    shuffled = study.results["shuffled"]
    changed = [full.rankings[name][0] != shuffled.rankings[name][0] for name in study.donors]
    moved = percent(changed)
    if not shuffled.metrics or shuffled.benchmark.candidates is not None:
        return {"moved": moved}
    # Score the shuffled rankings by the targets of the queries that lent their chains.
    records = []
    for record in shuffled.benchmark.records:
        records.append(replace(record, targets=study.donors[record.id].targets))
    benchmark = replace(shuffled.benchmark, records=records, weights=None)
    followed = score_rankings(benchmark, shuffled.rankings, shuffled.subset_rankings)
    return {"moved": moved, "followed": followed}


def by_reading(studies: Sequence[Study]) -> dict[str, list[Result]]:
    """Return the results of all categories for each reading that every category has."""
    results = {}
    for name in studies[0].results:
        # A reading that one category lacks has no mean over categories.
        if all(name in study.results for study in studies):
            results[name] = [study.results[name] for study in studies]
    return results


def study_json(studies: Sequence[Study]) -> dict:
    """Return the content of results.json: metrics by reading, metrics of the chains, protocol."""
    keys = ("metrics", "intervals", "paired", "chains", "faithfulness", "by_source", "protocol")
    content: dict[str, dict[str, Any]] = {key: {} for key in keys}
    # Metrics, by_source and protocol, each by reading.
    for reading, results in by_reading(studies).items():
        for key, value in results_json(results).items():
            content[key][reading] = value
    # The chains that the model wrote, by measured set.
    for study in studies:
        full = study.results["full"]
        records = full.benchmark.records
        # How each other reading fares on the same queries.
        others = {name: one for name, one in study.results.items() if name != "full"}
        if full.metrics:
            pairs = {name: paired(full, other) for name, other in others.items()}
            content["paired"][full.name] = pairs
        content["chains"][full.name] = chain_metrics(records, full.explanations, full.flags)
        content["faithfulness"][full.name] = faithfulness(study)
    return content


def study_tables(content: dict) -> list[Table]:
    """Return the tables of chain metrics and of faithfulness, from what `study_json` returns."""
    # A row for each measured set, a column for each metric that any set has.
    chains = content["chains"]
    columns: dict[str, None] = {}
    for metrics in chains.values():
        columns |= dict.fromkeys(metrics)
    rows = []
    for name, metrics in chains.items():
        rows.append([name, *(metrics.get(column, "") for column in columns)])
    tables = [Table("Chains", ["set", *columns], rows, CHAINS_NOTE)]
    # The same for faithfulness, where chains were lent.
    measured = {name: values for name, values in content["faithfulness"].items() if values}
    if measured:
        first = next(iter(measured.values()))
        names = list(flat(first.get("followed", {})))
        rows = []
        for name, values in measured.items():
            followed = values.get("followed", {})
            rows.append([name, values["moved"], *(followed.get(metric, "") for metric in names)])
        title = "Does retrieval follow the chain?"
        tables.append(Table(title, ["set", "moved", *names], rows, FAITHFULNESS_NOTE))
    return tables


def save_study(
    folder: str | Path, studies: Sequence[Study], seed: int = 0, overwrite: bool = False
) -> None:
    """Write a folder for each reading, results.json and the report; results.json is written last.

    Args:
        folder: Folder to write, created if needed.
        studies: One study, or one for each category of a benchmark.
        seed: Seed of the queries that the report shows.
        overwrite: Also replace files that no measurement wrote.
    """
    folder = Path(folder)
    content = study_json(studies)
    # Results of all categories and readings, in the order of the report.
    results = [result for study in studies for result in study.results.values()]
    with written(folder), writing_results(folder, [RESULTS], [RESULTS], overwrite):
        # The rankings of each reading have a folder of their own, as `cir-cot retrieval` writes it.
        for reading, found in by_reading(studies).items():
            save_results(found, folder / reading, overwrite)
        write_report(
            folder,
            results,
            title="Chains and retrieval",
            tables=study_tables(content),
            seed=seed,
            overwrite=overwrite,
        )
        # results.json comes last: where it exists, everything else is complete.
        text = json.dumps(content, indent=1, ensure_ascii=False)
        write_text_atomic(folder / RESULTS, text + "\n")
