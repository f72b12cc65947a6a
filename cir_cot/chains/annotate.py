"""The loop of an annotation job: rows in, chains or quarantined rows out, so many at a time; and what it will take.

A worker takes the next row the moment its last one is done: a slow answer holds up one worker and never a batch.
"""

import asyncio
from collections.abc import Callable, Sequence

from cir_cot.errors import InputError
from cir_cot.models.resizing import TOKEN

from .budget import Budget, BudgetSpent
from .job import Job, Task
from .teacher import (
    Picture,
    Plan,
    Teacher,
    Unanswered,
    estimate,
    joint_turns,
    prepare,
    stage_turns,
    write_chain,
)

SYNC = 1.0  # seconds between two groups of rows that are forced to the disk
SAMPLE = 16  # rows an estimate looks at
LETTERS = {
    "caption": 300,
    "reasoning": 600,
    "conclusion": 200,
}  # of each part, as an estimate has it


async def annotate(
    job: Job,
    tasks: Sequence[Task],
    teacher: Teacher,
    plan: Plan,
    concurrency: int,
    tell: Callable[[], None],
) -> str:
    """Annotate the tasks, `concurrency` at a time -> why it stopped before the end, "" if it did not.

    `tell` is called about once a second. Teacher and verifier are closed at the end.
    """
    rows, stop = iter(tasks), []

    async def work() -> None:
        for task in rows:
            try:
                await annotate_row(job, task, teacher, plan)
            except BudgetSpent:
                stop[:] = ["the budget is spent"]
            if stop:
                return

    async def keep() -> None:
        while True:
            await asyncio.sleep(SYNC)
            await asyncio.to_thread(job.sync)
            tell()

    try:
        async with asyncio.TaskGroup() as group:
            keeper = group.create_task(keep())
            await asyncio.gather(
                *(group.create_task(work()) for _ in range(min(concurrency, len(tasks))))
            )
            keeper.cancel()
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    finally:
        for one in {id(one): one for one in (teacher, plan.verifier) if one}.values():
            await one.close()
    return "".join(stop)


async def annotate_row(job: Job, task: Task, teacher: Teacher, plan: Plan) -> None:
    """Write one row's chain to the journal, or why there is none to the quarantine."""
    record = task.record
    shown = [record.reference, *(record.targets[:1] if plan.see_target or plan.verifier else ())]
    try:
        pictures = [await asyncio.to_thread(load, task, image, plan.max_pixels) for image in shown]
    except InputError as error:
        job.quarantine(task.name, f"picture: {error}", 0, "")
        return
    try:
        chained, repaired = await write_chain(teacher, record, plan, *pictures)
    except Unanswered as error:
        job.quarantine(task.name, error.reason, error.tries, error.raw)
    else:
        job.accept(chained, repaired)


def load(task: Task, image: str, max_pixels: int) -> Picture:
    """Load a picture as it is sent."""
    return prepare(task.images.load(image), max_pixels)


def forecast(tasks: Sequence[Task], plan: Plan, prices: Sequence[float] | None) -> dict:
    """What the tasks will take, repairs aside, without asking anybody: calls, tokens, cost, bytes of pictures.

    Extrapolated from a sample of rows and an assumed length of answers.
    """
    sample = tasks[:: max(1, len(tasks) // SAMPLE)][:SAMPLE]
    stages = list(LETTERS)
    prompt = size = 0
    for task in sample:
        picture, text = load(task, task.record.reference, plan.max_pixels), task.record.text
        seen = picture if plan.see_target else None  # about the same size
        if plan.stages == "joint":
            asked = [joint_turns(text, picture, seen)]
        else:
            said = [
                {part: "x" * LETTERS[part] for part in stages[:count]}
                for count in range(len(stages))
            ]
            asked = [stage_turns(text, parts, picture, seen) for parts in said]
        prompt += sum(estimate(turns) for turns in asked) + (
            2 * picture.pixels // TOKEN**2 if plan.verifier else 0
        )
        size += sum(
            len(part.url)
            for turns in asked
            for _, parts in turns
            for part in parts
            if part is picture
        )
    calls = (1 if plan.stages == "joint" else len(stages)) + (plan.verifier is not None)
    share = len(tasks) / max(1, len(sample))
    tokens = int(prompt * share), len(tasks) * sum(LETTERS.values()) // 4
    facts = {
        "rows": len(tasks),
        "calls": calls * len(tasks),
        "prompt_tokens": tokens[0],
        "completion_tokens": tokens[1],
    }
    cost = {"cost": round(Budget(prices=prices).cost(*tokens), 2)} if prices else {}
    return facts | {"picture_bytes": int(size * share)} | cost
