"""The rows that a training recipe reads: where they come from, which are left out, and FashionIQ's random captions."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from cir_cot.data import load_benchmark
from cir_cot.data.fashioniq import training_caption, training_captions
from cir_cot.errors import InputError
from cir_cot.heads.base import Row
from cir_cot.images import ImageStore
from cir_cot.models.feature_cache import Vectors
from cir_cot.records import Record, attach_chains

from .arguments import DataArguments


class CirDataset(torch.utils.data.Dataset):
    """Rows of a benchmark's records; indexed by (index, draw) pairs, as CirTrainer's sampler yields them.

    `captions` are FashionIQ's two of each record (None where there are none): the text is then drawn from them anew
    for each row, as CLIP4Cir does in training. `images` loads references and, unless `targets` does, targets; either
    may be vectors of pictures in place of pictures.
    """

    def __init__(
        self,
        records: Sequence[Record],
        images: ImageStore | Vectors,
        captions: Sequence[tuple[str, str] | None] | None = None,
        targets: Vectors | None = None,
    ):
        self.records, self.images, self.captions = records, images, captions
        self.targets = images if targets is None else targets

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, item: tuple[int, int]) -> Row:
        index, draw = item
        record = self.records[index]
        if not record.targets:
            raise InputError(
                f"record {record.id!r} has no target; training needs one, so leave test splits out"
            )
        if self.captions and self.captions[index]:
            record = replace(
                record, text=training_caption(self.captions[index], random.Random(draw).random())
            )
        return Row(
            record, self.images.load(record.reference), self.targets.load(record.targets[0]), draw
        )


def load_rows(
    args: DataArguments, chains: Sequence[str] = (), vary_captions: bool = False
) -> tuple[CirDataset, str]:
    """Read records, chains and pictures -> (dataset, what was left out in words, or "").

    InputError for whatever would only surface in the middle of training. `vary_captions` draws a FashionIQ query's
    text anew whenever its row is seen, as CLIP4Cir does.
    """
    parts = load_benchmark(args.benchmark, args.root, args.split, args.category)
    records = [record for part in parts for record in part.records]
    captions = [(part.captions or {}).get(record.id) for part in parts for record in part.records]
    stores = [part.images() for part in parts]
    where = {
        image: store
        for part, store in zip(parts, stores, strict=True)
        for image in used(part.records)
    }
    for record in records:
        if not record.targets:
            raise InputError(
                f"{args.root}: query {record.id!r} of {args.split} has no target; train on another split"
            )
    for path in chains:
        records = attach_chains(records, path)
    missing = {image for image, store in where.items() if image not in store}
    if missing and not args.drop_missing:
        where[min(missing)].path(min(missing))  # says what it looked for
    kept = [index for index, record in enumerate(records) if missing.isdisjoint(used([record]))]
    lost = len(records) - len(kept)
    left_out = (
        f"{lost} of {len(records)} rows left out: {len(missing)} pictures are missing"
        if lost
        else ""
    )
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
