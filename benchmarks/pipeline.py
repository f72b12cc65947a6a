"""Take a Qwen2.5-VL of a published width through the whole pipeline on a CPU: train, evaluate, index, search, export.

The checkpoint has the published configuration of a size with few layers, random weights, Qwen's own vocabulary, and
several files. It shows what no tiny model shows: shards, a vocabulary of 151,936 rows, real lengths of chains and tied
or untied matrices. The pictures are a FashionIQ-like folder with chains. Every command runs in a process of its own;
the table has its processor-seconds and its largest memory. A random model ends no section, so that every chain is cut
at its budget, and no metric means anything.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from cir_cot.cli import run
from cir_cot.data import load_benchmark
from cir_cot.errors import InputError
from cir_cot.files import write_json
from cir_cot.models.qwen_vocabulary import qwen_tokenizer
from cir_cot.models.tiny_qwen import tiny_processor
from cir_cot.profiling.qwen_sizes import SIZES, published_model
from cir_cot.provenance import package_versions

ROWS = 4  # of a training step
QUERIES = 2


def build(folder: Path, size: str, layers: int | None, seed: int) -> None:
    """Save a checkpoint of the published width, in files of at most 500 MB."""
    torch.manual_seed(seed)
    tokenizer = qwen_tokenizer()
    model = published_model(size, tokenizer, torch.device("cpu"), torch.bfloat16, layers)
    model.save_pretrained(folder, max_shard_size="500MB")
    processor = tiny_processor("qwen2_5_vl", tokenizer, min_pixels=3136, max_pixels=50_176)
    processor.save_pretrained(folder)


def commands(out: Path, root: Path, category: str) -> dict[str, list[str]]:
    """Return the command lines of the pipeline, by name."""
    data = ["--benchmark", "fashioniq", "--root", str(root), "--category", category]
    model = str(out / "run")
    chains = str(root / "chains" / f"chains.{category}.train.jsonl")
    train = ["--split", "train", "--chains", chains, "--model", str(out / "base")]
    train += ["--output_dir", model, "--lora_r", "16", "--lora_alpha", "32", "--dtype", "bfloat16"]
    train += ["--bf16", "true", "--recompute", "true", "--chunk_tokens", "1024", "--max_steps", "2"]
    train += ["--per_device_train_batch_size", str(ROWS), "--report_to", "none"]
    evaluate = ["--model", model, *data, "--split", "val", "--limit", str(QUERIES)]
    evaluate += ["--dtype", "bfloat16"]
    # One picture and one text for a search.
    (benchmark,) = load_benchmark("fashioniq", root, "val", category)
    record = benchmark.records[0]
    picture = str(benchmark.images().path(record.reference))
    index = str(out / "index")
    gallery = out / "gallery.txt"
    gallery.write_text("".join(f"{name}\n" for name in benchmark.gallery))
    return {
        "sft": [*data, *train],
        "index": ["--model", model, "--images", str(root / "images"), "--out", index]
        + ["--gallery", str(gallery), "--model-dtype", "bfloat16"],
        "retrieval": [*evaluate, "--index", index, "--reading", "full"]
        + ["--out", str(out / "retrieval")],
        "reasoning": [*evaluate, "--index", index, "--out", str(out / "reasoning")],
        "search": ["--model", model, "--index", index, "--image", picture, "--text", record.text]
        + ["--dtype", "bfloat16", "--json"],
        "export": ["--model", model, "--out", str(out / "export")],
        "export --parity": ["--model", model, "--out", str(out / "export"), "--parity"],
    }


def measure(name: str, arguments: Sequence[str], log: Path) -> dict:
    """Run a command in a process of its own; return its seconds, processor-seconds and largest memory.

    Raises:
        InputError: it failed; the message names its log.
    """
    call = [sys.executable, "-m", "cir_cot.cli", name.split()[0], *arguments]
    started = time.perf_counter()
    with log.open("wb") as file:
        process = subprocess.Popen(call, stdout=file, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code:
        raise InputError(f"{name} failed with exit code {code}; see {log}")
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_mb": round(used.ru_maxrss / 1024),
    }


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the script's arguments."""
    parser = argparse.ArgumentParser(
        prog="pipeline.py", description="The pipeline on published widths", allow_abbrev=False
    )
    add = parser.add_argument
    add("--root", type=Path, required=True, metavar="DIR", help="FashionIQ-like, with chains/")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for everything")
    add("--category", default="dress")
    add("--size", choices=list(SIZES), default="3B")
    add("--layers", type=int, default=2, help="of both towers; 0: as published")
    add("--only", nargs="+", metavar="COMMAND", help="these commands alone, such as sft")
    add("--json", type=Path, metavar="FILE", help="write the numbers here")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Build the checkpoint, run the commands and print a table."""
    args = parse(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    base = args.out / "base"
    if not (base / "config.json").exists():
        build(base, args.size, args.layers or None, seed=0)
    shards = len(list(base.glob("*.safetensors")))
    print(f"{args.size}, {args.layers or 'all'} layers, {shards} files of weights")
    found = {}
    for name, arguments in commands(args.out, args.root, args.category).items():
        if args.only and name not in args.only:
            continue
        found[name] = measure(name, arguments, args.out / f"{name.replace(' ', '')}.log")
        row = found[name]
        print(
            f"{name:16} {row['processor_seconds']:8.1f} processor-s {row['peak_mb']:7,} MB",
            flush=True,
        )
    if args.json:
        facts = {"name": "pipeline", "size": args.size, "layers": args.layers, "commands": found}
        write_json(args.json, {**facts, "versions": package_versions()})


if __name__ == "__main__":
    run(main)
