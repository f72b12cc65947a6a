"""A dataset with the chains of two teachers, a quarantine, and pictures."""

from pathlib import Path

from cir_cot.data import load_benchmark
from cir_cot.review.queue import ReviewQueue
from cir_cot.scripts.data_gen import review


def command(folder: Path, *more: object) -> list[str]:
    words = ["--benchmark", "folder", "--root", folder / "data", "--split", "train",
             "--chains", folder / "chains.jsonl", "--out", folder / "decisions.jsonl",
             "--reviewer", "ann", *more]  # fmt: skip
    return [str(word) for word in words]


def queue_of(folder: Path, reviewer: str = "ann", *more: object) -> ReviewQueue:
    args = review.parse(command(folder, *more))
    return ReviewQueue(review.load_rows(args), folder / "decisions.jsonl", reviewer)


def dataset_records(folder: Path):
    return load_benchmark("folder", folder / "data", "train")[0].records
