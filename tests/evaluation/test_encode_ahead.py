"""Model inputs that threads make in advance give the same vectors in the same order."""

import threading

import pytest
import torch
from PIL import Image
from tiny_training import tiny_head

from cir_cot.evaluation.encode_ahead import AHEAD, encode_ahead
from cir_cot.heads.targets import TargetPreparer


def pictures(count):
    """Pictures of different sizes and shades."""
    return [Image.new("RGB", (56 + 28 * (n % 3), 84), (9 * n, 40, 80)) for n in range(count)]


def batches(images, size):
    return [images[at : at + size] for at in range(0, len(images), size)]


def test_vectors_are_those_of_encode_target_in_order():
    head = tiny_head().eval()
    images = pictures(11)
    found = list(encode_ahead(head, batches(images, 3)))
    assert [len(part) for part in found] == [3, 3, 3, 2]
    torch.testing.assert_close(torch.cat(found), head.encode_target(images), atol=1e-5, rtol=0)
    assert list(encode_ahead(head, [])) == []


def test_inputs_are_made_outside_the_main_thread_and_not_too_far_ahead():
    head = tiny_head().eval()
    made, taken = [], 0

    class Watched(TargetPreparer):
        def __call__(self, images):
            made.append(threading.current_thread() is threading.main_thread())
            return super().__call__(images)

    plain = head.target_preparer()
    head.target_preparer = lambda: Watched(**vars(plain))
    for _ in encode_ahead(head, batches(pictures(20), 2)):
        taken += 1
        assert len(made) <= taken + AHEAD
    assert taken == 10
    assert not any(made)


def test_a_retriever_must_give_each_picture_a_vector():
    class Short:
        def encode_target(self, images):
            return torch.ones(len(images) - 1, 4)

    with pytest.raises(ValueError, match="2 inputs gave 1 embeddings"):
        list(encode_ahead(Short(), batches(pictures(2), 2)))
