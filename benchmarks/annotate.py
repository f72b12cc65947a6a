"""An annotation job against static batches: makespan over the ideal, overhead of the client, peak memory.

A server in a process of its own answers at once, then after log-normal latencies. Ours is the job as `cir-cot annotate`
runs it; the peer asks the same teacher the same questions for so many rows at a time and waits for the slowest of them,
as annotation scripts do. Ideal is the sum of all latencies over the number in flight.
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

ROOT = Path(__file__).resolve().parent.parent
PICTURES, WIDTH, HEIGHT = 16, 96, 128  # stand-ins: so many pictures under all the names


def main(argv: Sequence[str]) -> None:
    """Measure, print one table and write it as JSON."""
    parser = argparse.ArgumentParser(
        prog="annotate.py",
        description="The annotation job beside static batches",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--root",
        type=Path,
        required=True,
        metavar="DIR",
        help="FashionIQ's captions and image_splits",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here")
    parser.add_argument(
        "--rows", type=int, default=None, help="the first so many of the 18,000 train queries"
    )
    parser.add_argument(
        "--overhead-rows", type=int, default=None, help="rows at zero latency (default: as --rows)"
    )
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--median", type=float, default=0.2, help="of the latencies, seconds")
    parser.add_argument(
        "--sigma", type=float, default=0.67, help="of their logarithm: mean 1.25 medians"
    )
    args = parser.parse_args(argv)
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


def stand_in(annotations: Path, folder: Path) -> Path:
    """FashionIQ with its real annotation files and stand-in pictures, hard links to a few files."""
    rng = np.random.default_rng(0)
    for name in ("captions", "image_splits"):
        (folder / name).symlink_to((annotations / name).resolve())
    (folder / "images").mkdir()
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
    """A server in another process -> (its address, what it counted, once it has ended)."""
    argv = [
        sys.executable,
        str(ROOT / "tests" / "servers.py"),
        "--median",
        str(median),
        "--sigma",
        str(sigma),
    ]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        counted: dict = {}
        yield process.stdout.readline().strip(), counted
        process.send_signal(signal.SIGTERM)
        counted.update(json.loads(process.communicate()[0]))


def overhead(root: Path, rows: int | None, concurrency: int) -> dict:
    """The command at zero latency, for a tenth of the rows and for all: calls a second, CPU a call, peak memory."""
    found = {}
    total = rows or sum(len(part.records) for part in load_benchmark("fashioniq", root, "train"))
    for count in (total // 10, total):
        out = root / f"zero.{count}.jsonl"
        with server(0.0, 1.0) as (url, _):
            argv = [
                "--benchmark",
                "fashioniq",
                "--root",
                str(root),
                "--split",
                "train",
                "--teacher",
                "openai",
            ]
            argv += [
                "--model",
                "m",
                "--base-url",
                url,
                "--out",
                str(out),
                "--limit",
                str(count),
                "--json",
            ]
            command = [
                sys.executable,
                "-m",
                "cir_cot.cli",
                "annotate",
                *argv,
                "--concurrency",
                str(concurrency),
            ]
            child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            summary = json.loads(child.stdout.read())
            _, status, used = os.wait4(child.pid, 0)
            assert status == 0, f"the job ended with {status}"
        cpu = used.ru_utime + used.ru_stime
        found[str(count)] = {
            "calls": summary["calls"],
            "accepted": summary["accepted"],
            "calls_per_second": round(summary["calls"] / summary["seconds"], 1),
            "cpu_ms_per_call": round(1000 * cpu / summary["calls"], 3),
            "peak_memory_mb": round(used.ru_maxrss / 1024, 1),
        }
    return found


def timed(root: Path, args: argparse.Namespace, runner) -> dict:
    """Makespan of a runner over all rows, beside the ideal of the latencies that it met."""
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
    ideal = counted["latency"] / args.concurrency
    return {
        "rows": len(tasks),
        "accepted": job.accepted,
        "calls": counted["requests"],
        "seconds": round(seconds, 2),
        "ideal_seconds": round(ideal, 2),
        "over_ideal": round(seconds / ideal, 3),
        "most_in_flight": counted["most"],
        "cpu_seconds": round(
            after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2
        ),
    }


def load_tasks(root: Path, rows: int | None) -> list[Task]:
    """The train queries as tasks, as `cir-cot annotate` makes them."""
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
    """The job as it is."""
    await annotate_tasks(job, tasks, teacher, Plan(), concurrency, lambda: None)


async def run_static(
    job: Job, tasks: Sequence[Task], teacher: OpenAITeacher, concurrency: int
) -> None:
    """So many rows at a time; the next ones begin when the last of them is done."""
    for start in range(0, len(tasks), concurrency):
        await asyncio.gather(
            *(
                annotate_row(job, task, teacher, Plan())
                for task in tasks[start : start + concurrency]
            )
        )
    await teacher.close()


if __name__ == "__main__":
    run(main)
