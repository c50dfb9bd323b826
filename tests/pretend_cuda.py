"""A CUDA device for machines without one: its tensors state `cuda:0`, compute on the CPU and refuse what CUDA refuses.

Inside `with pretend_cuda() as card:` torch reports one CUDA device. A tensor moved there raises the errors of CUDA:
for operands on different devices, for `.numpy()`, and for draws from a CPU generator. docs/adr/0016 states the design
and what it does not reproduce.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
_INSIDE = torch.device("lazy")
"""The device of a `CudaTensor` to torch's C++ code: one that nothing else uses and for which autograd has a queue."""
_CROSSING = {"aten::copy_", "aten::_to_copy"}
"""Operations that move values between devices."""
_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"}
"""Indexing, whose index tensors may be on the CPU."""
_EAGER = {"aten::_conj": torch.conj_physical, "aten::_neg_view": torch.neg}
"""Views that mark a tensor as conjugated or negated. Dispatch to Python is below the code that respects the mark."""
_HALF = {
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear", "matmul",
    "__matmul__", "__rmatmul__", "mm", "mv", "bmm", "addmm", "addmv", "addbmm", "baddbmm", "einsum", "prelu",
    "scaled_dot_product_attention",
}  # fmt: skip
"""Functions that autocast evaluates in half precision on CUDA."""
_FLOAT32 = {
    "exp", "log", "pow", "__pow__", "sum", "prod", "cumsum", "norm", "softmax", "log_softmax", "group_norm",
    "layer_norm", "mse_loss", "l1_loss", "rsqrt", "reciprocal", "cosine_similarity",
}  # fmt: skip
"""Functions that autocast evaluates in float32 on CUDA."""


class CudaTensor(torch.Tensor):
    """A tensor that states `cuda:0`. Its values are in `held`, a CPU tensor."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        own = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=_INSIDE,
        )  # fmt: skip
        own.held = held
        return own

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)

    def get_device(self) -> int:
        return 0

    def __repr__(self, **_: Any) -> str:
        return f"CudaTensor({self.held})"

    def numpy(self, *_: Any, **__: Any):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host "
                        "memory first.")  # fmt: skip

    __array__ = numpy

    def tolist(self):
        return self.held.tolist()

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and isinstance(args[0], torch.Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        return super().to(*map(_inside, args), **{name: _inside(value) for name, value in kwargs.items()})

    def new_tensor(self, data: Any, *, dtype: torch.dtype | None = None, device: Any = CUDA) -> torch.Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=device)

    def cuda(self, *_: Any, **__: Any) -> torch.Tensor:
        return self

    def __getitem__(self, index: Any) -> torch.Tensor:
        return super().__getitem__(_index(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        if not isinstance(value, torch.Tensor):
            value = torch.tensor(value, dtype=self.dtype)
        super().__setitem__(_index(index), value)

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        if id(self) not in memo:
            copied = CudaTensor(self.held.clone())
            if isinstance(self, torch.nn.Parameter):
                copied = torch.nn.Parameter(copied)
            memo[id(self)] = copied.requires_grad_(self.requires_grad)
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any):
        # saved as what `torch.load(..., map_location="cpu")` returns for a CUDA tensor
        return self.held.__reduce_ex__(protocol)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if torch.is_autocast_enabled("cuda"):
                args, kwargs = _autocast(func.__name__, args, kwargs)
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _compute(func, args, kwargs or {})


def _inside(value: Any) -> Any:
    """The argument of a method, with the device of C++ for CUDA."""
    is_device = isinstance(value, (str, torch.device))
    return _INSIDE if is_device and torch.device(value).type == "cuda" else value


def _index(index: Any) -> Any:
    """An index, with sequences as tensors on the device: C++ would ask for a real one."""
    if isinstance(index, tuple):
        return tuple(map(_index, index))
    if isinstance(index, (list, range, np.ndarray)):
        index = torch.as_tensor(index)
    is_elsewhere = isinstance(index, torch.Tensor) and not isinstance(index, CudaTensor)
    return CudaTensor(index) if is_elsewhere else index


def _autocast(name: str, args: Any, kwargs: Any) -> Any:
    """The arguments in the dtype in which CUDA's autocast evaluates a function."""
    if name not in _HALF | _FLOAT32:
        return args, kwargs
    dtype = torch.get_autocast_dtype("cuda") if name in _HALF else torch.float32

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor

    return tree_map_only(CudaTensor, cast, (args, kwargs))


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Check the devices of an operation as CUDA does, compute it on the CPU, and place its results."""
    name = func._schema.name
    leaves = [*_flat(args), *_flat(kwargs.values())]
    tensors = [item for item in leaves if isinstance(item, torch.Tensor)]
    there = any(isinstance(tensor, CudaTensor) for tensor in tensors)
    if there:
        _check_devices(name, args, tensors)
    asked = kwargs.get("device")
    to_cuda = there if asked is None else asked.type in ("cuda", "lazy")
    if name == "aten::copy_":
        to_cuda = isinstance(args[0], CudaTensor)
    generators = [item for item in leaves if isinstance(item, torch.Generator)]
    if to_cuda and generators and generators[0].device.type != "cuda":
        raise RuntimeError(f"Expected a 'cuda' device type for generator but found '{generators[0].device.type}'")
    named = {key: _held(value) for key, value in kwargs.items()}
    if asked is not None:
        named["device"] = CPU
    result = _EAGER.get(name, func)(*map(_held, args), **named)
    written = _written(func, args, kwargs)
    if any(isinstance(tensor, CudaTensor) and tensor.shape != tensor.held.shape for tensor in written):
        raise NotImplementedError(f"the pretended device cannot change the shape of a tensor in place ({name})")
    if len(written) == 1 and isinstance(result, torch.Tensor):
        return written[0]
    if not to_cuda:
        return result
    _cards[-1].dtypes.update(item.dtype for item in _flat([result]) if isinstance(item, torch.Tensor))
    return _placed(result)


def _flat(items: Any) -> list[Any]:
    """The items, and those of the lists among them: arguments of operations are not nested deeper."""
    flat = []
    for item in items:
        flat.extend(item) if isinstance(item, (list, tuple)) else flat.append(item)
    return flat


def _held(item: Any) -> Any:
    if isinstance(item, CudaTensor):
        return item.held
    return [_held(part) for part in item] if isinstance(item, (list, tuple)) else item


def _placed(result: Any) -> Any:
    if isinstance(result, (list, tuple)):
        return type(result)(map(_placed, result))
    return CudaTensor(result) if isinstance(result, torch.Tensor) else result


def _check_devices(name: str, args: Any, tensors: list[torch.Tensor]) -> None:
    """CPU tensors of no dimension may be combined with CUDA tensors, as may indices; others raise."""
    if name in _CROSSING:
        return
    if name in _INDEXING and isinstance(args[0], CudaTensor):
        tensors = [args[0], *(item for item in args[2:3] if isinstance(item, torch.Tensor))]
    elif name in _INDEXING:
        raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
    if any(not isinstance(tensor, CudaTensor) and tensor.dim() > 0 for tensor in tensors):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({name})"
        )


@functools.cache
def _written_arguments(func: Any) -> tuple[tuple[int, str], ...]:
    """Position and name of the arguments that an operation writes to."""
    arguments = func._schema.arguments
    return tuple((k, a.name) for k, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write)


def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> list[torch.Tensor]:
    found = [args[k] if k < len(args) else kwargs.get(name) for k, name in _written_arguments(func)]
    return [tensor for tensor in _flat(found) if isinstance(tensor, torch.Tensor)]


class _Factories(TorchDispatchMode):
    """Operations without a CUDA operand: those that create tensors on the device or copy them to it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _compute(func, args, kwargs or {})


class Card:
    """The pretended device. native_bfloat16: whether it computes in it. dtypes: of all that was computed on it."""

    def __init__(self, native_bfloat16: bool = True):
        self.native_bfloat16 = native_bfloat16
        self.dtypes: set[torch.dtype] = set()


_cards: list[Card] = []


class _Event:
    """A time on the device's queue, which is always empty."""

    def __init__(self, *_: Any, **__: Any):
        self.at = 0.0

    def record(self, *_: Any) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: _Event) -> float:
        return (end.at - self.at) * 1e3


_tensor = torch.tensor


def _placing(create: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`torch.tensor` and its like, which ask for a device before an operation is dispatched."""

    @functools.wraps(create)
    def placed(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        if isinstance(data, CudaTensor):
            made = data.to(kwargs.get("dtype") or data.dtype, copy=create is _tensor)
            return made if device is None else made.to(device)
        made = create(data, *args, **kwargs)
        return made if device is None else made.to(device)

    return placed


def _stand_ins(card: Card) -> dict[str, Any]:
    """Functions of `torch.cuda` for one idle device of 8 GiB."""
    return {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "device": contextlib.nullcontext,
        "synchronize": lambda device=None: None,
        "set_device": lambda device: None,
        "empty_cache": lambda: None,
        "get_device_name": lambda device=None: "pretended",
        "get_device_capability": lambda device=None: (8, 0) if card.native_bfloat16 else (7, 5),
        "memory_allocated": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "mem_get_info": lambda device=None: (8 << 30, 8 << 30),
        "is_bf16_supported": lambda including_emulation=True: including_emulation or card.native_bfloat16,
        "is_initialized": lambda: True,
        "init": lambda: None,
        "_lazy_init": lambda: None,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda state, device=None: None,
        "Event": _Event,
    }


def _forget() -> None:
    """Empty the caches of the package: they hold tensors of the device, and its description."""
    for module in [m for name, m in sys.modules.items() if name.partition(".")[0] == "cryobench"]:
        for value in list(vars(module).values()):
            if hasattr(value, "cache_clear"):
                value.cache_clear()


@contextlib.contextmanager
def pretend_cuda(*, native_bfloat16: bool = True) -> Iterator[Card]:
    """A block in which torch has one CUDA device."""
    # autograd starts a thread for each device at its first use, and then no child process may be forked: use it first
    torch.ones((), requires_grad=True).backward()
    torch._C._ensureCUDADeviceGuardSet()  # without a driver, a guard that does nothing
    card = Card(native_bfloat16)
    swapped = torch.__future__.get_swap_module_params_on_conversion()
    with pytest.MonkeyPatch.context() as patch:
        for name, stand_in in _stand_ins(card).items():
            patch.setattr(torch.cuda, name, stand_in)
        for name in ("tensor", "as_tensor", "asarray"):
            patch.setattr(torch, name, _placing(getattr(torch, name)))
        torch.__future__.set_swap_module_params_on_conversion(True)
        _cards.append(card)
        _forget()
        try:
            with _Factories():
                yield card
        finally:
            _cards.pop()
            _forget()
            torch.__future__.set_swap_module_params_on_conversion(swapped)
