"""Let a process be the first of several whose collectives exchange nothing, and count what they would send."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cir_cot.errors import InputError

# The language model's blocks are gathered one by one, as train/configs/accelerate/fsdp.yaml says.
BLOCKS = "language_model.layers"
WRAPPERS = 40  # frames between an allocation and the code of FSDP that asks for it, at most
# Bytes that a process sends, as a multiple of its largest tensor's, by ring algorithms over n processes.
SENT = {
    "allreduce_": lambda n: 2 * (n - 1) / n,
    "_allgather_base_": lambda n: (n - 1) / n,  # the largest tensor is what comes out
    "_reduce_scatter_base_": lambda n: (n - 1) / n,
    "allgather_": lambda n: n - 1,  # each tensor of the list is one process's
}


@contextmanager
def fake_processes(count: int) -> Iterator[None]:
    """Make this process the first of `count` by torch's fake process group; nothing where `count` is 1.

    What others would send is the content of this process, so all hold equally many rows and chunks.

    Raises:
        InputError: a process group is there already.
    """
    if count == 1:
        yield
        return
    if dist.is_initialized():
        raise InputError("a process group is there already: run cir-cot plan as a single process")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)
    try:
        yield
    finally:
        dist.destroy_process_group()


def shard_weights(head: nn.Module) -> None:
    """Shard the weights of a head over all processes as accelerate does with FSDP2, to be gathered in bfloat16."""
    precision = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16, output_dtype=torch.bfloat16
    )
    for name, module in head.named_modules():
        if name.endswith(BLOCKS):
            for block in module.children():
                fully_shard(block, mp_policy=precision)
    fully_shard(head, mp_policy=precision)


@contextmanager
def fake_sharded_weights(head: nn.Module) -> Iterator[None]:
    """Shard fake weights; steps run within, for what they gather must be fake as well."""
    fake_mode = next(
        value.fake_mode for value in head.parameters() if isinstance(value, FakeTensor)
    )
    shard_weights(head)
    with _FakeGathered(fake_mode):
        yield


class _FakeGathered(TorchDispatchMode):
    """Make what FSDP allocates fake as well: what is gathered, and gradients before and after they are reduced."""

    def __init__(self, fake_mode: FakeTensorMode):
        super().__init__()
        self.fake_mode = fake_mode

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        fake = function is torch.ops.aten.empty.memory_format and _called_by_fsdp()
        with self.fake_mode if fake else nullcontext():
            return function(*args, **kwargs or {})


def _called_by_fsdp() -> bool:
    """Tell whether an operator was called by FSDP, a few frames of wrappers and modes before."""
    frame: FrameType | None = sys._getframe(2)
    for _ in range(WRAPPERS):
        if frame is None:
            return False
        if frame.f_globals["__name__"].startswith(fully_shard.__module__):
            return True
        frame = frame.f_back
    return False


def bytes_sent(function: Any, args: tuple) -> int:
    """Return the bytes that a process sends in a collective operation that has run; 0 for anything else."""
    name = function._schema.name.removeprefix("c10d::")
    if function.namespace != "c10d" or name not in SENT:
        return 0
    tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
    largest = max(tensor.nbytes for tensor in tensors)
    return math.ceil(SENT[name](dist.get_world_size()) * largest)
