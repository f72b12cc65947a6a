"""The contract of a head as types: what is abstract, what `forward` returns, flags that are texts with a kind."""

import copy
import json
import pickle

import pytest
import torch
from PIL import Image
from tiny_training import tiny_head
from torch.utils import _pytree as pytree

from cir_cot.heads import HEADS
from cir_cot.heads.base import Head, HeadOutput
from cir_cot.heads.cot import CotRetriever
from cir_cot.heads.loaded import loaded_line
from cir_cot.models.backbone import load_backbone
from cir_cot.models.tiny_qwen import write_tiny
from cir_cot.retriever import CHAIN_READINGS, READINGS, Flag


def test_a_head_that_lacks_a_method_cannot_be_built():
    class Half(Head):
        kind = "half"

    with pytest.raises(TypeError, match="abstract"):
        Half()


def test_every_head_is_listed_under_its_kind_and_implements_the_contract():
    for kind, head in HEADS.items():
        assert issubclass(head, Head)
        assert head.kind == kind
        assert not head.__abstractmethods__


def test_wrappers_of_distributed_training_find_every_tensor_of_an_output():
    """They look into tuples and dicts only, so the output is one of these and not an opaque object."""
    tensors = [torch.tensor(float(number)) for number in range(8)]
    query, target, temperature, aux, row, stat, negative, ids = tensors
    losses = ({"lm": aux}, {"scores": row}, {"load": stat})
    output = HeadOutput(query, target, temperature, *losses, negative, ids)
    found, _ = pytree.tree_flatten(output)
    assert [value.item() for value in found] == [0, 1, 2, 3, 4, 5, 6, 7]
    doubled = pytree.tree_map(lambda value: 2 * value, output)
    assert isinstance(doubled, HeadOutput)
    assert doubled.rows["scores"].item() == 8


def test_a_row_without_its_retrieval_token_is_refused():
    head = tiny_head(lora=False).eval()
    encoder = head.encoder()
    picture = Image.new("RGB", (56, 56))
    for answer in ([], [encoder.ret_id] * 2):
        inputs, _ = encoder.query([picture], ["red"], [answer])
        with pytest.raises(RuntimeError, match="exactly one retrieval token"):
            head.read(inputs)


def test_a_flag_is_its_text_with_a_kind_and_survives_copies():
    flag = Flag("missing_token", "no retrieval token: cut")
    assert flag == "no retrieval token: cut"
    assert json.dumps([flag]) == '["no retrieval token: cut"]'
    for other in (pickle.loads(pickle.dumps(flag)), copy.deepcopy(flag)):
        assert (other, other.kind) == (flag, "missing_token")


def test_the_table_of_readings_tells_who_offers_what():
    assert list(READINGS) == [
        "full",
        "short",
        "adaptive",
        "fast",
        "oracle",
        "image_only",
        "text_only",
    ]
    assert CHAIN_READINGS == ("full", "short", "adaptive", "fast")
    assert [name for name, reading in READINGS.items() if reading.needs_chains] == ["oracle"]


def test_what_was_loaded_is_told_in_a_line(tmp_path):
    folder = write_tiny(tmp_path / "base", max_pixels=7056)
    head = CotRetriever(load_backbone(folder, dtype="bfloat16", frozen=True), str(folder))
    head.trained_in = "bfloat16"
    assert loaded_line(head, "runs/model") == (
        "runs/model: cot in bfloat16 (trained in bfloat16), pictures of 784 to 7,056 pixels"
    )
    assert loaded_line(object(), "runs/model") == "runs/model: a retriever"
