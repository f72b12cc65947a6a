"""Shares of a query's vector: they sum to 1, follow the tokens, and a part that changes nothing has none."""

import pytest
import torch
from test_decoding import asked, wild_head

from cir_cot.heads.attribution import _parts_of, shares
from cir_cot.prompts import PARTS, cot_to_text
from cir_cot.records import Cot

CHAIN = Cot("a red picture", "change the bar, keep it", "red with a blue bar")


def test_shares_sum_to_one_and_name_every_part():
    head = wild_head()
    images, texts = asked(1)
    target = torch.nn.functional.normalize(torch.ones(head.dim), dim=0)
    found = shares(head, images[0], texts[0], CHAIN, target)
    assert list(found) == ["picture", "text", *PARTS]
    assert sum(found.values()) == pytest.approx(1)
    assert all(value > 0 for value in found.values())
    assert all(parameter.grad is None for parameter in head.parameters())


def test_a_part_that_the_readout_cannot_see_has_no_share():
    """Only the retrieval token's own state counts where attention to all that is before is cut off."""
    head = wild_head()
    images, texts = asked(1)
    for layer in head.backbone.plain.model.language_model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    found = shares(head, images[0], texts[0], CHAIN, torch.ones(head.dim))
    # The retrieval token belongs to the last part.
    assert found["conclusion"] == pytest.approx(1)
    assert found["picture"] == found["text"] == found["caption"] == 0


def test_tokens_belong_to_their_parts():
    head = wild_head()
    answer = head.encoder().answer_token_ids([cot_to_text(CHAIN)])[0]
    parts = _parts_of(head, answer)
    assert len(parts) == len(answer)
    assert sorted(parts, key=PARTS.index) == parts
    first = parts.count("caption")
    text = head.backbone.processor.tokenizer.decode(answer[: first + 1])
    assert text.startswith("<caption>a red picture</caption>"[:-1])
