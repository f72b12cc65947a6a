"""An annotation job on a small folder dataset, and how its files are read."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from cir_cot.cli import UNUSABLE, run
from cir_cot.records import Record, write_records
from cir_cot.scripts.data_gen import annotate

QUARANTINE, SUMMARY = ".quarantine.jsonl", ".summary.json"


ENV = os.environ | {"OPENAI_API_KEY": "sk-secret-of-the-test", "OMP_NUM_THREADS": "1"}


def write_dataset(root: Path, count: int, split: str = "train") -> Path:
    """A folder dataset of so many queries, each with a picture of its own."""
    (root / "images").mkdir(parents=True)
    names = [f"p{number:03}" for number in range(count + 1)]
    for number, name in enumerate(names):
        Image.new("RGB", (8, 8), (number % 256, number // 256, 99)).save(
            root / "images" / f"{name}.png"
        )
    (root / f"gallery.{split}.txt").write_text("\n".join(names) + "\n")
    pairs = enumerate(zip(names, names[1:], strict=False))
    rows = [
        Record(f"q{n}", a, f"is made of wool number {n}", (b,), source=f"toy/{split}")
        for n, (a, b) in pairs
    ]
    write_records(root / f"records.{split}.jsonl", rows)
    return root


def command(root: Path, out: Path, url: str, *more: str) -> list[str]:
    where = ["--benchmark", "folder", "--root", str(root), "--split", "train", "--out", str(out)]
    return [
        *where,
        "--teacher",
        "openai",
        "--model",
        "m",
        *(["--base-url", url] if url else []),
        *more,
    ]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def beside(out: Path, part: str) -> Path:
    return out.with_name(out.name + part)


def summary(out: Path) -> dict:
    return json.loads(beside(out, SUMMARY).read_text())


def refusal(capsys, argv: list[str]) -> str:
    with pytest.raises(SystemExit) as end:
        run(annotate.main, argv)
    assert end.value.code == UNUSABLE
    return capsys.readouterr().err
