"""Chains for other trainers: LLaVA and ShareGPT conversations, and a folder that `datasets.load_dataset` reads.

Every form is a folder with a dataset card. Pictures are named by their path from the dataset's folder, never copied.
What does not pass the filters is left out, by name and count; nothing else is changed, so a chain comes back as it was.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import yaml

from cir_cot.errors import InputError
from cir_cot.files import replacing, write_text_atomic
from cir_cot.prompts import PROMPTS_VERSION, cot_to_text, query_prompt
from cir_cot.provenance import git_state, package_versions
from cir_cot.records import Record, record_to_dict
from cir_cot.storage import written

from .filters import FILTERS, duplicates, problems, teachers

# What those trainers read as a picture or as the end of a turn, wherever it stands: text must not hold it.
MARKERS = re.compile(r"<(?:image|video|audio|img|/img)>|<ret>|<\|[^|<>]*\|>", re.IGNORECASE)
SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}
# As the datasets' own repositories say; the licence of the pictures is another matter.
LICENCES = {
    "fashioniq": "Community Data License Agreement (CDLA), version not stated; pictures: their sellers'",
    "cirr": "MIT; pictures: NLVR2's terms",
    "circo": "CC BY-NC 4.0; pictures: COCO's terms",
    "shoes": "MIT; pictures: their sellers'",
    "genecis": "as its repository says; pictures: those of Visual Genome and COCO",
    "folder": "its owner's",
}


def sift(
    records: Sequence[Record], paths: Callable[[str], str]
) -> tuple[list[Record], dict[str, list[str]]]:
    """The records that are exported, and {why: records left out, in words}.

    Reasons: no chain, the filters, a duplicate, a marker of the conversation forms in the modification, no picture.
    """
    left: dict[str, list[str]] = {}
    again = {
        id(twin): first for twin, first in duplicates([record for record in records if record.cot])
    }
    kept = []
    for record in records:
        why = reason(record, again, paths)
        if why is None:
            kept.append(record)
        else:
            left.setdefault(why[0], []).append(f"{record.source} {record.id}: {why[1]}".strip())
    return kept, left


def reason(
    record: Record, again: Mapping[int, Record], paths: Callable[[str], str]
) -> tuple[str, str] | None:
    """(name, words) of the first reason to leave a record out; `again` maps a duplicate's identity to the original."""
    if record.cot is None:
        return "no_chain", "no chain"
    if found := problems(record):
        return next(iter(found.items()))
    if id(record) in again:
        return "duplicate", f"says what {again[id(record)].id} says"
    for part, text in {"modification": record.text, "chain": cot_to_text(record.cot)}.items():
        if marker := MARKERS.search(text):
            return "marker", f"the {part} holds {marker[0]!r}"
    try:
        for image in (record.reference, *record.targets):
            paths(image)
    except InputError as error:
        return "missing_image", str(error)
    return None


def llava(records: Sequence[Record], paths: Callable[[str], str]) -> list[dict]:
    """LLaVA's form: {"id", "image", "conversations": [{"from": "human", …}, {"from": "gpt", …}]} of each record."""
    return [
        {"id": unique, "image": paths(record.reference), "conversations": turns(record)}
        for unique, record in zip(unique_ids(records), records, strict=True)
    ]


def sharegpt(records: Sequence[Record], paths: Callable[[str], str]) -> list[dict]:
    """ShareGPT's form with pictures: {"conversations": […], "images": [path]} of each record."""
    return [
        {"conversations": turns(record), "images": [paths(record.reference)]} for record in records
    ]


def turns(record: Record) -> list[dict[str, str]]:
    """The prompt of training with its picture, and the chain as tagged text."""
    asked = {"from": "human", "value": "<image>\n" + query_prompt(record.text)}
    return [asked, {"from": "gpt", "value": cot_to_text(record.cot)}]


def unique_ids(records: Sequence[Record]) -> list[str]:
    """Ids that differ over the categories of a benchmark, too: "fashioniq/dress/train/0"."""
    return [f"{record.source}/{record.id}" if record.source else record.id for record in records]


def rows(records: Sequence[Record], paths: Callable[[str], str]) -> list[dict]:
    """Rows of the `datasets` form: the record, its `teacher` as JSON, and the paths of its pictures."""
    return [
        record_to_dict(record)
        | {"subset": list(record.subset), "source": record.source}
        | {"teacher": json.dumps(record.teacher, ensure_ascii=False) if record.teacher else None}
        | {
            "reference_image": paths(record.reference),
            "target_images": [paths(image) for image in record.targets],
        }
        for record in records
    ]


def write_export(
    folder: str | Path,
    form: str,
    records: Sequence[Record],
    paths: Callable[[str], str],
    facts: Mapping,
) -> Path:
    """Write the records in one of FORMS, and the card, into `folder` -> the file of the rows.

    `facts`: "benchmark", "split" and "left_out" ({why: count}) for the card.
    """
    folder, split = Path(folder), re.sub(r"\W", "_", facts["split"])
    if not records:
        raise InputError(
            f"{folder}: no chain is left to export; left out are {dict(facts['left_out'])}"
        )
    file = FORMS[form].format(split=split)
    with written(folder):
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder} is not empty; name a new folder")
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
    if form == "datasets":
        write_parquet(folder / file, rows(records, paths))
    else:
        content = llava(records, paths) if form == "llava" else sharegpt(records, paths)
        write_text_atomic(folder / file, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    if form == "sharegpt":  # LLaMA-Factory's index
        entry = {"file_name": file, "formatting": "sharegpt"}
        entry["columns"] = {"messages": "conversations", "images": "images"}
        index = {f"cir_cot_{facts['benchmark']}_{split}": entry}
        write_text_atomic(folder / "dataset_info.json", json.dumps(index, indent=2) + "\n")
    write_text_atomic(folder / "README.md", card(form, file, split, records, facts))
    return folder / file


FORMS = {
    "datasets": "data/{split}-00000-of-00001.parquet",
    "llava": "{split}.json",
    "sharegpt": "{split}.json",
}


def write_parquet(path: Path, content: list[dict]) -> None:
    """Write rows with fixed column types, so that a column of empty lists keeps its type; whole or not at all."""
    from datasets import (  # seconds to import, and absent where only models run
        Dataset,
        Features,
        List,
        Value,
    )

    text = Value("string")
    columns = ("id", "reference", "text", "source", "teacher", "reference_image")
    types = dict.fromkeys(columns, text) | dict.fromkeys(
        ("targets", "subset", "target_images"), List(text)
    )
    types["cot"] = dict.fromkeys(("caption", "reasoning", "conclusion"), text)
    features = Features({name: types[name] for name in content[0]})
    with replacing(path) as temporary:
        Dataset.from_list(content, features=features).to_parquet(temporary)


CARD = """---
{header}
---
# Chains of thought for composed image retrieval

{count} composed queries, each with a chain: caption of the reference picture, reasoning over keep, remove, change and
add, and a conclusion that describes the wanted picture. A model wrote the chains, people did not check them.
{left} records of the split were left out, see the filters.

## Teacher

Model, version of its prompts and whether it saw the target picture, as recorded with each chain; `null` where nothing
was recorded. A chain whose teacher saw the target may train a model and may not be fed to it in evaluation.

{teachers}

Prompts of the conversations are version {version} of cir-cot's, which trains with the same ones.

## Filters

| filter | what it leaves out | left out |
|---|---|---|
{filters}

## Licences

- Queries (references, modifications, targets): {licence}.
- Pictures: not included; the paths are relative to the dataset's folder.
- Chains: under the terms of the teacher named above, and derived from the queries. Whoever publishes this folder states
  a licence here that both allow.

## Form

`{file}`: {form}

## Made with

{made}
"""


def card(form: str, file: str, split: str, records: Sequence[Record], facts: Mapping) -> str:
    """The dataset card: a YAML header, then teacher, filters, licences and counts."""
    header = {
        "pretty_name": f"Chains of thought for {facts['benchmark']} {facts['split']}",
        "license": "other",
        "license_name": "see-licences-below",
        "annotations_creators": ["machine-generated"],
        "task_categories": ["image-text-to-text"],
        "tags": ["composed-image-retrieval", "chain-of-thought"],
        "size_categories": [
            next((name for most, name in SIZES.items() if len(records) < most), "n>1M")
        ],
        "configs": [{"config_name": "default", "data_files": [{"split": split, "path": file}]}],
    }
    left = facts["left_out"]
    meanings = {
        name: (problem.__doc__ or "").split("\n")[0] for name, problem in FILTERS
    } | OTHER_REASONS
    return CARD.format(
        header=yaml.safe_dump(header, sort_keys=False, allow_unicode=True).rstrip(),
        count=len(records),
        left=sum(left.values()),
        teachers=indented([who | {"chains": count} for who, count in teachers(records)]),
        version=PROMPTS_VERSION,
        filters="\n".join(
            f"| {name} | {meaning} | {left.get(name, 0)} |" for name, meaning in meanings.items()
        ),
        licence=LICENCES[facts["benchmark"]],
        file=file,
        form=WORDS[form],
        made=indented(git_state() | package_versions()),
    )


OTHER_REASONS = {
    "duplicate": "The same conclusion for the same reference and modification as an earlier record.",
    "no_chain": "A record without a chain.",
    "marker": "A modification with a special token or a picture's placeholder in it.",
    "missing_image": "A picture of the record is not there.",
}
WORDS = {
    "datasets": "columns `id`, `reference`, `text`, `targets`, `cot` (`caption`, `reasoning`, `conclusion`), `subset`, "
    "`source`, `teacher` (JSON), `reference_image`, `target_images` (paths).",
    "llava": "a list of `id`, `image`, `conversations`, as LLaVA's fine-tuning reads it; chains are tagged text.",
    "sharegpt": "a list of `conversations` and `images`, and `dataset_info.json`, as LLaMA-Factory reads them; chains "
    "are tagged text.",
}


def indented(value: object) -> str:
    """JSON as a block of Markdown in which nothing is markup."""
    return "\n".join(
        "    " + line for line in json.dumps(value, indent=1, ensure_ascii=False).splitlines()
    )
