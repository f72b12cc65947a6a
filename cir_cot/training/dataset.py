"""The rows that a training recipe reads: where they come from, which are left out, and FashionIQ's random captions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .benchmarks import BENCHMARKS, attach_chains, load_benchmark
from .collate import CirDataset
from .fashioniq import training_captions
from .images import ImageStore
from .recipe import CirArguments
from .records import InputError, Record


def option(default, text: str):
    """A field of the arguments with its help."""
    return field(default=default, metadata={"help": text})


@dataclass
class DataArguments(CirArguments):
    """Arguments of every recipe that starts from a checkpoint and trains on a benchmark's split."""

    model: str | None = option(None, "Checkpoint folder or hub name, or the run folder of an earlier stage.")
    benchmark: Literal[tuple(BENCHMARKS)] = option("folder", "Kind of dataset.")
    root: str | None = option(None, "Folder of the dataset.")
    split: str = option("train", "Split to train on.")
    category: str | None = option(None, "FashionIQ: one category only.")
    drop_missing: bool = option(False, "Leave out rows whose picture is missing (dead links), and say how many.")
    overwrite: bool = option(False, "Replace the trained retriever and the checkpoints that output_dir holds.")

    def __post_init__(self):
        super().__post_init__()
        for name, example in {"model": "checkpoints/base", "root": "data/mine"}.items():
            if getattr(self, name) is None:
                raise InputError(f"no {name}: give it in the config or on the command line, as --{name} {example}")


@dataclass
class ClipArguments(DataArguments):
    """Arguments of both recipes on CLIP, with the defaults that CLIP4Cir's two stages share."""

    pad_ratio: float | None = option(None, "Pad longer pictures to this ratio, 0: never; default: of stage 1, or 1.25.")
    temperature: float = option(0.01, "Temperature of InfoNCE.")  # CLIP4Cir: logits are 100 times the cosine
    warmup_steps: float = option(0.0, "Warm-up: steps, or a share of all steps when below 1.")
    lr_scheduler_type: str = option("constant", "Learning-rate schedule.")

    def __post_init__(self):
        super().__post_init__()
        if self.temperature <= 0:
            raise InputError(f"temperature {self.temperature} is not above 0; CLIP4Cir's is 0.01")

    def aux_weights(self) -> dict[str, float]:
        """No loss beside InfoNCE: no words are written."""
        return {}


def load_rows(args: DataArguments, chains: Sequence[str] = (), vary_captions: bool = False) -> tuple[CirDataset, str]:
    """Read records, chains and pictures -> (dataset, what was left out in words, or "").

    InputError for whatever would only surface in the middle of training. `vary_captions` draws a FashionIQ query's
    text anew whenever its row is seen, as CLIP4Cir does.
    """
    parts = load_benchmark(args.benchmark, args.root, args.split, args.category)
    records = [record for part in parts for record in part.records]
    captions = [(part.captions or {}).get(record.id) for part in parts for record in part.records]
    stores = [part.images() for part in parts]
    where = {image: store for part, store in zip(parts, stores, strict=True) for image in used(part.records)}
    for record in records:
        if not record.targets:
            raise InputError(f"{args.root}: query {record.id!r} of {args.split} has no target; train on another split")
    for path in chains:
        records = attach_chains(records, path)
    missing = {image for image, store in where.items() if image not in store}
    if missing and not args.drop_missing:
        where[min(missing)].path(min(missing))  # says what it looked for
    kept = [index for index, record in enumerate(records) if missing.isdisjoint(used([record]))]
    lost = len(records) - len(kept)
    left_out = f"{lost} of {len(records)} rows left out: {len(missing)} pictures are missing" if lost else ""
    texts = [captions[index] for index in kept] if vary_captions else None
    return CirDataset([records[index] for index in kept], Pictures(where), texts), left_out


def used(records: Iterable[Record]) -> list[str]:
    """Pictures that training needs: references and first targets."""
    return [image for record in records for image in (record.reference, *record.targets[:1])]


def texts_of(rows: CirDataset) -> list[str]:
    """Texts that training may ask for, random captions in every form."""
    pairs = rows.captions or [None] * len(rows)
    return [
        text
        for record, pair in zip(rows.records, pairs, strict=True)
        for text in (training_captions(pair) if pair else (record.text,))
    ]


class Pictures(dict[str, ImageStore]):
    """The pictures of several datasets: each id's own store."""

    def load(self, image: str):
        """Load a picture from its store."""
        return self[image].load(image)

    def fingerprint(self, image: str) -> str:
        """Digest of a picture's content, by its store."""
        return self[image].fingerprint(image)
