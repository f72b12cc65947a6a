"""Have a multimodal model write a dataset's chains: caption, reasoning, conclusion; filtered, resumable, counted."""

import argparse
import asyncio
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cir_cot.chains.annotate import annotate, forecast
from cir_cot.chains.budget import Budget
from cir_cot.chains.job import Job, Task, content_key, left, share_path
from cir_cot.chains.teacher import Plan, Teacher
from cir_cot.cli import DONE, PROBLEMS, run
from cir_cot.data import load_benchmark
from cir_cot.errors import InputError
from cir_cot.options import (
    Parser,
    add_batch_size,
    add_category,
    add_dataset,
    add_dtype,
    add_json,
    command_parser,
    natural,
    positive,
)
from cir_cot.prompts import PROMPTS_VERSION

REPORT = 60.0  # seconds between two lines of progress where there is no terminal
NO_TARGET = "the chains of an evaluation split must not know the answer"


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `cir-cot annotate`; InputError for combinations that cannot work."""
    parser = command_parser("annotate", __doc__)
    _add_data(parser.add_argument_group("what to annotate"))
    _add_teacher(parser.add_argument_group("which model writes"))
    _add_method(parser.add_argument_group("how chains are written"))
    _add_budget(parser.add_argument_group("what it may cost"))
    add_json(parser)
    args = parser.parse_args(argv)
    check_arguments(args)
    return args


def _add_data(group: Parser) -> None:
    """Add the options that choose the queries and the output file."""
    add_dataset(group)
    add_category(group, default="all categories")
    group.add_argument(
        "--limit",
        type=positive,
        metavar="N",
        help="annotate the first N queries only (default: all)",
    )
    group.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="FILE",
        help="JSONL file for the chains; an existing job is continued",
    )


def _add_teacher(group: Parser) -> None:
    """Add the options of the teacher model and of the servers that host it."""
    group.add_argument(
        "--teacher",
        required=True,
        choices=("openai", "transformers"),
        help="openai: OpenAI-compatible servers; transformers: a checkpoint in this process",
    )
    group.add_argument(
        "--model",
        required=True,
        metavar="NAME",
        help="name of the model on the server, or a checkpoint for transformers",
    )
    group.add_argument(
        "--base-url",
        nargs="+",
        default=[],
        metavar="URL",
        help="addresses of the servers, for example http://host:8000/v1",
    )
    group.add_argument(
        "--proxy",
        metavar="URL",
        help="proxy for the requests; HTTP_PROXY and similar variables are ignored",
    )
    group.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="sampling temperature, 0 for greedy decoding (default 0)",
    )
    add_dtype(group, default="bfloat16")
    add_batch_size(group, unit="transformers only: rows", default=16, type=positive)


def _add_method(group: Parser) -> None:
    """Add the options of prompting, repair, verification and requests."""
    group.add_argument(
        "--stages",
        default="separate",
        choices=("separate", "joint"),
        help="separate: one call for each section of a chain; joint: one call for the chain "
        "(default separate)",
    )
    group.add_argument(
        "--see-target",
        action="store_true",
        help="show the target picture to the teacher; training splits only",
    )
    group.add_argument(
        "--repairs",
        type=natural,
        default=2,
        metavar="N",
        help="how often an invalid chain is requested again (default 2)",
    )
    group.add_argument(
        "--verify",
        action="store_true",
        help="have a model score each conclusion against the target picture",
    )
    group.add_argument(
        "--verifier", metavar="NAME", help="model for --verify (default: the teacher)"
    )
    group.add_argument(
        "--max-pixels",
        type=positive,
        default=512 * 784,
        metavar="N",
        help=f"largest area in pixels of a picture that is sent (default {512 * 784})",
    )
    group.add_argument(
        "--concurrency",
        type=positive,
        default=64,
        metavar="N",
        help="rows in progress at once (default 64)",
    )
    group.add_argument(
        "--retries",
        type=natural,
        default=5,
        metavar="N",
        help="how often a failed request is repeated (default 5)",
    )
    group.add_argument(
        "--timeout",
        type=float,
        default=120.0,
        metavar="S",
        help="most seconds for one request (default 120)",
    )


def _add_budget(group: Parser) -> None:
    """Add the limits of tokens and money, and --estimate."""
    group.add_argument(
        "--max-tokens",
        type=positive,
        metavar="N",
        help="token budget of the job, prompts and answers together (default: none)",
    )
    group.add_argument(
        "--max-cost",
        type=float,
        metavar="X",
        help="budget of the job in dollars; needs --price (default: none)",
    )
    group.add_argument(
        "--price",
        type=float,
        nargs=2,
        metavar=("IN", "OUT"),
        help="dollars per million prompt tokens and per million answer tokens",
    )
    group.add_argument(
        "--estimate",
        action="store_true",
        help="print the remaining rows, tokens and cost; no request is sent",
    )


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what cannot work or must not be."""
    if args.see_target and not args.split.startswith("train"):
        raise InputError(f"--see-target is for training splits, not {args.split!r}: {NO_TARGET}")
    if args.max_cost is not None and args.price is None:
        raise InputError("--max-cost needs --price IN OUT, in dollars a million tokens")
    if args.verifier and not args.verify:
        raise InputError("--verifier names the model of --verify; give both")
    if args.teacher == "openai" and not args.base_url and not args.estimate:
        raise InputError(
            "--teacher openai needs --base-url URL: pictures go to servers that are named, to no others"
        )
    if args.teacher == "transformers":
        if args.stages == "joint":
            raise InputError(
                "--stages joint needs a server that writes JSON by a schema; use --stages separate"
            )
        if args.proxy:
            raise InputError("--proxy is for --teacher openai; a local teacher sends nothing")
        if args.verifier:
            raise InputError(
                "--verifier is for --teacher openai; a local teacher verifies its own conclusions"
            )
    if not 0 < args.timeout < math.inf or not 0 <= args.temperature < math.inf:
        raise InputError(
            f"--timeout {args.timeout} must be above 0, --temperature {args.temperature} not below"
        )
    if not (args.max_cost is None or args.max_cost > 0) or not all(
        0 <= price < math.inf for price in args.price or ()
    ):
        raise InputError(f"--max-cost {args.max_cost} must be above 0, prices not below")
    if not args.out.resolve().parent.is_dir():
        raise InputError(f"{args.out}: its folder does not exist")
    if args.out.exists() and not args.out.is_file():
        raise InputError(f"{args.out}: is no regular file; give another --out")


def settings_of(args: argparse.Namespace) -> dict:
    """All that decides a chain beside its row: part of each row's key."""
    names = (
        "benchmark",
        "split",
        "model",
        "stages",
        "see_target",
        "repairs",
        "max_pixels",
        "temperature",
    )
    verifier = (args.verifier or args.model) if args.verify else None
    return {name: getattr(args, name) for name in names} | {
        "verifier": verifier,
        "prompts": PROMPTS_VERSION,
    }


def load_tasks(args: argparse.Namespace) -> list[Task]:
    """One task a query; InputError where the dataset cannot be annotated as asked."""
    parts = load_benchmark(args.benchmark, args.root, args.split, args.category)
    rows = [
        (record, store) for part in parts for store in [part.images()] for record in part.records
    ][: args.limit]
    if args.see_target or args.verify:
        for record, _ in rows:
            if not record.targets:
                raise InputError(
                    f"{args.root}: query {record.id!r} of {args.split} has no target to show"
                )
    settings, times = settings_of(args), Counter(record.id for record, _ in rows)
    tasks = []
    for record, store in rows:
        facts = {"model": args.model, "prompts": PROMPTS_VERSION, "seen_target": args.see_target}
        asked = replace(record, cot=None, teacher=facts | {"key": content_key(settings, record)})
        name = (
            record.id if times[record.id] == 1 else f"{record.source}/{record.id}"
        )  # FashionIQ: a number a category
        tasks.append(Task(asked, name, store))
    return tasks


@contextmanager
def show_progress(job: Job) -> Iterator[Callable[[], None]]:
    """Show a bar with rate, remaining time, tokens, cost and outcomes; without a terminal, a line a minute."""
    console = Console(stderr=True)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[said]}"),
        TimeRemainingColumn(True),
    )
    bar = Progress(*columns, console=console, refresh_per_second=2, disable=not console.is_terminal)
    started, before, spoken = time.monotonic(), job.accepted + job.quarantined, time.monotonic()
    row = bar.add_task("", total=job.total, completed=before, said="")

    def update() -> None:
        nonlocal spoken
        now, done = time.monotonic(), job.accepted + job.quarantined
        said = f"{(done - before) / max(now - started, 1e-9):.2f} rows/s, {state(job)}"
        bar.update(row, completed=done, said=said)
        if not console.is_terminal and now - spoken >= REPORT:
            spoken = now
            print(f"{done} of {job.total} rows, {said}", file=sys.stderr, flush=True)

    with bar:
        yield update
        update()


def state(job: Job) -> str:
    """Outcomes, calls, tokens and cost in words."""
    used = job.budget
    cost = (
        f", ${used.cost(used.prompt_tokens, used.completion_tokens):.2f}"
        if any(used.prices)
        else ""
    )
    outcomes = f"{job.accepted} accepted ({job.repaired} repaired), {job.quarantined} quarantined"
    return f"{outcomes}, {used.calls} calls, {used.prompt_tokens} + {used.completion_tokens} tokens{cost}"


def make_teachers(
    args: argparse.Namespace, budget: Budget, device: object = "cpu"
) -> tuple[Teacher, Teacher | None]:
    """(teacher, verifier or None); a key comes from OPENAI_API_KEY and from nowhere else."""
    if args.teacher == "transformers":
        from cir_cot.chains.transformers_teacher import (
            TransformersTeacher,  # torch and a model: only where they are asked for
        )

        local = TransformersTeacher(
            args.model, budget, args.batch_size, args.temperature, args.dtype, device
        )
        return local, local if args.verify else None
    from cir_cot.chains.openai_teacher import OpenAITeacher

    options = {
        name: getattr(args, name)
        for name in ("concurrency", "retries", "timeout", "temperature", "proxy")
    }
    key = os.environ.get("OPENAI_API_KEY", "")
    teacher = OpenAITeacher(args.model, args.base_url, key, budget, **options)
    if args.verify and args.verifier not in (None, args.model):
        return teacher, OpenAITeacher(args.verifier, args.base_url, key, budget, **options)
    return teacher, teacher if args.verify else None


class Ranks:
    """The processes of `accelerate launch`; a server's teacher has one, since the server makes the batches."""

    def __init__(self, teacher: str):
        self.rank, self.count, self.device, self.state = 0, 1, "cpu", None
        if teacher == "transformers":
            from accelerate import PartialState

            self.state = PartialState()
            self.rank, self.count, self.device = (
                self.state.process_index,
                self.state.num_processes,
                self.state.device,
            )
        elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError(
                "--teacher openai runs as one process; give it all servers as --base-url URL URL ..."
            )

    def wait(self) -> None:
        """Wait for all of them."""
        if self.state:
            self.state.wait_for_everyone()

    def close(self) -> None:
        """Leave the group, which would warn otherwise."""
        if self.count > 1:
            self.state.destroy_process_group()


def run_job(args: argparse.Namespace, tasks: Sequence[Task]) -> tuple[Job, str]:
    """Annotate what is left -> (the job, why it stopped); rows are shared by the processes and merged by the first."""
    ranks = Ranks(args.teacher)
    limits = [
        math.inf if limit is None else limit / ranks.count
        for limit in (args.max_tokens, args.max_cost)
    ]
    budget = Budget(*limits, args.price or (0.0, 0.0))
    job = Job(share_path(args.out, ranks.rank), settings_of(args), budget)
    try:
        if ranks.rank == 0:
            job.absorb()
        ranks.wait()  # until the first has merged what an earlier run left
        share = left(args.out, tasks)[ranks.rank :: ranks.count]
        job.count(share if ranks.rank else tasks)
        ranks.wait()  # nobody writes before all have read
        stopped = ""
        if share:
            teacher, verifier = make_teachers(args, budget, ranks.device)
            with show_progress(job) as tell:
                work = annotate(
                    job, share, teacher, plan_of(args, verifier), args.concurrency, tell
                )
                stopped = asyncio.run(work)
        if ranks.rank:
            job.close()
        ranks.wait()  # until all have written
        if ranks.count > 1 and ranks.rank == 0:
            job.absorb()
            job.count(tasks)
    finally:
        job.close()
        ranks.close()
    return job, stopped


def plan_of(args: argparse.Namespace, verifier: Teacher | None) -> Plan:
    """What is asked for each row."""
    return Plan(args.stages, args.see_target, args.repairs, args.max_pixels, verifier)


def main(argv: Sequence[str]) -> int:
    """Run the job to its end, or as far as its budget goes; 1 if rows are left that a larger budget would take."""
    args = parse_arguments(argv)
    tasks = load_tasks(args)
    if args.estimate:
        verifier = object() if args.verify else None  # counted, not asked
        facts = forecast(left(args.out, tasks), plan_of(args, verifier), args.price)
        print(
            json.dumps(facts)
            if args.json
            else "\n".join(f"{key:20} {value}" for key, value in facts.items())
        )
        return DONE
    job, stopped = run_job(args, tasks)
    if job.out == args.out:
        print(json.dumps(job.summary()) if args.json else f"{args.out}: {state(job)}")
    if stopped:
        print(f"stopped: {stopped}; run again with a larger one to go on", file=sys.stderr)
    return PROBLEMS if stopped else DONE


if __name__ == "__main__":
    run(main)
