"""Compare every head on scenes under the same conditions: one train split, gallery and time budget; one table and plot.

Each row is one configuration of a shipped recipe. Finished rows and trained models are reused, and table and plot are
written after each row. The budget is wall-clock time in the training loop, of all stages of a row together. Each run is
timed for a few steps first, and then gets as many steps as fill its part, so that its schedule ends with its budget.

Qwen rows start from the shipped tiny base, which was trained to describe scenes. CLIP rows start from random weights,
because no pretrained CLIP of that size exists. That difference is in every comparison between the two groups.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
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
from cir_cot.models.tiny_clip import write_tiny_clip
from cir_cot.profiling.counters import flops, seconds
from cir_cot.profiling.head_rows import CLIP, ROWS, STAGES
from cir_cot.provenance import git_state, package_versions
from cir_cot.webpage import scatter

CONFIGS = Path(__file__).resolve().parent.parent / "train" / "configs"
SPLITS = ("iid", "novel")
SHORT = 5  # minutes; a row with a smaller budget is run with three seeds
TIMED = 12  # steps that a run is timed for; the first ones are slow


def train(out: Path, name: str, seed: int, budget: float) -> Path:
    """Train a stage after the stages that it starts from, unless they are trained already -> its run folder."""
    folder = out / "models" / f"{name}.{seed}"
    if (folder / "metrics.json").is_file():  # written last
        return folder
    stage = STAGES[name]
    # Train what the stage needs.
    bases = {"qwen": "cir-cot/tiny-base", "clip": str(out / "tiny_clip")}
    start = bases.get(stage.start) or str(train(out, stage.start, seed, budget))
    shared = {"out": out, "configs": CONFIGS, "sum": ""}
    if "{sum}" in stage.options:
        shared["sum"] = train(out, "sum", seed, budget)
    words = [stage.command, *stage.options.format(**shared).split(), "--model", start]
    words += ["--root", str(out / "scenes"), "--seed", str(seed)]
    words += ["--save_strategy", "no", "--report_to", "none", "--disable_tqdm", "true"]
    # Time a few steps, then run as many as fill the budget.
    timed = call(words, folder.with_suffix(".timed"), TIMED)
    rate = timed["train_runtime"] / TIMED
    call(words, folder, max(TIMED, round(60 * budget * stage.part / rate)))
    return folder


def call(words: Sequence[str], folder: Path, steps: int) -> dict:
    """Run a training command for a number of steps -> its metrics; SystemExit names its log if it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    command = [sys.executable, "-m", "cir_cot.cli", *words, "--output_dir", str(folder)]
    command += ["--max_steps", str(steps)]
    command += ["--overwrite"]  # a run of this benchmark that was interrupted
    with log.open("w") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"training failed with exit code {done.returncode}; see {log}")
    return json.loads((folder / "metrics.json").read_text())


def minutes_of(out: Path, name: str, seed: int) -> float:
    """Return the training minutes of a stage and of those that it starts from."""
    stage = STAGES[name]
    own = json.loads((out / "models" / f"{name}.{seed}" / "metrics.json").read_text())
    before = minutes_of(out, stage.start, seed) if stage.start in STAGES else 0.0
    return before + own["train_runtime"] / 60


def measure(out: Path, row: str, seed: int, args: argparse.Namespace) -> dict:
    """Train what a row needs, then measure it -> the content of its result file."""
    name, reading = ROWS[row]
    folder = train(out, name, seed, args.minutes)
    retriever = load_retriever(folder)
    minutes = round(minutes_of(out, name, seed), 2)
    found = {"row": row, "seed": seed, "git": git_state(), "minutes": minutes}
    found["parameters"] = sum(parameter.numel() for parameter in retriever.parameters())
    # Metrics of each split, then the cost of a query.
    options = {"reading": reading, "model": name, "limit": args.queries}
    options |= {"batch_size": 128, "seed": 0}
    for split in SPLITS:
        (benchmark,) = load_benchmark("folder", out / "scenes", split)
        result = evaluate(retriever, benchmark, benchmark.images(), **options)
        found[split] = result.metrics
        found["protocol"] = result.protocol
    return found | query_cost(retriever, benchmark, reading)


def query_cost(retriever, benchmark: Benchmark, reading: str | None, count: int = 8) -> dict:
    """Measure mean FLOPs and median seconds of a query that is encoded alone, over `count` queries."""
    images = benchmark.images()
    records = benchmark.records[:count]
    encode = record_encoder(retriever, reading)
    works = {}
    for number, record in enumerate(records):
        picture = images.load(record.reference)
        works[str(number)] = partial(encode, [record], [picture])
    with torch.no_grad():
        operations = [flops(work) for work in works.values()]
        times = seconds(works, pairs=3)
    latency = 1000 * statistics.median(times.values())
    return {"flops": statistics.mean(operations), "latency_ms": latency}


def table(results: Sequence[dict], words: str) -> Table:
    """Return the table: one row a configuration, mean and spread over its seeds."""
    rows = [table_row(row, same) for row in ROWS if (same := results_of(results, row))]
    header = [f"{split} {k}" for split in SPLITS for k in ("R@1", "R@10")]
    costs = ["minutes", "M parameters", "GFLOP a query", "ms a query"]
    return Table("Heads on scenes", ["row", "seeds", *header, *costs], rows, words)


def results_of(results: Sequence[dict], row: str) -> list[dict]:
    """Return the results of a row, one a seed."""
    return [result for result in results if result["row"] == row]


def table_row(row: str, results: Sequence[dict]) -> list:
    """Return the cells of a row from its results."""
    cells = [row, len(results)]
    for split in SPLITS:
        for metric in ("R@1", "R@10"):
            cells.append(spread([result[split][metric] for result in results]))
    cells.append(f"{mean(results, 'minutes'):.1f}")
    cells.append(f"{results[0]['parameters'] / 1e6:.2f}")
    cells.append(f"{mean(results, 'flops') / 1e9:.3f}")
    cells.append(f"{mean(results, 'latency_ms'):.1f}")
    return cells


def mean(results: Sequence[dict], key: str) -> float:
    """Return the mean of a number over results."""
    return statistics.mean(result[key] for result in results)


def spread(values: Sequence[float]) -> str:
    """Format the mean, and the standard deviation if there are several values."""
    center = f"{statistics.mean(values):.1f}"
    return center if len(values) == 1 else f"{center} ± {statistics.stdev(values):.1f}"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the script's arguments."""
    parser = argparse.ArgumentParser(prog="heads.py", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder; run again to continue")
    add("--minutes", type=float, default=10, help="training time of a row (default 10)")
    references = "scenes to train on, 16 edits each (default 1000)"
    add("--references", type=int, default=1000, help=references)
    test = "scenes of iid and of novel (default 400)"
    add("--test-references", type=int, default=400, help=test)
    queries = "queries of a split; the gallery stays complete"
    add("--queries", type=int, default=2000, help=queries)
    add("--seeds", type=int, help=f"default: 3 if --minutes is below {SHORT}, else 1")
    rows = list(ROWS)
    add("--rows", nargs="+", choices=rows, default=rows, metavar="ROW", help="default: all")
    add("--json", type=Path, metavar="FILE", help="write all results here as well")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the rows that are not finished, writing each result at once, then print the table."""
    args = parse(argv)
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
    """Write scenes and the tiny CLIP once -> settings of all rows; InputError if the folder has other settings."""
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
    """Return a row's name in file names."""
    return "_".join("".join(letter if letter.isalnum() else " " for letter in row.lower()).split())


def read_results(out: Path) -> list[dict]:
    """Read all results."""
    return [json.loads(file.read_text()) for file in sorted((out / "results").glob("*.json"))]


def write_out(out: Path, settings: dict) -> Table:
    """Write the table as Markdown and the plot -> the table."""
    results = read_results(out)
    words = (
        f"In percent, {settings['queries']} queries a split, {17 * settings['test_references']} pictures in the "
        f"gallery, the reference removed, ties pessimistic. {16 * settings['references']} queries to train on, "
        f"{settings['minutes']:g} minutes of training a row on {settings['device']}, {settings['threads']} threads."
    )
    found = table(results, words)
    lines = [words, ""]
    for cells in (found.header, ["---"] * len(found.header), *found.rows):
        lines.append(f"| {' | '.join(map(str, cells))} |")
    write_text_atomic(out / "heads.md", "\n".join(lines) + "\n")
    write_text_atomic(out / "heads.svg", plot(results))
    return found


def plot(results: Sequence[dict]) -> str:
    """Draw recall on new combinations against the cost of a query, a point a row -> SVG."""
    points = []
    for row in ROWS:
        if same := results_of(results, row):
            recall = statistics.mean(result["novel"]["R@1"] for result in same)
            points.append((row, mean(same, "flops") / 1e9, recall))
    return scatter(points, "GFLOP a query (logarithmic)", "R@1 on novel combinations, %")


if __name__ == "__main__":
    run(main)
