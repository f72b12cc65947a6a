"""Attach the chains of a file to the records of a dataset."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from cir_cot.errors import InputError, shown
from cir_cot.files import check_keys, read_jsonl
from cir_cot.records import COT_KEYS, Cot, Record, check_chain, record_from_dict, string_of

from .chain_decisions import decision_from_dict

# The second form of a line, of data sets that name a pair of images instead of a query.
PAIR_KEYS = ("reference", "target", "captions", *COT_KEYS)

Key = tuple[str, str]


class ChainLine(NamedTuple):
    """Hold one line of a chain file: a record with its chain, and what it is matched by."""

    record: Record
    key: Key  # (id, reference), or (reference, target)
    by_pair: bool  # which of the two
    decided: bool = False  # whether a reviewer wrote it, who may decide again


def attach_chains(records: Sequence[Record], path: str | Path) -> list[Record]:
    """Return the records in the same order, with the chains of a JSONL file as their `cot`.

    A line is a record with its `cot`, as `cir-cot annotate` writes it (matched by id and
    reference), or an object with the keys reference, target, caption, reasoning and conclusion
    (matched by reference and target). A record without a line stays as it is. Decisions of
    reviewers (`chain_decisions`) may repeat a record: the last one wins, and a record whose chain was
    rejected, or is to be asked for again, gets none.

    Raises:
        InputError: a line that matches no record or several, or a second chain for a record.

    Example:
        >>> records = attach_chains(read_records("records.train.jsonl"), "chains.jsonl")
    """
    # indices of the records, by each key that a line may have
    by_id: dict[Key, list[int]] = {}
    by_pair: dict[Key, list[int]] = {}
    for index, record in enumerate(records):
        by_id.setdefault((record.id, record.reference), []).append(index)
        for target in record.targets:
            by_pair.setdefault((record.reference, target), []).append(index)

    attached = list(records)
    lines: dict[int, int] = {}  # index of a record -> line number of its chain
    for number, obj in read_jsonl(path):
        where = f"{path}:{number}"
        line = _parse_line(obj, where)
        found = (by_pair if line.by_pair else by_id).get(line.key, [])
        if len(found) != 1:
            raise InputError(
                f"{where}: {len(found) or 'no'} records have {shown(line.key)}; is it the chain file of this split?"
            )
        index = found[0]
        if index in lines and not line.decided:
            raise InputError(
                f"{where}: record {records[index].id!r} already has the chain of line {lines[index]}"
            )
        lines[index] = number
        attached[index] = replace(records[index], cot=line.record.cot, teacher=line.record.teacher)
    return attached


def _parse_line(obj: object, where: str) -> ChainLine:
    """Return a line of a chain file, in either form, or of a review."""
    if isinstance(obj, dict) and "decision" in obj:
        decision = decision_from_dict(obj, where)
        record = Record(
            decision.id, decision.reference, "", (), decision.cot, teacher=decision.teacher
        )
        return ChainLine(record, decision.key, by_pair=False, decided=True)
    if isinstance(obj, dict) and "target" in obj:
        check_keys(obj, where, required=("reference", "target", *COT_KEYS), allowed=PAIR_KEYS)
        reference = string_of(obj, "reference", where, blank=False)
        target = string_of(obj, "target", where, blank=False)
        cot = check_chain(Cot(*(obj[part] for part in COT_KEYS)), where)
        record = Record("", reference, "", (target,), cot)
        return ChainLine(record, (reference, target), by_pair=True)
    record = record_from_dict(obj, where)
    if record.cot is None:
        raise InputError(f"{where}: a line of a chain file has a chain, but its 'cot' is null")
    return ChainLine(record, (record.id, record.reference), by_pair=False)
