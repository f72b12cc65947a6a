"""Have a multimodal model write a dataset's chains: filtered, resumable, within a budget."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cir_cot.chains.forecast import forecast
from cir_cot.chains.job import Job, quarantine_reasons, remaining_tasks
from cir_cot.chains.job_options import JobOptions
from cir_cot.cli import DONE, PROBLEMS, run
from cir_cot.options import (
    add_batch_size,
    add_category,
    add_dataset,
    add_dtype,
    add_json,
    command_parser,
    natural,
    positive,
)

REPORT = 60.0  # seconds between two lines of progress where there is no terminal


def main(argv: Sequence[str]) -> int:
    """Annotate until all rows or the budget are done; 1 if rows are in quarantine or the budget is spent."""
    options = parse_arguments(argv)
    # An estimate sends no request.
    if options.estimate:
        left = remaining_tasks(options.out, options.tasks(), options.retry_quarantine)
        facts = forecast(left, options.plan(), options.price, options.verify)
        lines = (f"{key:20} {value}" for key, value in facts.items())
        print(json.dumps(facts) if options.json else "\n".join(lines))
        return DONE

    # Annotate, then print the counts of all processes once.
    try:
        job, stopped = options.run(show_progress)
    except KeyboardInterrupt as interrupt:
        kept = f"finished rows are kept in {options.out}; the same command goes on"
        raise KeyboardInterrupt(kept) from interrupt
    if job.out == options.out:  # of several processes, the first one
        print(json.dumps(job.summary()) if options.json else f"{job.out}: {job.status_line()}")
    if job.quarantined and job.out == options.out:
        reasons = [f"{reason} {count}" for reason, count in quarantine_reasons(options.out)]
        print(
            f"{job.quarantined} rows have no chain ({', '.join(reasons)}); see {job.quarantine_path}",
            file=sys.stderr,
        )
    if stopped:
        print(f"stopped: {stopped}; run again with a larger one to go on", file=sys.stderr)
    return PROBLEMS if stopped or job.quarantined else DONE


def parse_arguments(argv: Sequence[str]) -> JobOptions:
    """Parse the options of `cir-cot annotate`; InputError for combinations that cannot work."""
    parser = command_parser("annotate", __doc__)
    parser.argument_default = argparse.SUPPRESS  # options not given keep the defaults of JobOptions
    group = parser.add_argument_group("what to annotate")
    add_dataset(group)
    add_category(group, default="all categories")
    add = group.add_argument
    add(
        "--again",
        metavar="FILE",
        help="decisions of cir-cot review: annotate only the rows to be asked again; give a new --out",
    )
    add("--limit", type=positive, metavar="N", help="annotate the first N queries (default: all)")
    add_output(add)

    group = parser.add_argument_group("which model writes")
    add = group.add_argument
    teacher = (
        "openai: OpenAI-compatible servers; transformers: a checkpoint in this process; self: a "
        "trained retriever, which draws chains and keeps those that help it find the target"
    )
    add("--teacher", required=True, choices=("openai", "transformers", "self"), help=teacher)
    model = "its name on the server, a checkpoint, or the folder of a trained retriever"
    add("--model", required=True, metavar="NAME", help=model)
    add("--base-url", nargs="+", metavar="URL", help="servers, for example http://host:8000/v1")
    add("--proxy", metavar="URL", help="proxy for requests; HTTP_PROXY and the like are ignored")
    temperature = "sampling temperature (default 0: greedy; of self 0.7)"
    add("--temperature", type=float, metavar="T", help=temperature)
    add_dtype(group, default="bfloat16")
    add_batch_size(group, unit="transformers and self: rows", default=16, type=positive)
    add("--samples", type=positive, metavar="K", help="self only: chains a query (default 4)")
    better = "self only: keep a chain only if it ranks the target better than none (default: yes)"
    add("--keep-better", action=argparse.BooleanOptionalAction, help=better)

    add = parser.add_argument_group("how chains are written").add_argument
    stages = "one call for each section of a chain, or one for all (default separate)"
    add("--stages", choices=("separate", "joint"), help=stages)
    add("--see-target", action="store_true", help="show it to the teacher; training splits only")
    add("--repairs", type=natural, metavar="N", help="requests to repair a bad chain (default 2)")
    add("--verify", action="store_true", help="have each conclusion scored against the target")
    add("--verifier", metavar="NAME", help="model for --verify (default: the teacher)")
    add("--max-pixels", type=positive, metavar="N", help="area of a sent picture (default 401408)")
    add("--concurrency", type=positive, metavar="N", help="rows in progress at once (default 64)")
    add("--retries", type=natural, metavar="N", help="repetitions of a failed request (default 5)")
    add("--timeout", type=float, metavar="S", help="most seconds for one request (default 120)")

    add = parser.add_argument_group("what it may cost").add_argument
    add("--max-tokens", type=positive, metavar="N", help="of the job, prompts and answers together")
    add("--max-cost", type=float, metavar="X", help="of the job, in dollars; needs --price")
    price = "dollars per million prompt tokens and per million answer tokens"
    add("--price", type=float, nargs=2, metavar=("IN", "OUT"), help=price)
    add("--estimate", action="store_true", help="print what is left to do; send no request")
    add_json(parser)
    options = JobOptions(**vars(parser.parse_args(argv)))
    options.check()
    return options


def add_output(add: Callable[..., object]) -> None:
    """Add the options of the job's files."""
    chains = "JSONL file for the chains; an existing job is continued"
    add("--out", required=True, type=Path, metavar="FILE", help=chains)
    retry = "ask again for the rows in quarantine; their earlier lines stay"
    add("--retry-quarantine", action="store_true", help=retry)


@contextmanager
def show_progress(job: Job) -> Iterator[Callable[[], None]]:
    """Show a bar with rate, remaining time and counts; without a terminal, a line a minute."""
    console = Console(stderr=True)
    text = TextColumn("{task.fields[counts]}")
    columns = (BarColumn(), MofNCompleteColumn(), text, TimeRemainingColumn(True))
    bar = Progress(*columns, console=console, refresh_per_second=2, disable=not console.is_terminal)
    before = job.accepted + job.quarantined
    row = bar.add_task("", total=job.total, completed=before, counts="")
    started = time.monotonic()
    printed = started

    def update() -> None:
        nonlocal printed
        now = time.monotonic()
        done = job.accepted + job.quarantined
        rate = (done - before) / max(now - started, 1e-9)
        counts = f"{rate:.2f} rows/s, {job.status_line()}"
        bar.update(row, completed=done, counts=counts)
        if not console.is_terminal and now - printed >= REPORT:
            printed = now
            print(f"{done} of {job.total} rows, {counts}", file=sys.stderr, flush=True)

    # The last update shows the final counts.
    with bar:
        yield update
        update()


if __name__ == "__main__":
    run(main)
