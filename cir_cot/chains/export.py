"""Export chains for other trainers: LLaVA or ShareGPT conversations, or a `datasets` folder.

Every form is a folder with a dataset card. Pictures are named by their path from the dataset's
folder, never copied. Records that do not pass the filters are left out, by name and count; nothing
else is changed.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cir_cot.errors import InputError
from cir_cot.files import replacing, write_text_atomic
from cir_cot.prompts import PARTS, cot_to_text, query_prompt
from cir_cot.records import Record, record_to_dict
from cir_cot.storage import written

from .card import card
from .filters import chain, duplicates, problems

# Other trainers read these as a picture or as the end of a turn: no text may hold them.
MARKERS = re.compile(r"<(?:image|video|audio|img|/img)>|<ret>|<\|[^|<>]*\|>", re.IGNORECASE)
# The file of the rows in each form.
FORMS = {
    "datasets": "data/{split}-00000-of-00001.parquet",
    "llava": "{split}.json",
    "sharegpt": "{split}.json",
}


def sift(
    records: Sequence[Record], paths: Callable[[str], str]
) -> tuple[list[Record], dict[str, list[str]]]:
    """Separate the records that can be exported from the others.

    Args:
        records: the records of a split.
        paths: returns the path of a picture; raises InputError if it has none.

    Returns:
        The records to export, and {reason: descriptions of the records left out}.
    """
    # Find duplicates first: a record is compared with all earlier ones.
    repeated = {}
    for record, first in duplicates([record for record in records if record.cot]):
        repeated[id(record)] = first
    # Keep a record unless there is a reason not to.
    kept = []
    left: dict[str, list[str]] = {}
    for record in records:
        why = reason(record, repeated, paths)
        if why is None:
            kept.append(record)
        else:
            name, what = why
            left.setdefault(name, []).append(f"{record.source} {record.id}: {what}".strip())
    return kept, left


def reason(
    record: Record, repeated: Mapping[int, Record], paths: Callable[[str], str]
) -> tuple[str, str] | None:
    """Return the first reason to leave a record out, as (name, description), or None.

    `repeated` maps the identity of a duplicate to the original.
    """
    # The chain: missing, refused by a filter, or a duplicate.
    if record.cot is None:
        return "no_chain", "no chain"
    if found := problems(record):
        return next(iter(found.items()))
    if id(record) in repeated:
        return "duplicate", f"repeats {repeated[id(record)].id}"

    # Markers of the conversation forms.
    for part, text in {"modification": record.text, "chain": cot_to_text(record.cot)}.items():
        if marker := MARKERS.search(text):
            return "marker", f"the {part} holds {marker[0]!r}"

    # Pictures.
    try:
        for image in (record.reference, *record.targets):
            paths(image)
    except InputError as error:
        return "missing_image", str(error)
    return None


def llava(records: Sequence[Record], paths: Callable[[str], str]) -> list[dict]:
    """Return LLaVA's rows: {"id", "image", "conversations": [human's turn, model's turn]}."""
    rows = []
    for unique, record in zip(unique_ids(records), records, strict=True):
        row = {"id": unique, "image": paths(record.reference), "conversations": turns(record)}
        rows.append(row)
    return rows


def sharegpt(records: Sequence[Record], paths: Callable[[str], str]) -> list[dict]:
    """Return ShareGPT's rows with pictures: {"conversations": […], "images": [path]}."""
    rows = []
    for record in records:
        rows.append({"conversations": turns(record), "images": [paths(record.reference)]})
    return rows


def turns(record: Record) -> list[dict[str, str]]:
    """Return the prompt of training with its picture, and the chain as tagged text."""
    # Trainers replace <image> with the picture.
    asked = {"from": "human", "value": "<image>\n" + query_prompt(record.text)}
    return [asked, {"from": "gpt", "value": cot_to_text(chain(record))}]


def unique_ids(records: Sequence[Record]) -> list[str]:
    """Return ids that are unique over all categories, such as "fashioniq/dress/train/0"."""
    return [f"{record.source}/{record.id}" if record.source else record.id for record in records]


def dataset_rows(records: Sequence[Record], paths: Callable[[str], str]) -> list[dict]:
    """Return the rows of the `datasets` form: record, `teacher` as JSON, and pictures' paths."""
    rows = []
    for record in records:
        teacher = json.dumps(record.teacher, ensure_ascii=False) if record.teacher else None
        row = record_to_dict(record)
        # Columns of every row, where the JSON form leaves empty values out.
        row["subset"] = list(record.subset)
        row["source"] = record.source
        row["teacher"] = teacher
        row["reference_image"] = paths(record.reference)
        row["target_images"] = [paths(image) for image in record.targets]
        rows.append(row)
    return rows


def write_export(
    folder: str | Path,
    form: str,
    records: Sequence[Record],
    paths: Callable[[str], str],
    facts: Mapping,
) -> Path:
    """Write records and their dataset card into a new folder.

    Args:
        folder: the folder, new or empty.
        form: a key of FORMS.
        records: what to export, as `sift` returns it.
        paths: returns the path of a picture from the dataset's folder.
        facts: "benchmark", "split" and "left_out" ({reason: count}) for the card.

    Returns:
        The file of the rows.

    Raises:
        InputError: no record is left, or the folder holds something.
    """
    # A split's name is part of file names, and of the hub's configuration.
    folder = Path(folder)
    split = re.sub(r"\W", "_", facts["split"])
    file = FORMS[form].format(split=split)
    if not records:
        raise InputError(
            f"{folder}: no chain is left to export; left out are {dict(facts['left_out'])}"
        )
    # An export never mixes with other files.
    with written(folder):
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder} is not empty; name a new folder")
        (folder / file).parent.mkdir(parents=True, exist_ok=True)

    # Rows, the index that LLaMA-Factory reads beside them, the card.
    if form == "datasets":
        write_parquet(folder / file, dataset_rows(records, paths))
    else:
        content = llava(records, paths) if form == "llava" else sharegpt(records, paths)
        write_text_atomic(folder / file, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    if form == "sharegpt":
        name = f"cir_cot_{facts['benchmark']}_{split}"
        columns = {"messages": "conversations", "images": "images"}
        index = {name: {"file_name": file, "formatting": "sharegpt", "columns": columns}}
        write_text_atomic(folder / "dataset_info.json", json.dumps(index, indent=2) + "\n")
    write_text_atomic(folder / "README.md", card(form, file, split, records, facts))
    return folder / file


def write_parquet(path: Path, content: list[dict]) -> None:
    """Write rows atomically, with fixed column types: a column of empty lists keeps its type."""
    # Takes seconds to import, and is absent where only models run.
    from datasets import Dataset, Features, List, Value

    # The columns of `dataset_rows`, whatever the rows hold.
    text = Value("string")
    types: dict[str, object] = {}
    for column in ("id", "reference", "text", "source", "teacher", "reference_image"):
        types[column] = text
    for column in ("targets", "subset", "target_images"):
        types[column] = List(text)
    types["cot"] = dict.fromkeys(PARTS, text)
    features = Features({name: types[name] for name in content[0]})
    # A full disk leaves no half of a file.
    with replacing(path) as temporary:
        Dataset.from_list(content, features=features).to_parquet(temporary)
