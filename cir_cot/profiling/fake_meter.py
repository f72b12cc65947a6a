"""Count what a pass over fake tensors would cost: operations, kernels, bytes moved, waits of the host, peak memory."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Self

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cir_cot.cards import Accelerator
from cir_cot.peak_bytes import PeakBytes, operations_of

from .fake_processes import bytes_sent

aten = torch.ops.aten
# Operations that index by a mask: with real masks their shapes are known.
MASKED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
# Operators that start no kernel, beside views.
SHAPES_ONLY = (aten._unsafe_view.default, aten.detach.default, aten.empty.memory_format)
# Reads of a tensor's content by the host, for which it waits for a device.
READS = {
    Tensor.tolist,
    Tensor.item,
    Tensor.__bool__,
    Tensor.__int__,
    Tensor.__float__,
    Tensor.__index__,
    Tensor.nonzero,
    torch.nonzero,
    Tensor.cpu,
}

# What a fake tensor of one number is read as.
NUMBERS: dict[Any, Any] = {
    Tensor.item: 0.0,
    Tensor.__float__: 0.0,
    Tensor.__int__: 0,
    Tensor.__bool__: False,
}


class FakeMeter:
    """Measure what runs within, as a context manager.

    Attributes:
        operations: of matrix products, convolutions and attention.
        kernels: operators that compute something, views not counted.
        moved: bytes that these read and write.
        synchronisations: reads of a tensor by the host.
        sent: bytes that collective operations send.
        peak: most bytes that tensors created within hold at one time.

    Example:
        with FakeMeter(card) as meter:
            step()
        meter.seconds
    """

    def __init__(self, card: Accelerator):
        self.card = card
        self.operations = 0
        self.kernels = 0
        self.moved = 0
        self.synchronisations = 0
        self.sent = 0
        self.seconds = 0.0  # by roofline, kernel by kernel
        self._bytes = PeakBytes()
        self._stack = ExitStack()

    @property
    def peak(self) -> int:
        """Return the peak in bytes."""
        return self._bytes.peak

    def __enter__(self) -> Self:
        # A collection in the middle would let the peak depend on when it comes.
        gc.collect()
        gc.disable()
        self._stack.callback(gc.enable)
        self._stack.enter_context(_Reads(self))
        self._stack.enter_context(self._bytes)
        self._stack.enter_context(_Operators(self))
        return self

    def __exit__(self, *problem: object) -> None:
        self._stack.close()

    def count(self, function: Any, args: tuple, kwargs: dict, out: Any) -> None:
        """Count one operator that has run."""
        self.sent += bytes_sent(function, args)
        shapes_only = function.is_view or function in SHAPES_ONLY or function.namespace != "aten"
        if shapes_only or not _is_fake((args, kwargs, out)):
            return
        self.kernels += 1
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        moved = sum(tensor.nbytes for tensor in tensors)
        operations = operations_of(function, args, kwargs, out)
        self.operations += operations
        self.moved += moved
        self.seconds += max(operations / self.card.flops, moved / self.card.bandwidth)


def _is_fake(values: Any) -> bool:
    """Tell whether any tensor among `values` is fake: work on real ones is the host's."""
    return any(isinstance(leaf, FakeTensor) for leaf in tree_leaves(values))


class _Operators(TorchDispatchMode):
    """Run operators one by one, with masks as numbers of rows, and count them."""

    def __init__(self, meter: FakeMeter):
        super().__init__()
        self.meter = meter

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in MASKED:
            args = (args[0], _without_masks(args[1]), *args[2:])
        out = function(*args, **kwargs)
        self.meter.count(function, args, kwargs, out)
        return out


def _without_masks(indices: Any) -> list:
    """Return indices with real masks replaced by the numbers of their rows."""
    found: list = []
    for one in indices:
        real = isinstance(one, Tensor) and not isinstance(one, FakeTensor)
        if real and one.dtype == torch.bool:
            found += one.nonzero(as_tuple=True)
        else:
            found.append(one)
    return found


class _Reads(TorchFunctionMode):
    """Count the host's reads of tensors; all tensors within would be on the device. A fake number is read as 0."""

    def __init__(self, meter: FakeMeter):
        super().__init__()
        self.meter = meter

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        self.meter.synchronisations += function in READS
        if function in NUMBERS and isinstance(args[0], FakeTensor):
            return NUMBERS[function]
        return function(*args, **kwargs or {})
