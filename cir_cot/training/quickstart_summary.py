"""Summarise a quickstart: the table it ends with, its table of chains, and summary.json."""

import resource
import sys

import torch

from cir_cot.devices import device_name
from cir_cot.evaluation.chain_quality import chain_metrics
from cir_cot.evaluation.corrections import repairs
from cir_cot.evaluation.results import Result
from cir_cot.evaluation.tables import Table

SPLITS = ("iid", "novel")
KEYS = ("R@1", "R@5", "R@10")
BASE = {
    "name": "cir-cot/tiny-base",
    "taught": "descriptions, selectors, edits in words, and pictures beside their descriptions; "
    "all combinations of shape and colour; no chain, no composed query, no test scene",
}


ROWS = {
    "full": "Full: the model writes its chain",
    "fast": "Fast: the same model without a chain",
    "oracle": "Oracle: the true chain is given",
    "no_chain": "No chain: trained without any",
    "image_only": "reference picture alone",
    "text_only": "words alone, grey picture",
}


def final_table(summary: dict) -> Table:
    """Return the table that a quickstart ends with: R@1 of each reading on both splits."""
    rows = []
    for reading, name in ROWS.items():
        if reading in summary[SPLITS[0]]:
            rows.append([name, *(summary[split][reading]["R@1"] for split in SPLITS)])
    note = (
        f"R@1 in percent: {summary['queries']} queries on new scenes (iid) and on new combinations "
        f"of shape and colour (novel),\n{summary['gallery']} pictures, the reference removed, ties "
        "against the model. All start from the shipped base."
    )
    return Table("Quickstart", ["", *SPLITS], rows, note)


def meaning(summary: dict) -> str:
    """Return one sentence on what the numbers of a quickstart mean."""
    gains = []
    shares = []
    for split in SPLITS:
        gain = summary[split]["full"]["R@1"] - summary[split]["fast"]["R@1"]
        gains.append(f"{gain:+.1f}")
        shares.append(f"{summary['repairs'][split]['repaired']:.0f} %")
    return (
        f"Writing a chain first is worth {gains[0]} points of R@1 on iid and {gains[1]} on novel to "
        f"the same model, and a corrected chain\nfinds {shares[0]} and {shares[1]} of the pictures "
        "that the model's own chain missed."
    )


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
    # Misses that a corrected chain turns into hits.
    repaired = {}
    for split, measured in results.items():
        named = {result.protocol["reading"]: result for result in measured}
        repaired[split] = repairs(named["full"], named["oracle"])
    # The run. Memory is that of the largest process, which macOS counts in bytes.
    first = next(iter(results.values()))[0]
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    usage = [resource.getrusage(one) for one in who]
    peak = max(one.ru_maxrss for one in usage)
    mebibyte = 2**20 if sys.platform == "darwin" else 2**10
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return table | {
        "exact_conclusion": exact,
        "repairs": repaired,
        "gallery": first.protocol["gallery_size"],
        "queries": first.protocol["queries"],
        "minutes": round(minutes, 1),
        "processor_seconds": round(sum(one.ru_utime + one.ru_stime for one in usage)),
        "installation_seconds": None,
        "base": BASE,
        "peak_memory_mb": round(peak / mebibyte),
        "device": device_name(device),
    }
