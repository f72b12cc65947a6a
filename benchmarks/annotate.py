"""Measure an annotation job beside static batches: makespan over the ideal, overhead of the client, peak memory.

A server in a process of its own answers at once, then after log-normal latencies. Ours is the job as `cir-cot annotate`
runs it. The peer asks the same teacher the same questions in batches of rows, and waits for the slowest row of each
batch, as annotation scripts do. The ideal is the sum of all latencies, divided by the number of requests in flight.
"""

import argparse
import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from cir_cot.chains.annotate import annotate_row, annotate_tasks
from cir_cot.chains.job import Job, Task, content_key
from cir_cot.chains.openai_teacher import OpenAITeacher
from cir_cot.chains.teacher import Plan
from cir_cot.cli import run
from cir_cot.data import load_benchmark
from cir_cot.files import write_text_atomic
from cir_cot.provenance import package_versions

SERVER = Path(__file__).resolve().parent / "teacher_server.py"
# Synthetic pictures: 16 files, each under many names.
PICTURES = 16
WIDTH = 96
HEIGHT = 128


def main(argv: Sequence[str]) -> None:
    """Measure, print one table and write it as JSON."""
    args = parse(argv)
    # Zero latency shows the client's own cost; latencies show how it fills the time.
    with tempfile.TemporaryDirectory() as folder:
        root = stand_in(args.root, Path(folder))
        at_once = overhead(root, args.overhead_rows or args.rows, args.concurrency)
        print(f"zero latency: {at_once}", flush=True)
        ours = timed(root, args, run_ours)
        print(f"ours: {ours}", flush=True)
        peer = timed(root, args, run_static)
        print(f"static batches: {peer}", flush=True)
    settings = {"median": args.median, "sigma": args.sigma, "concurrency": args.concurrency}
    report = {
        "name": "annotate",
        "ours": ours | {"zero_latency": at_once},
        "peer": peer,
        "ratio": {
            "makespan_vs_static": round(peer["over_ideal"] / ours["over_ideal"], 3),
            "makespan_over_ideal": ours["over_ideal"],
        },
        "settings": settings | {"load": os.getloadavg()},
        "versions": package_versions(),
    }
    print(report["ratio"])
    if args.json:
        write_text_atomic(args.json, json.dumps(report, indent=1) + "\n")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the script's arguments."""
    about = "The annotation job beside static batches"
    parser = argparse.ArgumentParser(prog="annotate.py", description=about, allow_abbrev=False)
    add = parser.add_argument
    root = "FashionIQ's captions and image_splits"
    add("--root", type=Path, required=True, metavar="DIR", help=root)
    add("--json", type=Path, metavar="FILE", help="write the numbers here")
    add("--rows", type=int, help="number of train queries, the first ones (default: all 18,000)")
    add("--overhead-rows", type=int, help="rows at zero latency (default: as --rows)")
    add("--concurrency", type=int, default=64)
    add("--median", type=float, default=0.2, help="of the latencies, seconds")
    add("--sigma", type=float, default=0.67, help="of their logarithm: mean 1.25 medians")
    return parser.parse_args(argv)


def stand_in(annotations: Path, folder: Path) -> Path:
    """Lay out FashionIQ with its real annotation files and synthetic pictures -> the folder."""
    rng = np.random.default_rng(0)
    for name in ("captions", "image_splits"):
        (folder / name).symlink_to((annotations / name).resolve())
    (folder / "images").mkdir()
    # Draw a few pictures, and link each under many names.
    sources = []
    for number in range(PICTURES):
        sources.append(folder / f"{number}.jpg")
        noise = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((WIDTH, HEIGHT)).save(sources[-1])
    names = {
        record.reference
        for part in load_benchmark("fashioniq", folder, "train")
        for record in part.records
    }
    for number, name in enumerate(sorted(names)):
        os.link(sources[number % PICTURES], folder / "images" / f"{name}.jpg")
    return folder


@contextmanager
def server(median: float, sigma: float) -> Iterator[tuple[str, dict]]:
    """Start a server in another process -> its address, and its counts once the context has ended."""
    argv = [sys.executable, str(SERVER), "--median", str(median), "--sigma", str(sigma)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        counted: dict = {}
        yield process.stdout.readline().strip(), counted
        process.send_signal(signal.SIGTERM)
        counted.update(json.loads(process.communicate()[0]))


def overhead(root: Path, rows: int | None, concurrency: int) -> dict:
    """Run the command at zero latency, for a tenth of the rows and for all -> its cost by number of rows."""
    found = {}
    total = rows or sum(len(part.records) for part in load_benchmark("fashioniq", root, "train"))
    for count in (total // 10, total):
        with server(0.0, 1.0) as (url, _):
            summary, used = run_command(root, url, count, concurrency)
        cpu = used.ru_utime + used.ru_stime
        calls = summary["calls"]
        found[str(count)] = {
            "calls": calls,
            "accepted": summary["accepted"],
            "calls_per_second": round(calls / summary["seconds"], 1),
            "cpu_ms_per_call": round(1000 * cpu / calls, 3),
            "peak_memory_mb": round(used.ru_maxrss / 1024, 1),
        }
    return found


def run_command(
    root: Path, url: str, count: int, concurrency: int
) -> tuple[dict, resource.struct_rusage]:
    """Annotate `count` rows with `cir-cot annotate` -> its JSON summary, and what its process used."""
    options = (
        f"--benchmark fashioniq --split train --teacher openai --model m --base-url {url} --json"
    )
    options += f" --limit {count} --concurrency {concurrency}"
    files = ["--root", str(root), "--out", str(root / f"zero.{count}.jsonl")]
    command = [sys.executable, "-m", "cir_cot.cli", "annotate", *options.split(), *files]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    summary = json.loads(child.stdout.read())
    _, status, used = os.wait4(child.pid, 0)
    assert status == 0, f"the job ended with {status}"
    return summary, used


def timed(root: Path, args: argparse.Namespace, runner) -> dict:
    """Time a runner over all rows, beside the ideal for the latencies that it met."""
    tasks = load_tasks(root, args.rows)
    before = resource.getrusage(resource.RUSAGE_SELF)
    with server(args.median, args.sigma) as (url, counted):
        teacher = OpenAITeacher("m", [url], concurrency=args.concurrency)
        job = Job(root / f"{runner.__name__}.jsonl", {}, teacher.budget)
        job.count(tasks)
        started = time.perf_counter()
        asyncio.run(runner(job, tasks, teacher, args.concurrency))
        seconds = time.perf_counter() - started
        job.close()
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    ideal = counted["latency"] / args.concurrency
    return {
        "rows": len(tasks),
        "accepted": job.accepted,
        "calls": counted["requests"],
        "seconds": round(seconds, 2),
        "ideal_seconds": round(ideal, 2),
        "over_ideal": round(seconds / ideal, 3),
        "most_in_flight": counted["most"],
        "cpu_seconds": round(cpu, 2),
    }


def load_tasks(root: Path, rows: int | None) -> list[Task]:
    """Load the train queries as tasks, as `cir-cot annotate` does."""
    tasks = []
    for part in load_benchmark("fashioniq", root, "train"):
        store = part.images()
        for record in part.records:
            facts = {
                "model": "m",
                "prompts": "1",
                "seen_target": False,
                "key": content_key({}, record),
            }
            tasks.append(
                Task(replace(record, teacher=facts), f"{record.source}/{record.id}", store)
            )
    return tasks[:rows]


async def run_ours(
    job: Job, tasks: Sequence[Task], teacher: OpenAITeacher, concurrency: int
) -> None:
    """Run the job of the library."""
    await annotate_tasks(job, tasks, teacher, Plan(), concurrency, lambda: None)


async def run_static(
    job: Job, tasks: Sequence[Task], teacher: OpenAITeacher, concurrency: int
) -> None:
    """Run batch by batch; a batch begins when the last row of the one before is finished."""
    for start in range(0, len(tasks), concurrency):
        batch = tasks[start : start + concurrency]
        await asyncio.gather(*(annotate_row(job, task, teacher, Plan()) for task in batch))
    await teacher.close()


if __name__ == "__main__":
    run(main)
