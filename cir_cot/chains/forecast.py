"""Forecast calls, tokens, cost and bytes of an annotation job, without a single request."""

from collections.abc import Sequence

from cir_cot.models.resizing import TOKEN

from .annotate import load
from .budget import Budget
from .conversation import joint_turns, stage_turns
from .job import Task
from .teacher import Picture, Plan, Turn, estimate_prompt_tokens

SAMPLE = 16  # rows that a forecast looks at
LETTERS = {"caption": 300, "reasoning": 600, "conclusion": 200}  # assumed length of each section


def forecast(
    tasks: Sequence[Task], plan: Plan, prices: Sequence[float] | None, verified: bool
) -> dict:
    """Extrapolate from a sample of rows and an assumed length of answers; repairs are not counted.

    Args:
        tasks: the rows that are left to do.
        plan: what is asked for each row.
        prices: dollars per million prompt and answer tokens, or None.
        verified: whether each conclusion is scored.

    Returns:
        {"rows", "calls", "prompt_tokens", "completion_tokens", "picture_bytes"} and, with prices,
        "cost".
    """
    # Count tokens and bytes of rows spread evenly over the job.
    sample = tasks[:: max(1, len(tasks) // SAMPLE)][:SAMPLE]
    prompt_tokens = 0
    picture_bytes = 0
    for task in sample:
        picture = load(task, task.record.reference, plan.max_pixels)
        for turns in conversations(task.record.text, picture, plan):
            prompt_tokens += estimate_prompt_tokens(turns)
            picture_bytes += len(picture.url) * times_sent(turns)
        # The verifier sees two pictures; its question is short.
        if verified:
            prompt_tokens += 2 * picture.pixels // TOKEN**2

    # Scale from the sample to all rows.
    calls = (1 if plan.stages == "joint" else len(LETTERS)) + verified
    scale = len(tasks) / max(1, len(sample))
    all_prompt_tokens = int(prompt_tokens * scale)
    completion_tokens = len(tasks) * sum(LETTERS.values()) // 4
    facts = {
        "rows": len(tasks),
        "calls": calls * len(tasks),
        "prompt_tokens": all_prompt_tokens,
        "completion_tokens": completion_tokens,
        "picture_bytes": int(picture_bytes * scale),
    }
    # Without prices there is no cost to forecast.
    if prices:
        cost = Budget(prices=prices).cost(all_prompt_tokens, completion_tokens)
        return facts | {"cost": round(cost, 2)}
    return facts


def conversations(text: str, picture: Picture, plan: Plan) -> list[list[Turn]]:
    """Build the prompts of one row, with placeholders for the sections that are not written yet."""
    seen = picture if plan.see_target else None  # the target has about the same size
    if plan.stages == "joint":
        return [joint_turns(text, picture, seen)]
    # A stage's prompt holds the sections before it.
    prompts = []
    written: dict[str, str] = {}
    for part, letters in LETTERS.items():
        prompts.append(stage_turns(text, written, picture, seen))
        written = written | {part: "x" * letters}
    return prompts


def times_sent(turns: Sequence[Turn]) -> int:
    """Count the pictures in a prompt."""
    return sum(isinstance(part, Picture) for _, content in turns for part in content)
