"""The conversation that writes one chain: three questions, or one; repeated if a filter fails.

The conversation grows from stage to stage, so that a server with a prefix cache encodes the picture
once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from cir_cot import prompts
from cir_cot.errors import InputError
from cir_cot.files import parse_json
from cir_cot.prompts import PARTS
from cir_cot.records import Cot, Record, cot_from_dict

from .answers import scores, strip_wrapping, without_fence, without_thinking
from .filters import FILTERS
from .teacher import Answer, Content, Picture, Plan, Teacher, Turn, Unanswered, shorten

# Token limits of one answer (ours).
MAX_TOKENS = {"caption": 256, "reasoning": 512, "conclusion": 192, "joint": 1024, "score": 16}
LETTERS = 16  # letters a token, at most; a longer answer counts as truncated
SCHEMA = {
    "type": "object",
    "properties": {part: {"type": "string"} for part in PARTS},
    "required": list(PARTS),
    "additionalProperties": False,
}


async def write_chain(
    teacher: Teacher, record: Record, plan: Plan, reference: Picture, target: Picture | None = None
) -> tuple[Record, bool]:
    """Have a teacher write a row's chain.

    A chain that fails a filter is asked for again with the reason, from the section at fault on, up
    to `plan.repairs` times.

    Args:
        teacher: who writes.
        record: the query.
        plan: what is asked.
        reference: the reference picture.
        target: the target picture; needed with `plan.see_target` and for the verifier.

    Returns:
        The record with its chain, and whether it was asked for more than once.

    Raises:
        Unanswered: no chain passes the filters.
    """
    # The target is for the verifier; the teacher sees it only where the plan says so.
    draft = Draft(record, reference, target if plan.see_target else None)
    try:
        for repair in range(plan.repairs + 1):
            # Write the chain and filter it; a good one is also scored.
            if plan.stages == "joint":
                await draft.ask_jointly(teacher)
            else:
                await draft.ask_in_stages(teacher)
            if not draft.problem and plan.verifier:
                assert target is not None, "the verifier needs the target picture"
                await draft.verify(plan.verifier, target)
            if not draft.problem:
                return draft.record, repair > 0

            # Ask again, from the section at fault on.
            last = draft.problem
            draft.restart(plan.stages)
    except Unanswered as error:
        raise Unanswered(error.reason, draft.tries + error.tries, error.raw or draft.raw) from error
    raise Unanswered(last, draft.tries, draft.raw)


@dataclass
class Draft:
    """A chain that is being written.

    Attributes:
        record: the query, later with its chain.
        reference: the reference picture.
        seen: the target picture, if the teacher may see it.
        parts: the sections so far.
        problem: what is wrong with the chain, "" if nothing is.
        complaint: (refused answer, what is wrong with it) for the next question, or None.
        raw: the last answer.
        tries: how many requests were made.
    """

    record: Record
    reference: Picture
    seen: Picture | None
    parts: dict[str, str] = field(default_factory=dict)
    problem: str = ""
    complaint: tuple[str, str] | None = None
    raw: str = ""
    tries: int = 0

    async def ask(self, teacher: Teacher, turns: Sequence[Turn], kind: str) -> Answer:
        """Ask one question, with the complaint about its last answer if there is one."""
        # A complaint continues the conversation: the refused answer, then what is wrong.
        turns = list(turns)
        if self.complaint:
            refused, problem = self.complaint
            turns.append(("assistant", [refused or "-"]))
            turns.append(("user", [retry_prompt(problem)]))
        # Only the joint answer is JSON.
        schema = SCHEMA if kind == "joint" else None
        answer = await teacher.ask(turns, MAX_TOKENS[kind], schema)
        self.tries += answer.tries
        self.raw = answer.text
        self.complaint = None  # a complaint is made once
        return bounded(answer, kind)

    async def ask_in_stages(self, teacher: Teacher) -> None:
        """Ask for the missing sections, one call each, then filter the complete chain."""
        for part in PARTS[len(self.parts) :]:
            # Each question repeats the conversation so far.
            turns = stage_turns(self.record.text, self.parts, self.reference, self.seen)
            answer = await self.ask(teacher, turns, part)
            self.parts[part] = strip_wrapping(answer.text, part)
            # Later sections would build on half an answer.
            if not answer.complete:
                self.problem = truncated(part)
                return
        self.filter()

    async def ask_jointly(self, teacher: Teacher) -> None:
        """Ask for all sections in one call, as JSON, then filter the chain."""
        turns = joint_turns(self.record.text, self.reference, self.seen)
        answer = await self.ask(teacher, turns, "joint")

        # A truncated answer is refused even if it parses: a server may close the braces it cut off.
        if not answer.complete:
            self.problem = truncated("joint")
            return

        # The answer is JSON with exactly the three sections.
        text = without_fence(without_thinking(answer.text))
        try:
            cot = cot_from_dict(parse_json(text, "the answer"), "the answer")
        except InputError as error:
            self.problem = shorten(f"json: {error}")
            return
        self.parts = {part: strip_wrapping(getattr(cot, part), part) for part in PARTS}

        # Each section has the same limit as in a call of its own.
        too_long = [part for part in PARTS if len(self.parts[part]) > LETTERS * MAX_TOKENS[part]]
        if too_long:
            self.problem = truncated(too_long[0])
            return
        self.filter()

    def filter(self) -> None:
        """Set `problem` to the first filter that the chain fails, and why."""
        self.record = replace(self.record, cot=Cot(**self.parts))
        self.problem = ""
        # The first problem is enough to ask again.
        for one in FILTERS:
            if what := one.problem(self.record):
                self.problem = shorten(f"{one.name}: {what}")
                return

    async def verify(self, verifier: Teacher, target: Picture) -> None:
        """Have the conclusion scored, then filter again: one filter reads the recorded score."""
        score = await verify(verifier, self.record, self.reference, target)
        self.tries += 1
        teacher = (self.record.teacher or {}) | {"confidence": score}
        self.record = replace(self.record, teacher=teacher)
        self.filter()

    def restart(self, stages: str) -> None:
        """Drop the section at fault and those after it; keep the complaint for the next try."""
        # A joint answer is written again completely.
        if stages == "joint":
            kept: Sequence[str] = ()
            refused = self.raw
        else:
            fault = PARTS.index(part_at_fault(self.problem))
            kept = PARTS[:fault]
            refused = self.parts[PARTS[fault]]
        # A long answer is sent back in part only.
        self.complaint = (refused[: LETTERS * MAX_TOKENS["joint"]], self.problem)
        self.problem = ""
        self.parts = {part: self.parts[part] for part in kept}


def part_at_fault(problem: str) -> str:
    """Return the section that a problem names first; the conclusion if it names none."""
    places = {part: problem.find(f"the {part}") for part in PARTS}
    named = [part for part in PARTS if places[part] >= 0]
    return min(named, key=lambda part: places[part], default="conclusion")


def bounded(answer: Answer, kind: str) -> Answer:
    """Mark an answer as truncated if it is too long for its limit, which some servers ignore."""
    too_long = len(answer.text) > LETTERS * MAX_TOKENS[kind]
    return replace(answer, complete=False) if too_long else answer


def truncated(kind: str) -> str:
    """Say which section, or the complete answer, goes beyond its limit."""
    what = "answer" if kind == "joint" else kind
    return f"truncated: the {what} goes beyond {MAX_TOKENS[kind]} tokens"


def retry_prompt(problem: str) -> str:
    """Return the prompt that asks again for an answer which a filter refused."""
    return prompts.ASK_AGAIN.replace("{reason}", problem)


def stage_turns(
    text: str, parts: dict[str, str], reference: Picture, seen: Picture | None
) -> list[Turn]:
    """Build the conversation up to the question for the first missing section."""
    # The target is shown after the caption, which describes the reference alone.
    reasoning: Content = [prompts.annotation_prompt("reasoning", text)]
    if seen:
        reasoning = [seen, prompts.SEEN, *reasoning]
    questions: dict[str, Content] = {
        "caption": [reference, prompts.annotation_prompt("caption")],
        "reasoning": reasoning,
        "conclusion": [prompts.annotation_prompt("conclusion")],
    }

    # Questions and answers so far, then the next question.
    turns: list[Turn] = [("system", [prompts.ANNOTATOR])]
    for part in PARTS[: len(parts) + 1]:
        turns.append(("user", questions[part]))
        if part in parts:
            turns.append(("assistant", [parts[part]]))
    return turns


def joint_turns(text: str, reference: Picture, seen: Picture | None) -> list[Turn]:
    """Build the one question for the complete chain."""
    question: list[str | Picture] = [reference, prompts.annotation_prompt("joint", text)]
    if seen:
        question += [seen, prompts.SEEN]
    return [("system", [prompts.ANNOTATOR]), ("user", question)]


async def verify(verifier: Teacher, record: Record, reference: Picture, target: Picture) -> float:
    """Have a conclusion scored against reference, text and target.

    Returns:
        The verifier's confidence, from 0 to 1.

    Raises:
        Unanswered: the answer holds no score, or more than one.
    """
    assert record.cot is not None, f"record {record.id!r} has no chain to verify"
    # The verifier sees both pictures, and the conclusion without the reasoning.
    question = prompts.score_prompt(record.text, record.cot.conclusion)
    turns: list[Turn] = [("user", [reference, target, question])]
    answer = bounded(await verifier.ask(turns, MAX_TOKENS["score"]), "score")
    if not answer.complete:
        raise Unanswered(truncated("score"), answer.tries, answer.text)

    # Exactly one number from 0 to 1; of two, neither can be trusted.
    found = scores(without_thinking(answer.text))
    if len(found) != 1:
        reason = f"verifier: no score from 0 to 1 in {answer.text[:80]!r}"
        raise Unanswered(reason, answer.tries, answer.text)
    return float(found[0])
