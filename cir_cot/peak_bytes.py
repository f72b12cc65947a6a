"""Count the most bytes that tensors hold at one time, and operations, on any device, fake tensors included."""

import weakref
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class PeakBytes(TorchDispatchMode):
    """Record in `peak` the most bytes held at one time by tensors that are created within; views count once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0  # bytes that are alive
        self.peak = 0
        self.known: dict[int, int] = {}  # bytes of the storages that have been counted

    def __torch_dispatch__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Run the operation, then count storages that are new."""
        old = {
            leaf.untyped_storage()._cdata
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor)
        }
        out = function(*args, **kwargs or {})
        # A view has the storage of an input, or one that was counted before.
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                name = leaf.untyped_storage()._cdata
                if name not in old and name not in self.known:
                    self._count(leaf.untyped_storage())
        return out

    def __enter__(self) -> Self:
        """Follow what resizes a storage as well: FSDP empties and fills those of gathered weights."""
        self._resize = torch.UntypedStorage.resize_
        meter = self

        def resize(storage: torch.UntypedStorage, size: int) -> Any:
            out = meter._resize(storage, size)
            if storage._cdata in meter.known:
                meter._hold(storage._cdata, storage.nbytes())
            return out

        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign, assignment]
        return super().__enter__()

    def __exit__(self, *problem: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(*problem)

    def _count(self, storage: torch.UntypedStorage) -> None:
        """Add a new storage, and subtract it as soon as it is freed."""
        self._hold(storage._cdata, storage.nbytes())
        # torch may reuse the address of a freed storage.
        weakref.finalize(storage, self._free, storage._cdata)

    def _hold(self, name: int, size: int) -> None:
        self.now += size - self.known.get(name, 0)
        self.known[name] = size
        self.peak = max(self.peak, self.now)

    def _free(self, name: int) -> None:
        self.now -= self.known.pop(name, 0)


def peak_bytes(work: Callable[[], object]) -> int:
    """Count the most bytes that tensors created by `work` hold at one time."""
    with PeakBytes() as meter:
        work()
    return meter.peak


def operations_of(function: Any, args: tuple, kwargs: dict, out: Any) -> int:
    """Return the operations of a matrix product, convolution or attention that has run; 0 for anything else."""
    count = flop_registry.get(function._overloadpacket)
    return count(*args, **kwargs, out_val=out) if count else 0


class Operations(TorchDispatchMode):
    """Count operations within as torch's FlopCounterMode does, which follows modules and so holds tensors.

    Attributes:
        total: see `operations_of`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Run the operation and count it."""
        out = function(*args, **kwargs or {})
        self.total += operations_of(function, args, kwargs or {}, out)
        return out
