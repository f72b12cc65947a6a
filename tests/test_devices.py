"""The device that a user names: one that is there, or one line."""

import pytest
import torch

from cir_cot.devices import pick_device
from cir_cot.errors import InputError


def test_the_device_that_is_named_is_taken():
    assert pick_device("cpu").type == "cpu"
    assert pick_device() == torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "", "cuda:x", "cpu:x", "meta", "hip", "cuda\n"])
def test_a_device_that_is_not_there_is_one_line(name):
    with pytest.raises(InputError, match="here are cpu") as error:
        pick_device(name)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without a GPU")
def test_cuda_without_one_is_one_line():
    with pytest.raises(InputError, match="device 'cuda': not on this machine; here are cpu"):
        pick_device("cuda")
