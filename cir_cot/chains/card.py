"""The dataset card of exported chains: YAML header, counts, teacher, filters, licences, form."""

import json
from collections.abc import Mapping, Sequence

import yaml

from cir_cot.data.licences import LICENCES
from cir_cot.prompts import PROMPTS_VERSION
from cir_cot.provenance import git_state, package_versions
from cir_cot.records import Record

from .filters import FILTERS, teachers

# The hub's names for the size of a dataset, by the number of rows below it.
SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}
# Reasons to leave a record out that are no filter of one chain.
OTHER_REASONS = {
    "duplicate": "The same conclusion for the same reference and modification as an earlier "
    "record.",
    "no_chain": "A record without a chain.",
    "marker": "A modification with a special token or a picture's placeholder in it.",
    "missing_image": "A picture of the record is not there.",
}
DESCRIPTIONS = {  # of each form's rows
    "datasets": "columns `id`, `reference`, `text`, `targets`, `cot` (`caption`, `reasoning`, "
    "`conclusion`), `subset`, `source`, `teacher` (JSON), `reference_image`, `target_images` (paths).",
    "llava": "a list of `id`, `image`, `conversations`, as LLaVA's fine-tuning reads it; "
    "chains are tagged text.",
    "sharegpt": "a list of `conversations` and `images`, and `dataset_info.json`, as LLaMA-Factory "
    "reads them; chains are tagged text.",
}

# The card: the header, then what a reader of the dataset must know.
CARD = """---
{header}
---
# Chains of thought for composed image retrieval

{count} composed queries, each with a chain: caption of the reference picture, reasoning over keep,
remove, change and add, and a conclusion that describes the wanted picture. A model wrote the
chains; people did not check them.
{left} records of the split were left out, see the filters.

## Teacher

Model, version of its prompts and whether it saw the target picture, as recorded with each chain;
`null` where nothing was recorded. A chain whose teacher saw the target may train a model and may
not be fed to it in evaluation.

{teachers}

Prompts of the conversations are version {version} of cir-cot's, which trains with the same ones.

## Filters

| filter | what it leaves out | left out |
|---|---|---|
{filters}

## Licences

- Queries (references, modifications, targets): {licence}.
- Pictures: not included; the paths are relative to the dataset's folder.
- Chains: under the terms of the teacher named above, and derived from the queries. Whoever
  publishes this folder states a licence here that both allow.

## Form

`{file}`: {form}

## Made with

{made}
"""


def card(form: str, file: str, split: str, records: Sequence[Record], facts: Mapping) -> str:
    """Compose the dataset card.

    Args:
        form: a key of DESCRIPTIONS.
        file: the file of the rows, relative to the export's folder.
        split: the split's name in the header.
        records: the exported records.
        facts: "benchmark", "split" and "left_out" ({reason: count}).
    """
    # The header that the hub reads.
    header = {
        "pretty_name": f"Chains of thought for {facts['benchmark']} {facts['split']}",
        "license": "other",
        "license_name": "see-licences-below",
        "annotations_creators": ["machine-generated"],
        "task_categories": ["image-text-to-text"],
        "tags": ["composed-image-retrieval", "chain-of-thought"],
        "size_categories": [size_category(len(records))],
        "configs": [{"config_name": "default", "data_files": [{"split": split, "path": file}]}],
    }
    # The sections that people read.
    left = facts["left_out"]
    return CARD.format(
        header=yaml.safe_dump(header, sort_keys=False, allow_unicode=True).rstrip(),
        count=len(records),
        left=sum(left.values()),
        teachers=indented([who | {"chains": count} for who, count in teachers(records)]),
        version=PROMPTS_VERSION,
        filters=filter_rows(left),
        licence=LICENCES[facts["benchmark"]],
        file=file,
        form=DESCRIPTIONS[form],
        made=indented(git_state() | package_versions()),
    )


def size_category(count: int) -> str:
    """Return the hub's name for a dataset of `count` rows."""
    # SIZES is in ascending order.
    for most, name in SIZES.items():
        if count < most:
            return name
    return "n>1M"


def filter_rows(left: Mapping[str, int]) -> str:
    """Compose the table of filters, with how many records each left out."""
    # Filters that left nothing out are listed, too.
    descriptions = {one.name: one.description for one in FILTERS} | OTHER_REASONS
    rows = [f"| {name} | {what} | {left.get(name, 0)} |" for name, what in descriptions.items()]
    return "\n".join(rows)


def indented(value: object) -> str:
    """Return JSON as a block of Markdown in which nothing is markup."""
    # Four spaces make a code block.
    lines = json.dumps(value, indent=1, ensure_ascii=False).splitlines()
    return "\n".join("    " + line for line in lines)
