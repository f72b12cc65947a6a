"""A dataset with the chains of two teachers, a quarantine, and pictures."""

from dataclasses import replace

import pytest
from tiny_training import records, write_dataset

from cir_cot.records import Cot, write_records


@pytest.fixture
def folder(tmp_path):
    rows = records(9)  # every third one has no chain
    write_dataset(tmp_path / "data", [replace(row, cot=None) for row in rows])
    teacher = {"model": "teacher/a", "prompts": "1", "seen_target": False}
    first = [replace(row, teacher=teacher) for row in rows if row.cot]
    # A chain that filters find fault with, and that would like to be markup.
    evil = Cot("<img src=x onerror=alert(1)>", "I am sorry, as an AI I cannot", "the target image")
    first[1] = replace(first[1], cot=evil)
    write_records(tmp_path / "chains.jsonl", first)
    other = [replace(row, teacher={"model": "teacher/b", "seen_target": True}) for row in rows[:2]]
    write_records(tmp_path / "second.jsonl", other)
    line = '{"id": "2", "reason": "no answer", "attempts": 3, "raw": "I see <b>a bar</b>"}\n'
    (tmp_path / "chains.jsonl.quarantine.jsonl").write_text(line)
    return tmp_path
