"""The rows of a review: records with the chains of one or two teachers, what filters say, and what was decided."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from cir_cot.chains.filters import problems
from cir_cot.data.chain_decisions import KEPT, VERDICTS, Decision, DecisionFile
from cir_cot.errors import InputError, shown
from cir_cot.files import read_jsonl
from cir_cot.images import ImageStore
from cir_cot.prompts import cot_to_text
from cir_cot.records import MAX_PART, Cot, Record, check_chain, cot_from_dict

from .agreement import cohen_kappa, krippendorff_alpha

# What a queue shows: rows without a decision; without one of this reviewer, the others' hidden, so that agreement is of
# independent judgements; all; those that filters find fault with or quarantined; and those of each verdict.
STATES = ("open", "independent", "all", "flagged", "quarantined", *VERDICTS)
SCANNED = 2_000  # most rows that one request looks through for flagged ones


class Refused(NamedTuple):
    """Why annotation gave a row up, and the last answer of the teacher."""

    reason: str
    answer: str


@dataclass(frozen=True)
class Row:
    """One row: the record without its chain, the record with each teacher's, and what the quarantine says."""

    record: Record
    chains: Mapping[str, Record]  # "A", and "B" of a second file
    quarantined: Refused | None
    images: ImageStore


class ReviewQueue:
    """Rows to decide on, in the order of the dataset.

    Args:
        rows: all of them.
        path: the file of decisions, which others may write at the same time.
        reviewer: who decides here.
    """

    def __init__(self, rows: Sequence[Row], path: Path, reviewer: str):
        self.rows = list(rows)
        self.file = DecisionFile(path)
        self.reviewer = reviewer
        self.numbers = {
            (row.record.id, row.record.reference): number for number, row in enumerate(self.rows)
        }
        self.decided: dict[int, Decision] = {}  # the last decision of each row
        self.by_reviewer: dict[int, dict[str, Decision]] = {}
        self._found: dict[int, dict[str, dict[str, str]]] = {}
        self.refresh(first=True)

    def refresh(self, first: bool = False) -> None:
        """Read what was decided since, here and elsewhere.

        Args:
            first: a row that is not of this review shows that the file is another's. Later it is one that another
                reviewer sees, whose chains file was longer when that review was started.
        """
        for decision in self.file.new():
            number = self.numbers.get(decision.key)
            if number is None and not first:
                continue
            if number is None:
                raise InputError(
                    f"{self.file.path}: a decision about {shown(decision.key)}, which is no row of this review; "
                    "give another --out"
                )
            self.decided[number] = decision
            self.by_reviewer.setdefault(number, {})[decision.reviewer] = decision

    def findings(self, number: int) -> dict[str, dict[str, str]]:
        """Return what filters find in each chain of a row: {"A": {filter: what is wrong}}."""
        if number not in self._found:
            chains = self.rows[number].chains
            self._found[number] = {name: problems(record) for name, record in chains.items()}
        return self._found[number]

    def page(self, state: str, start: int, count: int) -> tuple[list[int], int]:
        """Return the next rows of a state.

        Args:
            state: one of STATES.
            start: number of the first row to look at.
            count: most rows.

        Returns:
            Their numbers, and where to go on; the number of rows at the end.
        """
        if state not in STATES:
            raise InputError(f"state {shown(state)} is none of {', '.join(STATES)}")
        found: list[int] = []
        number = max(start, 0)
        # Filters take time: a page looks at so many rows at most.
        last = len(self.rows)
        if state == "flagged":
            last = min(last, number + SCANNED)
        while number < last and len(found) < count:
            if self._is(number, state):
                found.append(number)
            number += 1
        return found, number

    def _is(self, number: int, state: str) -> bool:
        if state in VERDICTS:
            return number in self.decided and self.decided[number].decision == state
        if state == "open":
            return number not in self.decided
        if state == "independent":
            return self.reviewer not in self.by_reviewer.get(number, {})
        if state == "quarantined":
            return self.rows[number].quarantined is not None
        return state == "all" or any(self.findings(number).values())

    def row(self, number: int, state: str = "all") -> dict[str, Any]:
        """Return all that a page shows of a row in a queue, as JSON."""
        row = self.rows[number]
        chains = {}
        for name, record in row.chains.items():
            assert record.cot is not None, "rows hold chains"
            chains[name] = {
                "cot": asdict(record.cot),
                "teacher": (record.teacher or {}).get("model", ""),
                "seen_target": (record.teacher or {}).get("seen_target") is True,
                "findings": self.findings(number)[name],
            }
        decision = self.decided.get(number)
        if state == "independent":
            decision = self.by_reviewer.get(number, {}).get(self.reviewer)
        return {
            "number": number,
            "id": row.record.id,
            "text": row.record.text,
            "target": bool(row.record.targets),
            "quarantined": row.quarantined and row.quarantined._asdict(),
            "chains": chains,
            "decision": None if decision is None else asdict(decision),
        }

    def decide(self, number: int, verdict: str, choice: str, cot: object) -> None:
        """Append a decision about a row; InputError says what is wrong with it.

        Args:
            number: of the row.
            verdict: one of VERDICTS.
            choice: which chain is kept: "A" or "B"; of no meaning for reject and again.
            cot: the edited chain as JSON, for the verdict edit.
        """
        if not 0 <= number < len(self.rows):
            raise InputError(f"row {number} is not one of {len(self.rows)}")
        if verdict not in VERDICTS:
            raise InputError(f"decision {shown(verdict)} is none of {', '.join(VERDICTS)}")
        row = self.rows[number]
        kept: Cot | None = None
        teacher = None
        if verdict in KEPT:
            if verdict == "edit":
                kept = cot_from_dict(cot, "the edited chain")
                check_chain(kept, "the edited chain")
                cot_to_text(kept)  # refuses tags
            if choice in row.chains:
                source = row.chains[choice]
                kept = kept or source.cot
                teacher = source.teacher
            elif kept is None:
                raise InputError(
                    f"chain {shown(choice)} is not there; a row without chains can be edited"
                )
        now = datetime.now(UTC).isoformat(timespec="seconds")
        decision = Decision(
            id=row.record.id,
            reference=row.record.reference,
            decision=verdict,
            choice=choice if kept is not None and choice in row.chains else "",
            cot=kept,
            teacher=teacher,
            reviewer=self.reviewer,
            time=now,
        )
        self.file.append(decision)
        self.refresh()

    def counts(self) -> dict[str, int]:
        """Return how many rows have each verdict, none, and a reason in the quarantine."""
        verdicts = Counter(decision.decision for decision in self.decided.values())
        counts = {verdict: verdicts[verdict] for verdict in VERDICTS}
        counts["open"] = len(self.rows) - len(self.decided)
        counts["quarantined"] = sum(row.quarantined is not None for row in self.rows)
        return counts | {"all": len(self.rows)}

    def agreement(self) -> dict[str, Any]:
        """Return how far reviewers agree on rows that several decided, and which teacher's chains they keep.

        Returns:
            `rows` that several decided, Krippendorff's `alpha` over what they said, Cohen's `kappa` of each pair of
            reviewers, and of rows with two chains how often A and B were chosen. Who keeps A says something else than
            who keeps B.
        """
        several = [said for said in self.by_reviewer.values() if len(said) > 1]
        reviewers = sorted({name for said in several for name in said})
        kappas = {}
        for first, second in combinations(reviewers, 2):
            both = [said for said in several if first in said and second in said]
            pairs = [(_value(said[first]), _value(said[second])) for said in both]
            kappas[f"{first}, {second}"] = cohen_kappa(pairs)
        verdicts = [[_value(one) for one in said.values()] for said in several]
        chosen = Counter(
            decision.choice
            for number, decision in self.decided.items()
            if decision.choice and len(self.rows[number].chains) > 1
        )
        return {
            "rows": len(several),
            "alpha": krippendorff_alpha(verdicts),
            "kappa": kappas,
            "chosen": dict(sorted(chosen.items())),
        }


def _value(decision: Decision) -> tuple[str, str]:
    return decision.decision, decision.choice


def make_rows(
    records: Sequence[Record],
    images: ImageStore,
    chains: Mapping[str, Sequence[Record]],
    reasons: Mapping[str, Refused],
) -> Iterator[Row]:
    """Join records with the chains of teachers and the reasons of a quarantine; rows with neither are left out.

    Args:
        records: of a split.
        images: its pictures.
        chains: for "A", and "B", the same records with a teacher's chains.
        reasons: what the quarantine says, by the name that annotation gives a row.
    """
    for number, record in enumerate(records):
        written = {name: found[number] for name, found in chains.items() if found[number].cot}
        # An id that names several rows is written with the source.
        reason = reasons.get(record.id) or reasons.get(f"{record.source}/{record.id}")
        # A row that was asked again has a chain since.
        if "A" in written:
            reason = None
        if written or reason:
            yield Row(replace(record, cot=None), written, reason, images)


def read_quarantine(path: str | Path) -> dict[str, Refused]:
    """Return what a quarantine file of `cir-cot annotate` says, by the name of the row; the last line counts."""
    reasons = {}
    for number, row in read_jsonl(path):
        if not isinstance(row, dict) or not isinstance(row.get("id"), str):
            raise InputError(f"{path}:{number}: no row of a quarantine file")
        # The teacher's answer is any text.
        reason = str(row.get("reason") or "quarantined")
        reasons[row["id"]] = Refused(reason, str(row.get("raw") or "")[:MAX_PART])
    return reasons
