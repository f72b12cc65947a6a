"""Annotate queries with chains of thought: many rows at a time, in one process or several.

A worker takes the next row as soon as its last one is done: a slow answer delays one worker, never
a batch.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cir_cot.errors import InputError
from cir_cot.images import ImageStore
from cir_cot.prompts import PROMPTS_VERSION
from cir_cot.ranks import Ranks
from cir_cot.records import Record

from .budget import BudgetSpent
from .conversation import write_chain
from .job import Job, Task, make_tasks, remaining_tasks
from .teacher import Picture, Plan, Teacher, Unanswered, encode_jpeg

SYNC = 1.0  # seconds between two groups of rows that are forced to the disk

# Opened around the loop with the job; its value is called about once a second.
Watch = Callable[[Job], AbstractContextManager[Callable[[], None]]]
# Annotates some tasks of a job; returns why it stopped early, "" if it did not.
Work = Callable[[Job, Sequence[Task], Watch], str]


def quietly(job: Job) -> AbstractContextManager[Callable[[], None]]:
    """Show no progress."""
    return nullcontext(lambda: None)


@dataclass(frozen=True)
class JobResult:
    """How an annotation job ended.

    Attributes:
        counts: of the job over all its runs, as in its summary file.
        stopped: why it ended early, "" if it did not.
    """

    counts: dict
    stopped: str


def annotate(
    records: Sequence[Record],
    images: ImageStore,
    teacher: Teacher,
    out: str | Path,
    plan: Plan | None = None,
    settings: Mapping | None = None,
    concurrency: int = 16,
) -> JobResult:
    """Have a teacher write the chains of some queries into a JSONL file.

    A second call with the same arguments goes on where the first one stopped, and asks nothing
    again. In a notebook, whose event loop already runs, use `await asyncio.to_thread(annotate,
    ...)`.

    Args:
        records: the queries; with `plan.see_target` or a verifier each needs a target.
        images: the store of their pictures.
        teacher: who writes; it is closed at the end.
        out: the file of chains; quarantine and summary are written beside it.
        plan: what is asked; the default is three calls a row and two repairs.
        settings: JSON values that name the job beside teacher and plan, such as the dataset.
        concurrency: how many rows are asked for at a time.

    Returns:
        The job's counts, and why it stopped early if it did.

    Example:
        teacher = OpenAITeacher("Qwen/Qwen2.5-VL-7B-Instruct", ["http://localhost:8000/v1"])
        (benchmark,) = load_benchmark("cirr", "data/cirr_dataset", "train")
        result = annotate(benchmark.records[:8], benchmark.images(), teacher, "chains.jsonl")
    """
    # Everything that decides a chain is part of the rows' keys.
    plan = plan or Plan()
    verifier = plan.verifier.model if plan.verifier else None
    facts = {"temperature": teacher.temperature} | dict(settings or {})
    facts |= job_settings(teacher.model, plan, verifier)
    # A missing target would only show after other rows are paid for.
    if plan.see_target or plan.verifier:
        check_targets(records)
    tasks = make_tasks([(record, images) for record in records], facts)
    # The job goes on where an earlier call with the same keys stopped.
    job = Job(Path(out), facts, teacher.budget)
    work = partial(ask_teacher, lambda: (teacher, plan), concurrency)
    stopped = run_job(job, Path(out), tasks, work)
    return JobResult(job.summary(), stopped)


def job_settings(model: str, plan: Plan, verifier: str | None) -> dict:
    """Return what teacher and plan add to each row's key; `verifier` names the scoring model."""
    return {
        "model": model,
        "stages": plan.stages,
        "see_target": plan.see_target,
        "repairs": plan.repairs,
        "max_pixels": plan.max_pixels,
        "verifier": verifier,
        "prompts": PROMPTS_VERSION,
    }


def check_targets(records: Iterable[Record], place: str = "records") -> None:
    """Raise InputError for the first record that has no target to show."""
    for record in records:
        if not record.targets:
            raise InputError(
                f"{place}: query {record.id!r} has no target to show; annotate it without showing "
                "the target and without a verifier"
            )


def run_job(
    job: Job,
    out: Path,
    tasks: Sequence[Task],
    work: Work,
    ranks: Ranks | None = None,
    watch: Watch = quietly,
    retry: bool = False,
) -> str:
    """Annotate the remaining tasks of a job, shared by the processes that were launched.

    Args:
        job: this process's job, which is closed at the end.
        out: the job's output, the same for all processes.
        tasks: all tasks of the job.
        work: annotates this process's share; called if there is something to ask.
        ranks: the processes; None for a single one.
        watch: shows the progress.
        retry: ask for the rows in quarantine again, too.

    Returns:
        Why this process stopped early; "" if it did not.
    """
    ranks = ranks or Ranks()
    try:
        # Everybody waits until the first process has merged what an earlier run left.
        if ranks.rank == 0:
            job.merge_ranks()
        ranks.wait()
        share = ranks.share(remaining_tasks(out, tasks, retry))
        job.count(share if ranks.rank else tasks)
        if retry:
            job.quarantined = 0  # they are open again
        ranks.wait()  # nobody writes before all have read

        # Opening a teacher may load a model: only if there is something to ask.
        stopped = work(job, share, watch) if share else ""

        # The first process merges the files once all have written theirs.
        if ranks.rank:
            job.close()
        ranks.wait()
        if ranks.rank == 0 and (ranks.count > 1 or retry):
            job.merge_ranks()
            job.count(tasks)
    finally:
        job.close()
        ranks.close()
    return stopped


def ask_teacher(
    open_teacher: Callable[[], tuple[Teacher, Plan]],
    concurrency: int,
    job: Job,
    tasks: Sequence[Task],
    watch: Watch,
) -> str:
    """Open a teacher and ask it for the chains of the tasks, `concurrency` rows at a time.

    Returns:
        Why it stopped early; "" if it did not.
    """
    teacher, plan = open_teacher()
    with watch(job) as tell:
        return asyncio.run(annotate_tasks(job, tasks, teacher, plan, concurrency, tell))


async def annotate_tasks(
    job: Job,
    tasks: Sequence[Task],
    teacher: Teacher,
    plan: Plan,
    concurrency: int,
    tell: Callable[[], None],
) -> str:
    """Annotate tasks, `concurrency` at a time; teacher and verifier are closed at the end.

    Args:
        job: where chains and failed rows are written.
        tasks: the rows.
        teacher: who writes.
        plan: what is asked.
        concurrency: rows at a time.
        tell: called about once a second.

    Returns:
        Why it stopped early; "" if it did not.
    """
    # Workers share one iterator: each takes the next row when it is free.
    rows = iter(tasks)
    spent = asyncio.Event()
    try:
        async with asyncio.TaskGroup() as group:
            keeper = group.create_task(sync_regularly(job, tell))
            # A worker for each row in progress; the keeper runs beside them.
            count = min(concurrency, len(tasks))
            workers = [
                group.create_task(annotate_rows(job, rows, teacher, plan, spent))
                for _ in range(count)
            ]
            await asyncio.gather(*workers)
            keeper.cancel()
    except BaseExceptionGroup as errors:
        # The first error is the cause: the others are workers that it cancelled.
        raise errors.exceptions[0] from errors
    finally:
        # A teacher that verifies its own conclusions is closed once.
        await teacher.close()
        if plan.verifier and plan.verifier is not teacher:
            await plan.verifier.close()
    return "the budget is spent" if spent.is_set() else ""


async def annotate_rows(
    job: Job, rows: Iterator[Task], teacher: Teacher, plan: Plan, spent: asyncio.Event
) -> None:
    """Annotate the next row until none is left or the budget is used up (`spent`)."""
    for task in rows:
        try:
            await annotate_row(job, task, teacher, plan)
        except BudgetSpent:
            # The other workers finish their rows and stop.
            spent.set()
        if spent.is_set():
            return


async def sync_regularly(job: Job, tell: Callable[[], None]) -> None:
    """Force finished rows to the disk and report progress, until cancelled."""
    while True:
        await asyncio.sleep(SYNC)
        # Forcing to the disk takes time: no row waits for it.
        await asyncio.to_thread(job.sync)
        tell()


async def annotate_row(job: Job, task: Task, teacher: Teacher, plan: Plan) -> None:
    """Write one row's chain to the journal, or why there is none to the quarantine."""
    record = task.record

    # The target is loaded only where somebody may see it.
    names = [record.reference]
    if plan.see_target or plan.verifier:
        names += record.targets[:1]
    try:
        pictures = [await asyncio.to_thread(load, task, name, plan.max_pixels) for name in names]
    except InputError as error:
        job.quarantine(task.name, f"picture: {error}", 0, "")
        return

    # A row without a chain is an outcome: the job goes on.
    try:
        chained, repaired = await write_chain(teacher, record, plan, *pictures)
    except Unanswered as error:
        job.quarantine(task.name, error.reason, error.tries, error.raw)
    else:
        job.accept(chained, repaired)


def load(task: Task, image: str, max_pixels: int) -> Picture:
    """Load one of the row's pictures in the form in which it is sent."""
    return encode_jpeg(task.images.load(image), max_pixels)
