"""A device that says "gpu:0" and computes on the CPU, to find what only a real one would complain about.

Tensors of class `OnDevice` hold their numbers on the CPU. An operation that mixes them with tensors of the host is an
error, as on a GPU, and every read by the host is counted with the line that asks for it. Autocast works as on CUDA.
Importing this file registers the backend for good, so a test imports it in a process of its own.
"""

from __future__ import annotations

import traceback
from collections import Counter
from typing import Any

import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

# Operations that take indices or numbers of the host, on a GPU too.
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
MIXING = INDEXING | {"copy_"}
# Operations whose result the host has to wait for.
READING = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero"}
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "convolution"}
# What autocast computes in bfloat16, and what in float32 (CUDA's lists, as far as our models use them).
LOWERED = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "conv2d", "conv3d", "convolution",
           "scaled_dot_product_attention")  # fmt: skip
RAISED = ("pow", "rsqrt", "softmax", "log_softmax", "layer_norm", "cross_entropy_loss", "nll_loss",
          "norm", "cosine_similarity", "cumsum", "exp", "log", "logsumexp")  # fmt: skip


class _Backend(_DummyBackendModule):
    """What torch asks a backend's module for."""

    _initialized = False

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def synchronize(self, *_: Any) -> None:
        pass

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    def get_rng_state(self, *_: Any) -> torch.Tensor:
        return torch.zeros(1, dtype=torch.uint8)

    def set_rng_state(self, *_: Any) -> None:
        pass

    def set_device(self, *_: Any) -> None:
        pass

    def empty_cache(self) -> None:
        pass


_setup_privateuseone_for_python_backend("gpu", backend_module=_Backend())
DEVICE = torch.device("gpu:0")


class Observed:
    """What happened on the device since `forget`.

    Products in float32 are counted whether autocast is on or not: torch switches it off within its own casts.
    """

    reads: Counter = Counter()  # line that reads -> times
    float32: Counter = Counter()  # line with a matrix product in float32 -> times
    operations = 0

    @classmethod
    def forget(cls) -> None:
        cls.reads = Counter()
        cls.float32 = Counter()
        cls.operations = 0


def place() -> str:
    """Return the line of this project or of a model's library that is being run."""
    for frame in reversed(traceback.extract_stack()):
        for package in ("/cir_cot/", "/transformers/", "/peft/", "/accelerate/"):
            if package in frame.filename and "pretended_gpu" not in frame.filename:
                return f"{package[1:]}{frame.filename.rsplit(package)[-1]}:{frame.lineno}"
    return "elsewhere"


class OnDevice(torch.Tensor):
    """A tensor on the pretended device; `values` holds its numbers."""

    values: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> OnDevice:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
            requires_grad=False,
        )
        made.values = values
        return made

    def tolist(self) -> Any:
        Observed.reads[place()] += 1
        return self.values.tolist()

    def new_tensor(self, data: Any, **options: Any) -> torch.Tensor:
        return torch.tensor(data, dtype=self.dtype, device=DEVICE, **options)

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"{place()}: a tensor of the device has no numpy array; .cpu() first")

    def __getitem__(self, index: Any) -> torch.Tensor:
        return super().__getitem__(_on_device(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_on_device(index), value)

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


def _on_device(index: Any) -> Any:
    """Return an index with its lists as tensors: torch makes them in a way that skips the dispatcher."""
    if isinstance(index, list):
        return _tensor(
            index, dtype=torch.bool if index and isinstance(index[0], bool) else torch.long
        )
    if isinstance(index, tuple):
        return tuple(map(_on_device, index))
    return index


def run(function: Any, args: tuple, kwargs: dict) -> Any:
    """Run one operation of the dispatcher."""
    name = function._schema.name.split("::")[1]
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    on_device = [one for one in tensors if isinstance(one, OnDevice)]
    asked = kwargs.get("device")
    wanted = torch.device(asked).type if asked is not None else None
    if name == "_to_copy":
        return _copy(args[0], wanted, kwargs)
    if not on_device and wanted != "gpu":
        return function(*args, **kwargs)
    # As on a GPU: single numbers may come from the host, tensors may not.
    foreign = [one for one in tensors if not isinstance(one, OnDevice) and one.dim()]
    if on_device and foreign and name not in MIXING:
        raise RuntimeError(
            f"{place()}: {name} of tensors on gpu:0 and on the host {tuple(foreign[0].shape)}"
        )
    Observed.operations += 1
    if name in READING or (name == "copy_" and not isinstance(args[0], OnDevice)):
        Observed.reads[place()] += 1
    # A mask's number of rows is read.
    masks = [one for one in args[1] if isinstance(one, OnDevice)] if name in INDEXING else []
    if any(one.dtype == torch.bool for one in masks):
        Observed.reads[place()] += 1
    if name in PRODUCTS and args[0].dtype == torch.float32:
        Observed.float32[place()] += 1
    if name == "_fused_sdp_choice":
        return 0  # attention by its parts
    # Compute on the CPU; what comes back unchanged keeps its wrapper.
    wrappers = {}

    def unwrap(value: Any) -> Any:
        if isinstance(value, OnDevice):
            wrappers[id(value.values)] = value
            return value.values
        return value

    plain, options = tree_map(unwrap, (list(args), dict(kwargs)))
    if "device" in options:
        options["device"] = torch.device("cpu")
    options.pop("pin_memory", None)
    with torch.autocast("cpu", enabled=False):
        out = function(*plain, **options)

    def wrap(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return wrappers[id(value)] if id(value) in wrappers else OnDevice(value)

    if name in ("_local_scalar_dense", "is_nonzero", "equal"):
        return out
    if name == "copy_":
        return args[0]
    made = tree_map(wrap, out)
    aliased = any(one.alias_info for one in function._schema.returns)
    return return_and_correct_aliasing(function, args, kwargs, made) if aliased else made


def _copy(tensor: torch.Tensor, wanted: str | None, kwargs: dict) -> torch.Tensor:
    """Copy a tensor to another type or device."""
    options = {
        name: value
        for name, value in kwargs.items()
        if name not in ("device", "non_blocking", "pin_memory")
    }
    values = tensor.values if isinstance(tensor, OnDevice) else tensor
    copied = torch.ops.aten._to_copy.default(values, **options)
    target = wanted or tensor.device.type
    Observed.operations += target == "gpu"
    if target == "gpu":
        return OnDevice(copied)
    if isinstance(tensor, OnDevice):
        Observed.reads[place()] += 1
    return copied


class Pretended(TorchDispatchMode):
    """Let tensors be made on the device, e.g. `torch.arange(3, device="gpu")`, as a context manager."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


def move(module: torch.nn.Module) -> torch.nn.Module:
    """Put all weights and buffers of a module on the device, in place; tied ones stay tied."""
    moved: dict[int, Any] = {}
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for name, value in table.items():
                if value is None:
                    continue
                if id(value) not in moved:
                    on = OnDevice(value.detach())
                    parameter = isinstance(value, torch.nn.Parameter)
                    made = torch.nn.Parameter(on, value.requires_grad) if parameter else on
                    moved[id(value)] = made
                table[name] = moved[id(value)]
    return module


# ---- autocast, which a backend brings itself

_everything = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
_everything.fallback(torch.library.fallthrough_kernel)
_aten = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)


def _cast_to(dtype: torch.dtype):
    def cast(value: Any) -> Any:
        on_device = isinstance(value, torch.Tensor) and value.device.type == "gpu"
        if on_device and value.is_floating_point() and value.dtype != torch.float64:
            return value.to(dtype)
        return value

    return cast


def _register(name: str, lowered: bool) -> None:
    packet = getattr(torch.ops.aten, name)
    for overload in packet.overloads():
        if overload.endswith("out"):
            continue
        operation = getattr(packet, overload)

        def cast_first(*args: Any, operation: Any = operation, **kwargs: Any) -> Any:
            dtype = torch.get_autocast_dtype("gpu") if lowered else torch.float32
            with torch._C._ExcludeDispatchKeyGuard(KEYS):
                args, kwargs = tree_map(_cast_to(dtype), (args, kwargs))
                return operation(*args, **kwargs)

        _aten.impl(name if overload == "default" else f"{name}.{overload}", cast_first)


for _name in LOWERED:
    _register(_name, True)
for _name in RAISED:
    _register(_name, False)


# ---- tensors made of lists, which torch puts on a device past the dispatcher

_tensor = torch.tensor
_as_tensor = torch.as_tensor


def _plain(data: Any) -> Any:
    """Return nested lists with tensors of the device as numbers."""
    if isinstance(data, OnDevice):
        return data.tolist()
    return [_plain(one) for one in data] if isinstance(data, list | tuple) else data


def _made_of(make: Any):
    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        if isinstance(data, torch.Tensor):
            return data if device is None else data.to(device)
        out = make(_plain(data), *args, **kwargs)
        return out if device is None else out.to(device)

    return made


torch.tensor = _made_of(_tensor)
torch.as_tensor = _made_of(_as_tensor)
_attention = functional.scaled_dot_product_attention


def _attention_by_parts(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None,
                        enable_gqa=False):  # fmt: skip
    """Attention of torch; on the device by its parts, with the types that a GPU's kernels accept."""
    if not isinstance(query, OnDevice):
        return _attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale,
                          enable_gqa=enable_gqa)  # fmt: skip
    if torch.is_autocast_enabled("gpu"):
        query, key, value = map(_cast_to(torch.get_autocast_dtype("gpu")), (query, key, value))
    if not query.dtype == key.dtype == value.dtype:
        raise RuntimeError(f"{place()}: attention of {query.dtype}, {key.dtype} and {value.dtype}")
    groups = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(groups, 1)
    value = value.repeat_interleave(groups, 1)
    with torch.autocast("gpu", enabled=False):
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        scores = query @ key.transpose(-1, -2) * scale
        if is_causal:
            allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
            scores = scores.masked_fill(~allowed, -torch.inf)
        if attn_mask is not None:
            boolean = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -torch.inf) if boolean else scores + attn_mask
        return scores.softmax(-1) @ value


functional.scaled_dot_product_attention = _attention_by_parts
