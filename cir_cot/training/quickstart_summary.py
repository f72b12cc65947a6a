"""Summarise a quickstart: its table of chains, and the content of summary.json."""

import resource
import sys

import torch

from cir_cot.devices import device_name
from cir_cot.evaluation.chain_quality import chain_metrics
from cir_cot.evaluation.results import Result
from cir_cot.evaluation.tables import Table

SPLITS = ("iid", "novel")
KEYS = ("R@1", "R@5", "R@10")
BASE = {
    "name": "cir-cot/tiny-base",
    "taught": "descriptions, selectors, edits in words, and pictures beside their descriptions; "
    "all combinations of shape and colour; no chain, no composed query, no test scene",
}


def chain_table(results: dict[str, list[Result]]) -> tuple[Table, dict[str, float]]:
    """Return the chains of both splits as a table, and the rate (%) of exact conclusions."""
    metrics = {}
    for split, (full, *_) in results.items():
        metrics[split] = chain_metrics(full.benchmark.records, full.explanations, full.flags)
    # One row a split, one column a metric.
    names = list(metrics[SPLITS[0]])
    rows = []
    exact = {}
    for split, values in metrics.items():
        rows.append([split, *(round(values[name], 2) for name in names)])
        exact[split] = round(values["exact_conclusion"], 2)
    note = "Exact: equal to the true chain, word for word."
    return Table("Chains the model wrote (%)", ["split", *names], rows, note), exact


def summarise(results: dict[str, list[Result]], exact: dict[str, float], minutes: float) -> dict:
    """Return the content of summary.json."""
    # Recall of each reading, by split.
    table: dict = {}
    for split, measured in results.items():
        table[split] = {}
        for result in measured:
            recall = {key: round(result.metrics[key], 2) for key in KEYS}
            table[split][result.protocol["reading"]] = recall
        if "no_chain" in table[split]:
            gain = table[split]["full"]["R@1"] - table[split]["no_chain"]["R@1"]
            table.setdefault("chain_minus_no_chain", {})[split] = round(gain, 2)
    # The run. Memory is that of the largest process, which macOS counts in bytes.
    first = next(iter(results.values()))[0]
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    usage = [resource.getrusage(one) for one in who]
    peak = max(one.ru_maxrss for one in usage)
    mebibyte = 2**20 if sys.platform == "darwin" else 2**10
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return table | {
        "exact_conclusion": exact,
        "gallery": first.protocol["gallery_size"],
        "queries": first.protocol["queries"],
        "minutes": round(minutes, 1),
        "processor_seconds": round(sum(one.ru_utime + one.ru_stime for one in usage)),
        "installation_seconds": None,
        "base": BASE,
        "peak_memory_mb": round(peak / mebibyte),
        "device": device_name(device),
    }
