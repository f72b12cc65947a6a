"""The model card of a saved retriever: YAML header, how to load it, base, training data, metrics, limits.

It is made of what is recorded: retriever.json, run.json of the training, results.json of measurements. Its last line
is a digest of the rest, by which a card that a person has written or edited is known and kept.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cir_cot.data.licences import LICENCES
from cir_cot.errors import InputError
from cir_cot.files import read_json
from cir_cot.hub import NAME, TINY_BASE

RUN_FILE = "run.json"
RESULTS_FILE = "results.json"
STAGES = 8  # most stages of training that a card looks back
MARK = re.compile(r"\n<!-- cir-cot wrote this card: ([0-9a-f]{16}) -->\n\Z")
# What a metric depends on; paths of the machine that measured are left out.
PROTOCOL = ("benchmark", "category", "split", "gallery", "gallery_size", "queries", "sample", "reference", "ties",
            "labels", "caption_join", "prompt", "reading", "engine", "min_pixels", "max_pixels", "dtype", "seed",
            "prompts", "git")  # fmt: skip
CARD = """---
{header}
---
# {title}

A reference picture and a modification text go in; a query vector comes out{chain}.
Pictures of a gallery are encoded into the same space, and the nearest ones are the answer: composed image retrieval.
Trained with cir-cot.

## Load it

```python
from cir_cot import load_retriever

retriever = load_retriever({name})
query = retriever.encode_query([image], ["the same, but red"])
scores = query.embeddings @ retriever.encode_target(gallery).T
print(query.explanations[0])
```
{example}
## Base

{base}

## Training data and licences

{data}

The base's licence applies to what is derived from it. Whoever publishes this model states a licence here that the
base and the training data allow.

## Metrics

{metrics}

## Limits

- The numbers above hold for their protocol: dataset, split, gallery and reading. Other pictures and other ways to
  phrase a modification are untested.
- An explanation is what the model wrote before it searched. It may be wrong about the picture, and nobody has
  checked it.
- The model inherits what its base has learned of people and places. It is not meant to identify or rate people.

## Settings

| setting | value |
|---|---|
{settings}
"""


def model_card(
    facts: Mapping[str, Any],
    name: str = "this folder",
    runs: Sequence[Mapping[str, Any]] = (),
    results: Sequence[Mapping[str, Any]] = (),
    example: str = "",
) -> str:
    """Compose README.md of a saved retriever.

    Args:
        facts: the content of its retriever.json.
        name: what `load_retriever` is given.
        runs: what `read_runs` returns.
        results: the contents of results.json of measurements.
        example: a chain that the model wrote.
    """
    base = base_name(facts, runs)
    # The settings stand in the same table as the rest.
    shown = {**facts, **facts["settings"]}
    del shown["settings"]
    rows = [f"| {key} | `{value}` |" for key, value in shown.items()]
    chains = facts["kind"] == "cot"
    text = CARD.format(
        header=yaml.safe_dump(
            header(facts, base, name, results), sort_keys=False, allow_unicode=True
        ).rstrip(),
        title=f"A `{facts['kind']}` retriever for composed image retrieval",
        chain=", with the chain of thought that led to it" if chains else "",
        name=json.dumps(name),
        example=f"\nA chain that it wrote:\n\n{_indented(example)}\n" if example else "",
        base=f"`{base}`." if base else "Not recorded by a public name.",
        data=_data(runs),
        metrics="\n\n".join(map(_measured, results)) or "None were given with this card.",
        settings="\n".join(rows),
    )
    return text + f"\n<!-- cir-cot wrote this card: {_digest(text)} -->\n"


def is_generated(text: str) -> bool:
    """Tell whether a card is as `model_card` wrote it; one that a person wrote or edited is not."""
    found = MARK.search(text)
    return found is not None and found[1] == _digest(text[: found.start()])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def base_name(facts: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the public name of the base: as the adapter recorded it, else as the first stage was given it."""
    given = runs[-1].get("model") if runs else None
    for name in (facts["backbone"], given):
        if isinstance(name, str) and NAME.fullmatch(name) and not Path(name).exists():
            return name
    return None


def header(
    facts: Mapping[str, Any], base: str | None, name: str, results: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Compose the header that the hub reads."""
    chains = facts["kind"] == "cot"
    tags = ["composed-image-retrieval", *(["chain-of-thought"] if chains else []), facts["kind"]]
    found: dict[str, Any] = {
        "library_name": "cir-cot",
        "pipeline_tag": "image-text-to-text" if chains else "image-feature-extraction",
        "license": "other",
        "license_name": "see-licences-below",
        "tags": tags,
    }
    if base and base != TINY_BASE:  # which lies in this package, not on the hub
        found["base_model"] = base.partition("@")[0]
        found["base_model_relation"] = "finetune" if facts["backbone"] == "." else "adapter"
    if results:
        model = {"name": name, "results": [_indexed(result) for result in results]}
        found["model-index"] = [model]
    return found


def _indexed(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return one measurement as the hub's model index has it."""
    protocol = result["protocol"]
    reading = protocol.get("reading")
    metrics = []
    for label, value in flat_metrics(result["metrics"]):
        metrics.append({"type": "recall", "name": f"{label}, {reading}", "value": round(value, 2)})
    return {
        "task": {"type": "image-retrieval", "name": "composed image retrieval"},
        "dataset": {
            "type": protocol["benchmark"],
            "name": f"{protocol['benchmark']} {protocol['split']}",
            "split": protocol["split"],
        },
        "metrics": metrics,
    }


def flat_metrics(metrics: Mapping[str, Any], before: str = "") -> list[tuple[str, float]]:
    """Return metrics with their names, those of a category as `category R@1`."""
    rows: list[tuple[str, float]] = []
    for label, value in metrics.items():
        if isinstance(value, Mapping):
            rows += flat_metrics(value, f"{before}{label} ")
        elif type(value) in (int, float):
            rows.append((f"{before}{label}", value))
    return rows


def _measured(result: Mapping[str, Any]) -> str:
    """Compose the table of one measurement, with its protocol below it."""
    protocol = result["protocol"]
    what = f"{protocol['benchmark']} {protocol['split']}, read {protocol.get('reading')}"
    rows = [f"| {label} | {value:.2f} |" for label, value in flat_metrics(result["metrics"])]
    kept = {key: protocol[key] for key in PROTOCOL if protocol.get(key) is not None}
    table = "\n".join(rows)
    return f"| {what} | percent |\n|---|---|\n{table}\n\nProtocol:\n\n{_indented(json.dumps(kept, indent=1))}"


def _data(runs: Sequence[Mapping[str, Any]]) -> str:
    """Say on which datasets it was trained, with their terms."""
    rows: list[str] = []
    for run in runs:
        # A mixture names KIND:WEIGHT:DIR of each dataset; the folders are left out.
        mixed = [str(part).partition(":")[0] for part in run.get("mix") or ()]
        for kind in mixed or [str(run.get("benchmark"))]:
            terms = LICENCES.get(kind, "not known")
            rows.append(f"- `{kind}`, split `{run.get('split')}`: {terms}.")
    # Stages of one training often share a dataset.
    return "\n".join(dict.fromkeys(rows)) or "Not recorded."


def _indented(text: str) -> str:
    """Return text as a block of Markdown in which nothing is markup."""
    return "\n".join("    " + line for line in text.splitlines())


def read_runs(folder: Path) -> list[dict[str, Any]]:
    """Return the arguments in run.json, of the last stage of training and of earlier ones as far as found."""
    runs: list[dict[str, Any]] = []
    while len(runs) < STAGES and (folder / RUN_FILE).is_file():
        content = read_json(folder / RUN_FILE)
        arguments = content.get("arguments") if isinstance(content, dict) else None
        if not isinstance(arguments, dict):
            break
        runs.append(arguments)
        folder = Path(str(arguments.get("model")))
    return runs


def check_measured(model: str | Path, folders: Sequence[str | Path]) -> None:
    """Raise InputError for results of a retriever whose folder had another name."""
    results, _ = read_results(folders)
    for folder, content in zip(folders, results, strict=True):
        measured = str(content["protocol"].get("model"))
        if Path(measured).name != Path(model).resolve().name:
            raise InputError(f"{folder}: measured {measured!r}, not {model}; give its own results")


def read_results(folders: Sequence[str | Path]) -> tuple[list[dict[str, Any]], str]:
    """Return results.json of each folder of a measurement, and the first faultless chain beside one of them."""
    results = []
    example = ""
    for folder in map(Path, folders):
        path = folder / RESULTS_FILE
        content = read_json(path)
        parts = (
            [content.get(key) for key in ("metrics", "protocol")]
            if isinstance(content, dict)
            else []
        )
        if not isinstance(content, dict) or not all(isinstance(part, dict) for part in parts):
            raise InputError(
                f"{path}: no results of a measurement; give a folder that retrieval wrote"
            )
        for key in ("benchmark", "split"):
            if key not in content["protocol"]:
                raise InputError(f"{path}: the protocol has no {key!r}; measure again")
        results.append(content)
        generated = content["protocol"].get("reading") in ("full", "short", "adaptive")
        if generated and not example:
            example = _first_chain(folder / "chains.jsonl")
    return results, example


def _first_chain(path: Path) -> str:
    """Return the first chain of a file that nothing is wrong with, "" for none."""
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row.get("explanation") and not row.get("flag"):
                return str(row["explanation"])
    return ""
