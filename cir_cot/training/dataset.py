"""The training dataset: a benchmark's records with their pictures, chains and captions."""

import bisect
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor

from cir_cot.data import load_benchmark
from cir_cot.data.benchmark import Benchmark
from cir_cot.data.chain_files import attach_chains
from cir_cot.data.fashioniq import training_caption, training_captions
from cir_cot.errors import InputError
from cir_cot.heads.base import TrainingRow
from cir_cot.images import ImageStore
from cir_cot.records import Record

from .arguments import DataArguments
from .sampler import Share

MOST = 1000  # times that an epoch may have a row
Captions = tuple[str, str]  # FashionIQ's two captions of a query


class PictureStore(Protocol):
    """Load pictures, or vectors (D,) that stand for them, by image id."""

    def load(self, image: str, /) -> Image.Image | Tensor: ...


class TrainingDataset(Protocol):
    """The rows that CirTrainer takes: their records, and each row by (index, draw)."""

    records: Sequence[Record]

    def __len__(self) -> int: ...

    def __getitem__(self, item: tuple[int, int], /) -> TrainingRow: ...


class CirDataset(torch.utils.data.Dataset):
    """Load the training rows of records by (index, draw), as the sampler yields them.

    Args:
        records: queries with a target each.
        images: loads references and, unless `targets` does, targets.
        captions: FashionIQ's two captions of each record, None where there are none. The text of a
            row is then drawn from them each time, as CLIP4Cir does in training.
        targets: vectors in place of target pictures.
        shares: of each dataset of a mixture, how many rows an epoch has.
        negatives: hard negatives of records by id, from `cir-cot mine`.
        per_row: how many of them a row gets each time, drawn anew; a row with fewer gets its target in their place,
            which the loss leaves out.
    """

    def __init__(
        self,
        records: Sequence[Record],
        images: PictureStore,
        captions: Sequence[Captions | None] | None = None,
        targets: PictureStore | None = None,
        shares: Sequence[Share] = (),
        negatives: Mapping[str, Sequence[str]] | None = None,
        per_row: int = 0,
    ):
        self.records = records
        self.images = images
        self.captions = captions
        self.targets = images if targets is None else targets
        self.shares = shares
        self.negatives = negatives or {}
        self.per_row = per_row if negatives else 0

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, item: tuple[int, int]) -> TrainingRow:
        index, draw = item
        record = self.records[index]
        if not record.targets:
            raise InputError(
                f"record {record.id!r} has no target; training needs one, so leave test splits out"
            )
        # FashionIQ: one of the four joins of both captions, chosen by the row's draw.
        captions = self.captions[index] if self.captions else None
        if captions:
            text = training_caption(captions, random.Random(draw).random())
            record = replace(record, text=text)
        # Pictures, or their vectors where they have been encoded.
        reference = self.images.load(record.reference)
        target = self.targets.load(record.targets[0])
        names = drawn_negatives(
            self.negatives.get(record.id, ()), self.per_row, draw, record.targets[0]
        )
        shown = tuple((name, self.images.load(name)) for name in names)
        return TrainingRow(record, reference, target, draw, shown)


def drawn_negatives(names: Sequence[str], count: int, draw: int, target: str) -> list[str]:
    """Draw `count` of a row's hard negatives, by the row's own random number; `target` fills up."""
    taken = random.Random(draw).sample(list(names), min(count, len(names)))
    return taken + [target] * (count - len(taken))


def load_rows(
    args: DataArguments, chains: Sequence[str] = (), vary_captions: bool = False
) -> tuple[CirDataset, str]:
    """Load the records, chains and pictures that a recipe trains on.

    Args:
        args: name the benchmark, its folder, split and category.
        chains: JSONL files of chains for records that hold none.
        vary_captions: draw a FashionIQ query's text each time its row is loaded. A row with a chain keeps the text
            that the chain is about.

    Returns:
        The dataset, and how many rows were left out in a sentence ("" for none).

    Raises:
        InputError: for a query without target, a missing picture, or a chain of no record; all of
            this would otherwise surface in the middle of training.
    """
    assert args.root is not None, "DataArguments refuses an absent root"
    # Join the datasets of a mixture, and the parts of each, such as FashionIQ's categories.
    records: list[Record] = []
    captions: list[Captions | None] = []
    where: dict[str, ImageStore] = {}
    ends: list[int] = []  # of each dataset's records
    sources = mixed(args)
    for source in sources:
        category = args.category if source is sources[0] else None
        stores: dict[str, ImageStore] = {}
        for part in load_benchmark(source.kind, source.root, args.split, category):
            records += part.records
            captions += _captions(part)
            stores |= dict.fromkeys(used(part.records), part.images())
        _refuse_shared(where, stores, source)
        where |= stores
        ends.append(len(records))
    _require_targets(records, args)
    # Attach chains to records that were annotated apart from the dataset.
    for path in chains:
        records = attach_chains(records, path)
    # Leave out rows without pictures, or name the first missing one.
    missing = {image for image, store in where.items() if image not in store}
    if missing and not args.drop_missing:
        first = min(missing)
        where[first].path(first)  # raises: it names the files that it looked for
    kept = [index for index, record in enumerate(records) if missing.isdisjoint(used([record]))]
    lost = len(records) - len(kept)
    left_out = f"{lost} of {len(records)} rows left out: {len(missing)} pictures are missing"
    # Captions are kept only where the text of a row shall vary.
    texts: list[Captions | None] | None = None
    if vary_captions:
        texts = [captions[index] if records[index].cot is None else None for index in kept]
    rows = with_common_targets([records[index] for index in kept])
    shares = _shares(sources, ends, kept) if len(sources) > 1 else ()
    dataset = CirDataset(rows, Pictures(where), texts, shares=shares)
    return dataset, left_out if lost else ""


class Source(NamedTuple):
    """One dataset of a mixture: its kind, its folder, and how often an epoch has each of its rows."""

    kind: str
    root: str
    weight: float


def mixed(args: DataArguments) -> list[Source]:
    """Return the datasets of a run: --benchmark and --root once each, then those of --mix.

    Raises:
        InputError: an entry of --mix is not KIND:WEIGHT:DIR, or its weight is not above 0.
    """
    assert args.root is not None, "DataArguments refuses an absent root"
    sources = [Source(args.benchmark, args.root, 1.0)]
    for entry in args.mix or ():
        kind, _, rest = entry.partition(":")
        number, _, root = rest.partition(":")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not (root and 0 < weight <= MOST):
            raise InputError(
                f"mix: {entry!r} is not KIND:WEIGHT:DIR with a weight above 0 and at most {MOST}, such as "
                "cirr:0.5:data/cirr"
            )
        sources.append(Source(kind, root, weight))
    return sources


def _refuse_shared(
    known: Mapping[str, ImageStore], stores: Mapping[str, ImageStore], source: Source
) -> None:
    """Raise InputError where an image id means a picture of an earlier dataset already."""
    for image, store in stores.items():
        if image in known and known[image].root != store.root:
            raise InputError(
                f"{source.root}: image id {image!r} is in {known[image].root}, too, so that one would stand for the "
                "other; rename the pictures of one dataset"
            )


def _shares(sources: Sequence[Source], ends: Sequence[int], kept: Sequence[int]) -> list[Share]:
    """Return the rows of each dataset among the kept ones, and how many of them an epoch has."""
    shares = []
    start = 0
    for source, end in zip(sources, ends, strict=True):
        stop = bisect.bisect_left(kept, end)
        count = round(source.weight * (stop - start))
        if not count:
            raise InputError(
                f"{source.root}: weight {source.weight} of {stop - start} rows leaves none; give a larger weight"
            )
        shares.append(Share(range(start, stop), count))
        start = stop
    return shares


def _captions(part: Benchmark) -> list[Captions | None]:
    """Return FashionIQ's captions of each query of a part, None where there are none."""
    known: Mapping[str, Captions] = part.captions or {}
    return [known.get(record.id) for record in part.records]


def _require_targets(records: Iterable[Record], args: DataArguments) -> None:
    """Raise InputError for a query without target, as in a test split."""
    for record in records:
        if not record.targets:
            raise InputError(
                f"{args.root}: query {record.id!r} of {args.split} has no target; "
                "train on another split"
            )


def with_common_targets(records: Sequence[Record]) -> list[Record]:
    """Give records that ask the same, one text about one reference, each other's targets.

    FashionIQ and CIRR have such queries. Their targets are correct answers to each other, so that
    none may be a negative; every row still trains on its own target, the first.
    """
    targets: dict[tuple[str, str], dict[str, None]] = {}
    for record in records:
        question = (record.reference, record.text)
        targets.setdefault(question, {}).update(dict.fromkeys(record.targets))
    joined = []
    for record in records:
        common = targets[record.reference, record.text]
        others = [image for image in common if image not in record.targets]
        joined.append(replace(record, targets=(*record.targets, *others)) if others else record)
    return joined


def used(records: Iterable[Record]) -> list[str]:
    """Return the image ids that training loads: references and first targets."""
    images = []
    for record in records:
        images += [record.reference, *record.targets[:1]]
    return images


def texts_of(rows: CirDataset) -> list[str]:
    """Return every text that a dataset may yield, all forms of random captions included."""
    texts: list[str] = []
    for index, record in enumerate(rows.records):
        captions = rows.captions[index] if rows.captions else None
        texts += training_captions(captions) if captions else (record.text,)
    return texts


class Pictures(dict[str, ImageStore]):
    """Pictures of several datasets: the store of each image id."""

    def load(self, image: str) -> Image.Image:
        """Load a picture from its store."""
        return self[image].load(image)

    def fingerprint(self, image: str) -> str:
        """Return the digest of a picture's content."""
        return self[image].fingerprint(image)
