"""Measure Qwen2.5-VL-3B and -7B on a GPU in training, decoding and encoding, beside their roofline and transformers.

The models are built from the published configurations with random weights: speed and memory do not depend on the
values. They are prepared as in the recipes (bfloat16 weights and autocast, adapters in float32, recomputed activations,
chunks) and trained by CirTrainer.train itself, with the optimizer. Pictures are noise of photographs' sizes within the
bounds of the shipped configurations. A random model ends no section of a chain, so that every chain is truncated at its
token budget, and all have one length.

The roofline divides the operations and bytes of `cir_cot.profiling.roofline` by the rates of a large product and a
large copy, measured in the same run. The peers are transformers and peft alone: the same adapter, `labels=` and all
hidden states. Each case is written to --out as soon as it is measured, and is not measured again when it is there.
Without a GPU, --size tiny shows in seconds that the script works, and nothing about speed.
"""

import argparse
import gc
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from cir_cot.cli import run
from cir_cot.devices import device_name
from cir_cot.errors import InputError
from cir_cot.files import read_json, write_json
from cir_cot.heads.cot import CotRetriever
from cir_cot.models.backbone import load_backbone
from cir_cot.models.tiny_qwen import CORPUS, tiny_model, tiny_processor, tiny_tokenizer
from cir_cot.profiling.device_meter import measure_card
from cir_cot.profiling.qwen_sizes import SIZES, published_model
from cir_cot.profiling.roofline import Card
from cir_cot.profiling.synthetic import SyntheticPairs
from cir_cot.profiling.workloads import (
    Conditions,
    decode,
    encode,
    encode_plain,
    generate,
    train,
    train_plain,
)
from cir_cot.provenance import git_state, package_versions

PARTS = ("decoding", "encoding", "training")
# Values of the shipped 7B configurations.
MIN_PIXELS = 3136
TEMPERATURE = 0.03


def build(
    size: str, device: torch.device, adapter: bool, args: argparse.Namespace, lora: dict
) -> CotRetriever:
    """Build a head on a model of a published size, with random bfloat16 weights drawn on the device."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer([*SyntheticPairs(0, 28).corpus(), *CORPUS])
    if size == "tiny":
        model = tiny_model("qwen2_5_vl", tokenizer).to(device, torch.bfloat16)
    else:
        model = published_model(size, tokenizer, device, torch.bfloat16, args.layers)
    processor = tiny_processor("qwen2_5_vl", tokenizer)
    bounds = {"min_pixels": MIN_PIXELS, "max_pixels": args.max_pixels}
    backbone = load_backbone(
        (model, processor), lora=lora if adapter else None, frozen=not adapter, **bounds
    )
    if adapter and args.recompute:
        backbone.checkpoint_activations()
    return CotRetriever(backbone, size, temperature=TEMPERATURE).to(device)


def cases(size: str, args: argparse.Namespace) -> list[tuple[str, bool, Callable[..., dict]]]:
    """Return each case's name, whether its model has our adapter, and its work; cases of one model are adjacent."""
    found: list[tuple[str, bool, Callable[..., dict]]] = []
    if "decoding" in args.parts:
        found += [
            (f"decoding, adapter apart, {rows} rows", True, partial(decode, rows=rows))
            for rows in args.chains
        ]
    if "training" in args.parts:
        first = min(args.batches), max(args.chunk_tokens)  # the case whose kernels are recorded
        pairs = [
            (rows, chunk)
            for rows in sorted(args.batches)
            for chunk in sorted(args.chunk_tokens, reverse=True)
        ]
        for pair in pairs:
            work = partial(train, rows=pair[0], chunk=pair[1], record=pair == first)
            found.append((f"training, {pair[0]} rows, chunks of {pair[1]}", True, work))
    peers: list[tuple[str, str, Callable[..., dict], Sequence[int]]] = [
        ("decoding", "decoding, merged, {} rows", decode, args.chains),
        ("decoding", "decoding, transformers' generate, {} rows", generate, args.chains),
        ("encoding", "encoding, {} pictures", encode, args.pictures),
        ("encoding", "encoding, transformers' forward, {} pictures", encode_plain, args.pictures),
        ("training", "training, transformers and peft, {} rows", train_plain, args.plain_batches),
    ]
    for part, name, work, counts in peers:
        if part in args.parts:
            found += [(name.format(rows), False, partial(work, rows=rows)) for rows in counts]
    return [(f"{size} {name}", adapter, work) for name, adapter, work in found]


def measure(
    found: dict, size: str, given: Conditions, until: float, args: argparse.Namespace
) -> None:
    """Measure the cases of one size that are missing; write and print each at once."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    head = None
    built = None
    for name, adapter, work in cases(size, args):
        if name in found["cases"] or time.perf_counter() > until:
            continue
        # One model at a time fits the memory.
        if built != adapter:
            head = None
            clear(device)
            head = build(size, device, adapter, args, given.lora)
            built = adapter
        try:
            found["cases"][name] = work(head, given=given)
        except torch.OutOfMemoryError:
            found["cases"][name] = {"out_of_memory": True}
        write_json(args.out, found)
        print(line(name, found["cases"][name]), flush=True)
        head.zero_grad()
        clear(device)


def clear(device: torch.device) -> None:
    """Free memory that is no longer used."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def line(name: str, case: dict) -> str:
    """Format a case as a row of the table."""
    if "out_of_memory" in case:
        return f"{name:<52} out of memory"
    numbers = (
        f"{case['seconds']:9.2f} {case['rows_per_second']:9.2f} {case['tokens_per_second']:11,.0f}"
    )
    waits = f"{case['waits']:7.0f}" if "waits" in case else f"{'':7}"
    return f"{name:<52}{numbers} {case['roofline_seconds']:9.3f} {case['share']:7.1%} {case['peak_gib']:7.1f} {waits}"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the script's arguments."""
    parser = argparse.ArgumentParser(
        prog="fullsize.py",
        description="Training, decoding and encoding at full size",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="JSON; cases that it has are kept"
    )
    parser.add_argument("--size", choices=[*SIZES, "tiny"], nargs="+", default=["7B", "3B"])
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[64, 256], help="rows of a training step"
    )
    parser.add_argument("--chunk-tokens", type=int, nargs="+", default=[16384, 4096])
    parser.add_argument(
        "--plain-batches",
        type=int,
        nargs="+",
        default=[16, 32, 64],
        help="of transformers and peft",
    )
    parser.add_argument(
        "--chains", type=int, nargs="+", default=[32, 128], help="queries that decode together"
    )
    parser.add_argument(
        "--pictures", type=int, nargs="+", default=[32, 128], help="pictures that encode together"
    )
    parser.add_argument(
        "--max-pixels", type=int, default=147456, help="largest area of a picture after resizing"
    )
    parser.add_argument("--words", type=int, default=150, help="words of a training chain")
    parser.add_argument("--new-tokens", type=int, default=150, help="tokens of a written chain")
    parser.add_argument(
        "--steps", type=int, default=2, help="timed training steps, after one that is not timed"
    )
    parser.add_argument("--recompute", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--layers", type=int, help="of both towers, to run at reduced depth")
    parser.add_argument(
        "--limit", type=float, default=float("inf"), metavar="SECONDS", help="begin no case later"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Measure, print one table and write it as JSON."""
    args = parse(argv)
    # Continue a file that was measured with the same settings.
    until = time.perf_counter() + args.limit
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and args.layers is None and args.size != ["tiny"]:
        raise InputError("no GPU here; --size tiny, or --layers 1, shows that the script works")
    names = ("words", "new_tokens", "steps", "recompute")
    common = {name: getattr(args, name) for name in names}
    settings = common | {
        "layers": args.layers,
        "max_pixels": args.max_pixels,
        "device": device_name(device),
    }
    found = read_json(args.out) if args.out.exists() else {"settings": settings, "cases": {}}
    if found["settings"] != settings:
        raise InputError(
            f"{args.out}: measured with other settings or on another device; give another --out"
        )
    found |= {"card": found.get("card") or vars(measure_card(device))}
    found |= {
        "versions": package_versions(),
        "git": git_state(),
        "dtype": "bfloat16",
        "attention": "sdpa",
        "seed": 0,
    }
    write_json(args.out, found)
    print(
        "card: {flops:.4g} operations a second, {bandwidth:.4g} bytes a second".format(
            **found["card"]
        )
    )
    print(
        f"{'':<52}{'s':>9} {'rows/s':>9} {'tokens/s':>11} {'floor s':>9} {'of it':>7} {'GiB':>7} {'waits':>7}"
    )
    for size in args.size:
        measure(found, size, Conditions(Card(**found["card"]), **common), until, args)


if __name__ == "__main__":
    run(main)
