"""Every head on scenes under the same conditions: one train split, one gallery, one time budget, one table, one plot.

A sweep: each row is one configuration of a shipped recipe. A row that is done is not done again; table and plot are
written after each row. The budget is wall-clock time in the training loop, of all stages of a row together: each run
is timed for a few steps first and given the steps that fill its part, so that its schedule ends with its budget.

Qwen rows start from the shipped tiny base, which was taught to describe scenes; CLIP rows from random weights, for no
CLIP so small exists. That difference is in every comparison between the two groups.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cir_cot.cli import run
from cir_cot.data import load_benchmark
from cir_cot.data.benchmark import Benchmark
from cir_cot.data.scene_files import write_scenes
from cir_cot.devices import device_name
from cir_cot.errors import InputError
from cir_cot.evaluation.evaluate import evaluate
from cir_cot.evaluation.readings import record_encoder
from cir_cot.evaluation.tables import Table, text_table
from cir_cot.files import write_json, write_text_atomic
from cir_cot.heads import load_retriever
from cir_cot.heads.combiners import MoeCombiner, count_parameters, hidden_for
from cir_cot.models.tiny_clip import write_tiny_clip
from cir_cot.profiling.counters import flops, seconds
from cir_cot.provenance import git_state, package_versions
from cir_cot.webpage import scatter

CONFIGS = Path(__file__).resolve().parent.parent / "train" / "configs"
SPLITS = ("iid", "novel")
SHORT = 5  # minutes: below, a row is run with three seeds
TIMED = 12  # steps that a run is timed for; the first ones are slow
CLIP = {"dim": 64, "hidden": 128, "layers": 4}
EXPERTS, TOP = 4, 2


@dataclass(frozen=True)
class Stage:
    """A training run: a command with its options, its part of the budget, and the stage or base it starts from."""

    command: str
    options: str
    start: str
    part: float = 1.0


def qwen(config: str) -> str:
    """Options of a run from a shipped configuration of the quickstart's size."""
    return f"--config {CONFIGS / config}.yaml"


def pool(prompts: int, length: int, top: int = 3) -> Stage:
    """The prompt pool with M prompts of L tokens."""
    return Stage(
        "prompt-pool",
        f"{qwen('prompt_pool')} --pool {prompts} --length {length} --top {top}",
        "qwen",
    )


def combiner(options: str) -> Stage:
    """A Combiner on the features of half a budget's stage 1."""
    # ours: CLIP4Cir's rates and batch of 4,096 are for a pretrained CLIP and 300 epochs
    common = "--per_device_train_batch_size 512 --learning_rate 1e-3 --temperature 0.03 --features {out}/features"
    return Stage("moe", f"{common} {options}", "half", 0.5)


def dense_widths(dim: int) -> dict[str, int]:
    """H of dense Combiners with as many parameters as the mixture of experts, in all and active for a row."""
    sizes = dim, 4 * dim, 8 * dim
    whole = count_parameters(lambda: MoeCombiner(*sizes, EXPERTS, TOP, False, "learned"))
    idle = (EXPERTS - TOP) * (2 * sizes[1] + 1) * sizes[2]
    return {
        "parameters": hidden_for(whole, dim, sizes[1]),
        "compute": hidden_for(whole - idle, dim, sizes[1]),
    }


WIDTHS = dense_widths(CLIP["dim"])
SUM = "--per_device_train_batch_size 128 --learning_rate 1e-3 --temperature 0.03"
STAGES = {
    "sum": Stage("clip", SUM, "clip"),
    "half": Stage("clip", SUM, "clip", 0.5),
    "dense": combiner("--combiner dense"),
    "dense_parameters": combiner(f"--combiner dense --hidden {WIDTHS['parameters']}"),
    "dense_compute": combiner(f"--combiner dense --hidden {WIDTHS['compute']}"),
    "faithful": combiner("--combiner faithful"),
    "improved": combiner("--combiner improved"),
    "random": combiner("--combiner improved --routing random"),
    "one_pass": Stage("prompt-pool", f"{qwen('prompt_pool')} --pool 0 --connector 0", "qwen"),
    "pool": pool(10, 2),
    **{f"pool_m{m}": pool(m, 2) for m in (5, 20)},
    **{f"pool_l{length}": pool(10, length) for length in (1, 5)},
    "chains": Stage("sft", qwen("quickstart_stage1"), "qwen", 0.4),
    "chain": Stage("sft", qwen("quickstart"), "chains", 0.6),
    "chain_clip": Stage("sft", f"{qwen('quickstart')} --target_encoder {{sum}}", "chains", 0.6),
}
ROWS = {  # name: (the stage whose retriever is asked, the reading)
    "image only": ("sum", "image_only"),
    "text only": ("sum", "text_only"),
    "sum (stage 1)": ("sum", None),
    "dense Combiner": ("dense", None),
    "dense, equal parameters": ("dense_parameters", None),
    "dense, equal active compute": ("dense_compute", None),
    "MoE faithful": ("faithful", None),
    "MoE improved": ("improved", None),
    "MoE, random routing": ("random", None),
    "Qwen, one pass, no pool": ("one_pass", None),
    "prompt pool, M 10, L 2": ("pool", None),
    "prompt pool, M 5, L 2": ("pool_m5", None),
    "prompt pool, M 20, L 2": ("pool_m20", None),
    "prompt pool, M 10, L 1": ("pool_l1", None),
    "prompt pool, M 10, L 5": ("pool_l5", None),
    "chain, Fast": ("chain", "fast"),
    "chain, Full": ("chain", "full"),
    "chain, Full, frozen CLIP space": ("chain_clip", "full"),
}


def train(out: Path, name: str, seed: int, budget: float) -> Path:
    """Train a stage, and first what it starts from, unless that is done -> its run folder."""
    folder = out / "models" / f"{name}.{seed}"
    if (folder / "metrics.json").is_file():  # written last
        return folder
    stage = STAGES[name]
    bases = {"qwen": "cir-cot/tiny-base", "clip": str(out / "tiny_clip")}
    start = bases.get(stage.start) or str(train(out, stage.start, seed, budget))
    shared = {
        "out": out,
        "sum": train(out, "sum", seed, budget) if "{sum}" in stage.options else "",
    }
    words = [stage.command, *stage.options.format(**shared).split(), "--model", start]
    words += ["--root", str(out / "scenes"), "--seed", str(seed)]
    words += ["--save_strategy", "no", "--report_to", "none", "--disable_tqdm", "true"]
    timed = call(words, folder.with_suffix(".timed"), TIMED)
    rate = timed["train_runtime"] / TIMED
    call(words, folder, max(TIMED, round(60 * budget * stage.part / rate)))
    return folder


def call(words: Sequence[str], folder: Path, steps: int) -> dict:
    """Run a training command of the project for so many steps -> its metrics; SystemExit names its log if it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    command = [
        sys.executable,
        "-m",
        "cir_cot.cli",
        *words,
        "--output_dir",
        str(folder),
        "--max_steps",
        str(steps),
    ]
    command += ["--overwrite"]  # what an interrupted run of this benchmark left
    with log.open("w") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"training failed with exit code {done.returncode}; see {log}")
    return json.loads((folder / "metrics.json").read_text())


def minutes_of(out: Path, name: str, seed: int) -> float:
    """Training minutes of a stage and of those it starts from."""
    stage, own = (
        STAGES[name],
        json.loads((out / "models" / f"{name}.{seed}" / "metrics.json").read_text()),
    )
    before = minutes_of(out, stage.start, seed) if stage.start in STAGES else 0.0
    return before + own["train_runtime"] / 60


def measure(out: Path, row: str, seed: int, args: argparse.Namespace) -> dict:
    """Train what a row needs, then measure it -> the content of its result file."""
    name, reading = ROWS[row]
    folder = train(out, name, seed, args.minutes)
    retriever = load_retriever(folder)
    found = {
        "row": row,
        "seed": seed,
        "git": git_state(),
        "minutes": round(minutes_of(out, name, seed), 2),
    }
    found["parameters"] = sum(parameter.numel() for parameter in retriever.parameters())
    for split in SPLITS:
        (benchmark,) = load_benchmark("folder", out / "scenes", split)
        options = {
            "reading": reading,
            "model": name,
            "limit": args.queries,
            "batch_size": 128,
            "seed": 0,
        }
        result = evaluate(retriever, benchmark, benchmark.images(), **options)
        found[split] = result.metrics
        found["protocol"] = result.protocol
    return found | query_cost(retriever, benchmark, reading)


def query_cost(retriever, benchmark: Benchmark, reading: str | None, count: int = 8) -> dict:
    """Mean FLOPs and median seconds of one query, asked alone, over `count` queries."""
    images, records = benchmark.images(), benchmark.records[:count]
    pictures, ask = (
        [images.load(record.reference) for record in records],
        record_encoder(retriever, reading),
    )
    works = [lambda r=r, p=p: ask([r], [p]) for r, p in zip(records, pictures, strict=True)]
    with torch.no_grad():
        operations = [flops(work) for work in works]
        times = seconds({str(number): work for number, work in enumerate(works)}, pairs=3)
    return {
        "flops": statistics.mean(operations),
        "latency_ms": 1000 * statistics.median(times.values()),
    }


def table(results: Sequence[dict], words: str) -> Table:
    """One row a configuration, mean and spread over its seeds."""
    rows = []
    for row in ROWS:
        same = [result for result in results if result["row"] == row]
        if same:
            recalls = [
                spread([result[split][k] for result in same])
                for split in SPLITS
                for k in ("R@1", "R@10")
            ]
            mean = {
                key: statistics.mean(result[key] for result in same)
                for key in ("minutes", "flops", "latency_ms")
            }
            cost = [
                f"{same[0]['parameters'] / 1e6:.2f}",
                f"{mean['flops'] / 1e9:.3f}",
                f"{mean['latency_ms']:.1f}",
            ]
            rows.append([row, len(same), *recalls, f"{mean['minutes']:.1f}", *cost])
    header = [f"{split} {k}" for split in SPLITS for k in ("R@1", "R@10")]
    costs = ["minutes", "M parameters", "GFLOP a query", "ms a query"]
    return Table("Heads on scenes", ["row", "seeds", *header, *costs], rows, words)


def spread(values: Sequence[float]) -> str:
    """Mean, and the standard deviation where there are several."""
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def main(argv: Sequence[str]) -> int:
    """Run what is not done yet, writing each result as it ends, then print the table."""
    parser = argparse.ArgumentParser(prog="heads.py", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder; run again to go on"
    )
    parser.add_argument(
        "--minutes", type=float, default=10, help="training time of a row (default 10)"
    )
    parser.add_argument(
        "--references",
        type=int,
        default=1000,
        help="scenes to train on, 16 edits each (default 1000)",
    )
    parser.add_argument(
        "--test-references", type=int, default=400, help="scenes of iid and of novel (default 400)"
    )
    parser.add_argument(
        "--queries", type=int, default=2000, help="queries a split; the gallery stays whole"
    )
    parser.add_argument(
        "--seeds", type=int, help=f"default: 3 where --minutes is below {SHORT}, else 1"
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=list(ROWS),
        default=list(ROWS),
        metavar="ROW",
        help="default: all",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results here, too")
    args = parser.parse_args(argv)
    if args.minutes <= 0:
        raise InputError(f"minutes {args.minutes}: give each row some time")
    settings = prepare(args)
    for seed in range(args.seeds or (3 if args.minutes < SHORT else 1)):
        for row in args.rows:
            file = args.out / "results" / f"{slug(row)}.{seed}.json"
            if not file.is_file():
                write_json(file, measure(args.out, row, seed, args))
                print(text_table(write_out(args.out, settings)), flush=True)
    everything = write_out(args.out, settings)
    print(text_table(everything))
    if args.json:
        write_json(
            args.json, {"name": "heads", "settings": settings, "results": read_results(args.out)}
        )
    return 0


def prepare(args: argparse.Namespace) -> dict:
    """Write scenes and the tiny CLIP once -> what all rows share; InputError if a folder was begun otherwise."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    asked = {
        name: getattr(args, name)
        for name in ("minutes", "references", "test_references", "queries")
    }
    settings = asked | {"device": device_name(device), "threads": torch.get_num_threads()}
    file = args.out / "settings.json"
    if file.is_file():
        begun = json.loads(file.read_text())
        for name, value in settings.items():
            if begun.get(name) != value:
                raise InputError(
                    f"{args.out}: begun with {name} {begun.get(name)}, not {value}; use another --out"
                )
        return begun
    write_scenes(args.out / "scenes", 0, args.references, test_references=args.test_references)
    (benchmark,) = load_benchmark("folder", args.out / "scenes", "train")
    write_tiny_clip(
        args.out / "tiny_clip", corpus=[record.text for record in benchmark.records], **CLIP
    )
    settings |= {"clip": CLIP, "git": git_state(), "versions": package_versions()}
    write_json(file, settings)
    return settings


def slug(row: str) -> str:
    """Name a row's files."""
    return "_".join("".join(letter if letter.isalnum() else " " for letter in row.lower()).split())


def read_results(out: Path) -> list[dict]:
    """All results there are."""
    return [json.loads(file.read_text()) for file in sorted((out / "results").glob("*.json"))]


def write_out(out: Path, settings: dict) -> Table:
    """Write the table as Markdown and the plot -> the table."""
    results = read_results(out)
    words = (
        f"In percent, {settings['queries']} queries a split, {17 * settings['test_references']} pictures in the "
        f"gallery, the reference removed, ties pessimistic. {16 * settings['references']} queries to train on, "
        f"{settings['minutes']:g} minutes of training a row on {settings['device']}, {settings['threads']} threads."
    )
    made = table(results, words)
    lines = [
        " | ".join(map(str, cells))
        for cells in (made.header, ["---"] * len(made.header), *made.rows)
    ]
    write_text_atomic(
        out / "heads.md", "\n".join([words, "", *(f"| {line} |" for line in lines)]) + "\n"
    )
    write_text_atomic(out / "heads.svg", plot(results))
    return made


def plot(results: Sequence[dict]) -> str:
    """Recall on new combinations against the cost of a query, a point a row."""
    points = []
    for row in ROWS:
        same = [result for result in results if result["row"] == row]
        if same:
            recall = statistics.mean(result["novel"]["R@1"] for result in same)
            points.append((row, statistics.mean(result["flops"] for result in same) / 1e9, recall))
    return scatter(points, "GFLOP a query (logarithmic)", "R@1 on novel combinations, %")


if __name__ == "__main__":
    run(main)
