"""Train and evaluate a small TIRG-style network on scenes (1812.07119, about 0.84 M parameters), in minutes.

It has a convolutional encoder for pictures, a GRU over the words of the edit, and TIRG's gated residual composition. It
is trained with the batch softmax of the library's `info_nce`, and evaluated by the library's `evaluate`: complete
gallery, reference removed. A chain-of-thought retriever of millions of parameters has to beat it on the same pictures.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from cir_cot.cli import run
from cir_cot.data import load_benchmark
from cir_cot.data.benchmark import Benchmark
from cir_cot.evaluation.evaluate import evaluate
from cir_cot.files import write_text_atomic
from cir_cot.losses import info_nce
from cir_cot.records import Record
from cir_cot.retriever import QueryOutput

DIM = 256
WIDTHS = (32, 64, 64)  # channels of the three strided convolutions
EMBEDDED = 64
RECURRENT = 128


class Tirg(nn.Module):
    """Encode small pictures and edits as TIRG does; a Retriever, so that it is evaluated like any other."""

    dim = DIM

    def __init__(self, vocabulary: Sequence[str]):
        super().__init__()
        # 0 is padding, and any unknown word.
        self.words = {word: number for number, word in enumerate(vocabulary, 1)}
        layers = []
        channels = 3
        for width in WIDTHS:
            layers += [
                nn.Conv2d(channels, width, 3, stride=2, padding=1),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            channels = width
        self.picture = nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(9 * channels, DIM)
        )
        self.embedding = nn.Embedding(len(self.words) + 1, EMBEDDED, padding_idx=0)
        self.recurrent = nn.GRU(EMBEDDED, RECURRENT, batch_first=True)
        self.text = nn.Linear(RECURRENT, DIM)
        both = 2 * DIM
        self.gate = nn.Sequential(nn.BatchNorm1d(both), nn.ReLU(), nn.Linear(both, DIM))
        self.residual = nn.Sequential(
            nn.BatchNorm1d(both), nn.ReLU(), nn.Linear(both, both), nn.ReLU(), nn.Linear(both, DIM)
        )
        self.weights = nn.Parameter(
            torch.tensor([1.0, 10.0])
        )  # of the gated picture and of the residual, TIRG's start
        self.log_scale = nn.Parameter(torch.tensor(20.0).log())

    def see(self, pixels: Tensor) -> Tensor:
        """Encode pictures (B, 3, S, S) in bytes -> features (B, D)."""
        return self.picture(pixels.float() / 127.5 - 1)

    def read(self, texts: Sequence[str]) -> Tensor:
        """Encode edits -> features (B, D)."""
        rows = []
        for text in texts:
            ids = [self.words.get(word, 0) for word in text.split()]
            rows.append(torch.tensor(ids or [0]))
        lengths = torch.tensor([len(row) for row in rows])
        embedded = self.embedding(nn.utils.rnn.pad_sequence(rows, batch_first=True))  # (B, T, E)
        packed = nn.utils.rnn.pack_padded_sequence(
            embedded, lengths, batch_first=True, enforce_sorted=False
        )
        return self.text(self.recurrent(packed)[1][-1])

    def compose(self, picture: Tensor, text: Tensor) -> Tensor:
        """Compose picture features (B, D) and text features (B, D) -> unit query embeddings (B, D)."""
        both = torch.cat([picture, text], dim=1)  # (B, 2D)
        gated = torch.sigmoid(self.gate(both)) * picture
        return functional.normalize(
            self.weights[0] * gated + self.weights[1] * self.residual(both), dim=1
        )

    def encode_query(self, images: Sequence[Image.Image], texts: Sequence[str]) -> QueryOutput:
        """Encode queries for evaluation, without a chain."""
        embeddings = self.compose(self.see(stack(images)), self.read(texts))
        return QueryOutput(embeddings, [""] * len(texts), [""] * len(texts))

    def encode_target(self, images: Sequence[Image.Image]) -> Tensor:
        """Encode candidate pictures -> unit embeddings (N, D)."""
        return functional.normalize(self.see(stack(images)), dim=1)


def stack(images: Sequence[Image.Image]) -> Tensor:
    """Stack pictures of one size -> bytes (B, 3, S, S)."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def batches(
    records: Sequence[Record], references: int, rng: random.Random
) -> Iterator[list[Record]]:
    """Yield an epoch in batches of all edits of `references` references: a reference's edits are hard negatives."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.reference, []).append(record)
    names = list(groups)
    rng.shuffle(names)
    for at in range(0, len(names), references):
        yield [record for name in names[at : at + references] for record in groups[name]]


def step_loss(
    model: Tirg, batch: Sequence[Record], pixels: Tensor, row_of: dict[str, int]
) -> Tensor:
    """Compute the batch-softmax loss; rows with the same target scene are never each other's negatives."""
    # Encode each reference once.
    names = list(dict.fromkeys(record.reference for record in batch))
    seen = model.see(pixels[[row_of[name] for name in names]])  # (R, D)
    picture = seen[[names.index(record.reference) for record in batch]]  # (B, D)
    query = model.compose(picture, model.read([record.text for record in batch]))
    target = functional.normalize(
        model.see(pixels[[row_of[record.targets[0]] for record in batch]]), dim=1
    )
    scenes = {
        scene: number
        for number, scene in enumerate(dict.fromkeys(record.targets for record in batch))
    }
    ids = torch.tensor([scenes[record.targets] for record in batch])
    return info_nce(query, target, torch.arange(len(batch)), torch.exp(-model.log_scale), ids, ids)


def train(
    model: Tirg, benchmark: Benchmark, epochs: int, references: int, rate: float, seed: int
) -> None:
    """Train in place with Adam and a one-cycle learning rate."""
    images = benchmark.images()
    pixels = stack([images.load(name) for name in tqdm(benchmark.gallery, desc="pictures")])
    row_of = {name: row for row, name in enumerate(benchmark.gallery)}
    rng = random.Random(seed)
    plan = []
    for _ in range(epochs):
        plan += batches(benchmark.records, references, rng)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=len(plan), pct_start=0.1
    )
    model.train()
    for batch in (bar := tqdm(plan, desc="steps")):
        loss = step_loss(model, batch, pixels, row_of)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(
            loss=f"{loss.item():.3f}", scale=f"{model.log_scale.exp().item():.1f}", refresh=False
        )
    model.eval()


def measure(model: Tirg, root: Path, split: str) -> dict:
    """Evaluate a split over its complete gallery, reference removed -> metrics in all and by edit type."""
    (benchmark,) = load_benchmark("folder", root, split)
    result = evaluate(model, benchmark, benchmark.images(), batch_size=256, progress=True)
    by_edit = {source.rpartition("/")[2]: row["R@1"] for source, row in result.by_source.items()}
    return {**result.metrics, "R@1 by edit": by_edit, "protocol": result.protocol}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the script's arguments."""
    parser = argparse.ArgumentParser(
        prog="tirg.py", description="The TIRG-style bar on scenes", allow_abbrev=False
    )
    parser.add_argument(
        "--root", type=Path, required=True, metavar="DIR", help="what `cir-cot scenes` wrote"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument(
        "--references", type=int, default=8, help="references a batch, with all their edits"
    )
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Train, measure, print one table and write it as JSON."""
    args = parse(argv)
    torch.manual_seed(args.seed)
    (benchmark,) = load_benchmark("folder", args.root, "train")
    model = Tirg(sorted({word for record in benchmark.records for word in record.text.split()}))
    started = time.perf_counter()
    train(model, benchmark, args.epochs, args.references, args.lr, args.seed)
    report = {
        "name": "tirg",
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_seconds": round(time.perf_counter() - started, 1),
        "threads": torch.get_num_threads(),
        "settings": {
            "epochs": args.epochs,
            "references": args.references,
            "lr": args.lr,
            "seed": args.seed,
        },
        **{split: measure(model, args.root, split) for split in ("iid", "novel")},
        "versions": {package: version(package) for package in ("cir-cot", "torch")},
    }
    for split in ("iid", "novel"):
        edits = "  ".join(
            f"{edit} {value:.1f}" for edit, value in report[split]["R@1 by edit"].items()
        )
        print(f"{split:6} R@1 {report[split]['R@1']:.1f}   {edits}")
    print(f"{report['parameters']:,} parameters, trained in {report['train_seconds']:.0f} s")
    if args.json:
        write_text_atomic(args.json, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
