"""From nothing to a measured retriever: scenes -> the tiny base trained -> evaluation on iid and novel -> a report.

What a user does on Qwen2.5-VL-7B, small enough for two CPU cores: the same commands, recipe, head and protocol. Beside
the chain retriever the same network is trained without chains for about the same time, so that the chain's worth shows.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children, get_context
from pathlib import Path

import torch

from cir_cot.cli import run
from cir_cot.data import load_benchmark
from cir_cot.devices import device_name
from cir_cot.errors import InputError
from cir_cot.evaluation.chain_quality import chain_metrics
from cir_cot.evaluation.encode import encode_gallery
from cir_cot.evaluation.evaluate import evaluate
from cir_cot.evaluation.report import write_report
from cir_cot.evaluation.results import Result, save_results
from cir_cot.evaluation.tables import Table, summary_table, text_table
from cir_cot.files import write_json
from cir_cot.heads import load_retriever
from cir_cot.options import (
    add_out,
    add_overwrite,
    add_seed,
    command_parser,
)
from cir_cot.processes import start, stop, unwinding
from cir_cot.storage import locked

CONFIGS = Path(__file__).parent / "configs"
SPLITS = ("iid", "novel")
READINGS = ("full", "fast", "oracle", "image_only", "text_only")
KEYS = ("R@1", "R@5", "R@10")
SUMMARY, MARK = "summary.json", "quickstart.json"
PARTS = (
    "scenes",
    "stage1",
    "model",
    "no_chain",
    "no_chain.log",
    "results",
    "report.md",
    "report.html",
)
BATCH = 250  # pictures or queries encoded at a time
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
}


def command(*words: str, log: Path | None = None) -> subprocess.Popen:
    """Start a command of the project in a process of its own, with one thread; its output goes to `log` if given."""
    return start([sys.executable, "-m", "cir_cot.cli", *words], {**os.environ, **ONE_THREAD}, log)


def finish(process: subprocess.Popen, what: str, log: Path | None = None) -> None:
    """Wait for a command; SystemExit names it and where it wrote when it failed. It ends when the waiting does."""
    try:
        code = process.wait()
    finally:
        stop([process])
    if code:
        raise SystemExit(
            f"{what} failed with exit code {process.returncode}" + (f"; see {log}" if log else "")
        )


def train_both(out: Path, extra: Sequence[str]) -> float:
    """Train with chains in two stages (progress shown) and never with them (logged), side by side -> minutes."""
    started, log = time.time(), out / "no_chain.log"
    bf16 = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()
    shared = ["--root", str(out / "scenes"), "--bf16", str(bf16), *extra]

    def sft(config: str, folder: str, *more: str, log: Path | None = None) -> subprocess.Popen:
        paths = [
            "--config",
            str(CONFIGS / f"{config}.yaml"),
            "--output_dir",
            str(out / folder),
            "--overwrite",
        ]
        return command("sft", *paths, *shared, *more, log=log)

    running = [no_chain := sft("quickstart_no_chain", "no_chain", log=log)]
    try:
        running.append(sft("quickstart_stage1", "stage1"))
        finish(running[-1], "stage 1, chains alone")
        running.append(sft("quickstart", "model", "--model", str(out / "stage1")))
        finish(running[-1], "stage 2, chains and retrieval")
        finish(no_chain, "training without chains", log)
    finally:
        stop(running)
    return (time.time() - started) / 60


def measure(out: Path, split: str, limit: int, seed: int) -> list[Result]:
    """Evaluate both models on one split -> full, fast, oracle, baselines, then the model without chains."""
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // len(SPLITS)))
    (benchmark,) = load_benchmark("folder", out / "scenes", split)
    images = benchmark.images()
    results = []
    for folder, readings in (("model", READINGS), ("no_chain", ("fast",))):
        retriever = load_retriever(out / folder, attn="eager")
        retriever.batch_size = BATCH
        gallery = encode_gallery(
            retriever, benchmark.gallery, images, BATCH, progress=split == SPLITS[0]
        )
        for reading in readings:
            name = "no_chain" if folder == "no_chain" else reading
            options = {
                "gallery": gallery,
                "model": folder,
                "limit": limit,
                "batch_size": BATCH,
                "seed": seed,
            }
            result = evaluate(retriever, benchmark, images, reading=reading, **options)
            result.protocol["reading"] = name
            save_results([result], out / "results" / split / name, overwrite=True)
            results.append(result)
    return results


def summary(results: dict[str, list[Result]], exact: dict[str, float], minutes: float) -> dict:
    """The content of summary.json."""
    table = {
        split: {
            r.protocol["reading"]: {key: round(r.metrics[key], 2) for key in KEYS} for r in measured
        }
        for split, measured in results.items()
    }
    first = next(iter(results.values()))[0]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return table | {
        "exact_conclusion": exact,
        "gallery": first.protocol["gallery_size"],
        "queries": first.protocol["queries"],
        "minutes": round(minutes, 1),
        "peak_memory_mb": round(
            peak / (2**20 if sys.platform == "darwin" else 2**10)
        ),  # of the largest process
        "device": device_name(device),
    }


def chain_table(results: dict[str, list[Result]]) -> tuple[Table, dict[str, float]]:
    """The chains of both splits as a table of the report, and the rate of exact conclusions."""
    metrics = {
        split: chain_metrics(full.benchmark.records, full.explanations, full.flags)
        for split, (full, *_) in results.items()
    }
    names = list(metrics[SPLITS[0]])
    rows = [
        [split, *(round(values[name], 2) for name in names)] for split, values in metrics.items()
    ]
    table = Table(
        "Chains the model wrote (%)",
        ["split", *names],
        rows,
        "Exact: equal to the true chain, word for word.",
    )
    return table, {split: round(values["exact_conclusion"], 2) for split, values in metrics.items()}


def measure_all(out: Path, limit: int, seed: int) -> dict[str, list[Result]]:
    """Evaluate both splits side by side -> results by split."""
    with ProcessPoolExecutor(len(SPLITS), mp_context=get_context("spawn")) as pool:
        try:
            jobs = {split: pool.submit(measure, out, split, limit, seed) for split in SPLITS}
            return {split: job.result() for split, job in jobs.items()}
        except BaseException:
            for (
                child
            ) in active_children():  # otherwise the pool would wait for the end of their work
                child.kill()
            raise


def make_room(out: Path, overwrite: bool) -> None:
    """Make the folder and mark it as a quickstart's; InputError where something else, or a finished one, is in it."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; --out names a folder")
    if (out / SUMMARY).exists() and not overwrite:
        raise InputError(
            f"{out}: holds a finished quickstart; give another --out, or --overwrite to run it again"
        )
    found = next((name for name in PARTS if (out / name).exists()), None)
    if found and not (out / MARK).exists() and not overwrite:
        raise InputError(
            f"{out / found}: was there before any quickstart; give another --out, or --overwrite"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_json(
        out / MARK, {"note": "cir-cot quickstart writes this folder and may replace what is in it"}
    )
    (out / SUMMARY).unlink(missing_ok=True)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `cir-cot quickstart`."""
    parser = command_parser("quickstart", __doc__)
    add_out(parser, "folder for the data, the models, the results and the report")
    add_overwrite(parser, "run again in a folder that holds a finished quickstart")
    add_seed(parser, of="the scenes and of the query sample")
    parser.add_argument(
        "--references",
        type=int,
        default=1000,
        metavar="N",
        help="scenes for training, with 16 edits each (default 1000)",
    )
    parser.add_argument(
        "--test-references",
        type=int,
        default=400,
        metavar="N",
        help="scenes in each of the test splits, iid and novel (default 400)",
    )
    parser.add_argument(
        "--queries",
        type=int,
        default=2000,
        metavar="N",
        help="queries evaluated in each split; the gallery stays complete (default 2000)",
    )
    parser.add_argument(
        "--max-steps",
        type=int,
        metavar="N",
        help="stop both trainings after N steps, to check that everything runs (default: no limit)",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run every step, then write summary.json, report.md and report.html and print the table."""
    args = parse(argv)
    with unwinding(), locked(Path(args.out)):
        make_room(Path(args.out), args.overwrite)
        return run_all(args)


def run_all(args: argparse.Namespace) -> int:
    """Draw the scenes, train, evaluate and report."""
    started, out = time.time(), Path(args.out)
    scenes = [
        "--out",
        str(out / "scenes"),
        "--seed",
        str(args.seed),
        "--references",
        str(args.references),
    ]
    scenes += ["--test-references", str(args.test_references), "--overwrite"]
    finish(command("scenes", *scenes), "writing the scenes")
    trained = train_both(out, ["--max_steps", str(args.max_steps)] if args.max_steps else [])
    results = measure_all(out, args.queries, args.seed)
    chains, exact = chain_table(results)
    everything = [result for measured in results.values() for result in measured]
    title = "Quickstart: chain-of-thought retrieval on scenes"
    write_report(out, everything, title=title, tables=[chains], seed=args.seed, overwrite=True)
    facts = summary(results, exact, (time.time() - started) / 60)
    write_json(out / SUMMARY, facts)
    print("\n" + text_table(summary_table(everything)) + "\n\n" + text_table(chains))
    print(
        f"\n{facts['gallery']} pictures in the gallery, the reference removed, {facts['queries']} queries a split. "
        f"{facts['minutes']} minutes, {trained:.1f} of them training. Look at {out / 'report.html'}"
    )
    return 0


if __name__ == "__main__":
    run(main)
