"""Fixtures of the contract suite."""

import pytest
from contract_heads import scene_rows

from cir_cot.models.tiny_qwen import write_tiny
from cir_cot.prompts import cot_to_text


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    corpus = [cot_to_text(row.record.cot) + row.record.text for row in scene_rows(12)]
    # far from zero, so that rows differ and greedy decoding varies
    return write_tiny(
        tmp_path_factory.mktemp("tiny"), corpus=corpus, vocab_size=400, seed=3, init_std=0.15
    )
