"""Restores the global state of the process and of its libraries after a call into a plugin.

What cannot be read or set back is listed in docs/plugins.md: `sweep --executor processes` is the answer to it.
"""

from __future__ import annotations

import builtins
import contextlib
import decimal
import gc
import json
import locale
import math
import operator
import os
import random
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from cryobench import registry
from cryobench.registry import end_forked

_MISSING = object()
_BUILTINS = builtins.__dict__
_NAMESPACES = (json, math, os, os.path, random, time, torch, torch.Tensor, torch.nn.Module, torch.fft,
               torch.linalg, torch.nn.functional, torch.random, torch.backends.cudnn, np, np.fft, np.linalg,
               np.random)  # fmt: skip
"""Modules and classes of which replaced attributes are put back. Attributes that an import adds stay."""
_SETTINGS = ("enabled", "deterministic", "benchmark", "benchmark_limit", "depthwise_kernel", "allow_tf32",
             "allow_fp16_accumulation", "allow_fp16_reduced_precision_reduction",
             "allow_bf16_reduced_precision_reduction")  # fmt: skip
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_SIGNALS = sorted(set(signal.Signals) & signal.valid_signals())
_handler: Callable[[int], Any] = getattr(sys.modules.get("_signal"), "getsignal", signal.getsignal)
"""The handler of a signal, without the conversion to an enumeration, which takes most of the time."""
_LIMITS = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
_STREAMS = ("stdin", "stdout", "stderr")
_inference_modes: list[Any] = []
"""Inference modes that were entered to undo one that a plugin left on; one ends when it is deleted."""


class _State(NamedTuple):
    """A part of the global state. unequal: values cannot be compared, so that they are always written back."""

    read: Callable[[], Any]
    write: Callable[[Any], object]
    unequal: bool = False


def _attributes(place: Any, *names: str) -> list[_State]:
    """Attributes of a place, each a state; those that this version of the library does not have are left out."""
    return [_State(lambda n=name: getattr(place, n), lambda value, n=name: setattr(place, n, value))
            for name in names if hasattr(place, name)]  # fmt: skip


def _write_device(device: torch.device) -> None:
    torch.set_default_device(None if device == torch.device("cpu") else device)  # None: without the cost of a mode


def _write_inference(on: bool) -> None:
    _inference_modes.append(torch.inference_mode(on))
    _inference_modes[-1].__enter__()


def _pop(length: Callable[[], int], pop: Callable[[], object]) -> _State:
    """A stack of modes, from which those are removed that a plugin did not leave."""

    def write(before: int) -> None:
        while length() > before:
            pop()

    return _State(length, write)


def _read_autocast() -> list[tuple[str, bool, torch.dtype]]:
    return [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]


def _write_autocast(before: list[tuple[str, bool, torch.dtype]]) -> None:
    for kind, enabled, dtype in before:
        torch.set_autocast_enabled(kind, enabled)
        torch.set_autocast_dtype(kind, dtype)


def _write_deterministic(mode: int) -> None:
    if "torch._inductor.config" in sys.modules:  # has a copy; to import it takes seconds
        torch.use_deterministic_algorithms(mode > 0, warn_only=mode == 1)
    torch.set_deterministic_debug_mode(mode)


def _cuda_device() -> int | None:
    return torch.cuda.current_device() if torch.cuda.is_initialized() else None


def _torch_states() -> list[_State]:
    backends, sdp = torch.backends, torch.backends.cuda
    kinds = ("flash", "mem_efficient", "math", "cudnn")
    precisions = [backends, backends.cudnn, backends.cuda.matmul, backends.mkldnn]
    precisions += [getattr(place, part) for place in (backends.cudnn, backends.mkldnn)
                   for part in ("matmul", "conv", "rnn") if hasattr(place, part)]  # fmt: skip
    return [
        _State(torch.get_rng_state, torch.set_rng_state, unequal=True),
        _State(lambda: torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None,
               lambda before: None if before is None else torch.cuda.set_rng_state_all(before), unequal=True),
        _State(torch.get_default_dtype, torch.set_default_dtype),
        _State(torch.get_default_device, _write_device),
        _pop(torch._C._len_torch_function_stack, torch._C._pop_torch_function_stack),
        _pop(torch._C._len_torch_dispatch_stack, torch._C._pop_torch_dispatch_stack),
        _State(_cuda_device, lambda index: None if index is None else torch.cuda.set_device(index)),
        _State(torch.get_num_threads, torch.set_num_threads),
        _State(torch.is_inference_mode_enabled, _write_inference),
        _State(torch.is_grad_enabled, torch.set_grad_enabled),
        _State(_read_autocast, _write_autocast),
        _State(torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
        _State(lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
               lambda before: torch.set_anomaly_enabled(*before)),
        _State(torch.get_deterministic_debug_mode, _write_deterministic),
        *_attributes(torch.utils.deterministic, "fill_uninitialized_memory"),
        _State(torch.is_warn_always_enabled, torch.set_warn_always),
        # numbers below the normal range are flushed to zero or not; the flag can be set, but not read
        _State(lambda: bool(np.float64(5e-324) * np.float64(1) == 0), torch.set_flush_denormal),
        _State(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        *_attributes(backends.cudnn, *_SETTINGS),
        *_attributes(backends.cuda.matmul, *_SETTINGS),
        *_attributes(backends.mkldnn, "enabled", "deterministic"),
        *_attributes(backends.opt_einsum, "enabled", "strategy"),
        *_attributes(backends.quantized, "engine"),
        # after the older names of the same settings, which change these too
        *(state for place in precisions for state in _attributes(place, "fp32_precision")),
        _State(backends.mha.get_fastpath_enabled, backends.mha.set_fastpath_enabled),
        *(_State(getattr(sdp, f"{kind}_sdp_enabled"), getattr(sdp, f"enable_{kind}_sdp")) for kind in kinds),
    ]  # fmt: skip


def _signals() -> dict[int, Any]:
    return {number: _handler(number) for number in _SIGNALS}


def _write_signals(before: dict[int, Any]) -> None:
    if threading.current_thread() is threading.main_thread():
        for number, handler in before.items():
            if _handler(number) is not handler and handler is not None:  # None: set by C code
                signal.signal(number, handler)


def _write_timers(before: list[tuple[float, float]]) -> None:
    """Cancel timers that were started: their signal would end the process. One that ran before keeps running."""
    for timer, (seconds, _) in zip(_TIMERS, before, strict=True):
        if seconds == 0:
            signal.setitimer(timer, 0)


def _limits() -> list[tuple[int, int]]:
    return [resource.getrlimit(limit) for limit in _LIMITS]


def _write_limits(before: list[tuple[int, int]]) -> None:
    for limit, (soft, _) in zip(_LIMITS, before, strict=True):
        hard = resource.getrlimit(limit)[1]
        resource.setrlimit(limit, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _process_states() -> list[_State]:
    affinity = (
        [_State(lambda: os.sched_getaffinity(0), lambda cores: os.sched_setaffinity(0, cores))]
        if hasattr(os, "sched_getaffinity")
        else []
    )
    return [
        _State(os.getcwd, os.chdir),
        _State(_umask, os.umask),
        _State(_signals, _write_signals),
        _State(lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ()),
               lambda mask: signal.pthread_sigmask(signal.SIG_SETMASK, mask)),
        _State(lambda: [signal.getitimer(timer) for timer in _TIMERS], _write_timers),
        _State(_limits, _write_limits),
        *affinity,
        _State(np.geterr, lambda before: np.seterr(**before)),
        _State(np.geterrcall, np.seterrcall),
        _State(np.getbufsize, np.setbufsize),
        _State(np.get_printoptions, lambda before: np.set_printoptions(**before)),
        _State(np.random.get_state, np.random.set_state, unequal=True),
        _State(random.getstate, random.setstate),
        _State(lambda: locale.setlocale(locale.LC_ALL), lambda before: locale.setlocale(locale.LC_ALL, before)),
        _State(lambda: decimal.getcontext().copy(), decimal.setcontext, unequal=True),
        _State(sys.getrecursionlimit, sys.setrecursionlimit),
        _State(sys.get_int_max_str_digits, sys.set_int_max_str_digits),
        _State(sys.getswitchinterval, sys.setswitchinterval),
        _State(sys.gettrace, sys.settrace),
        _State(sys.getprofile, sys.setprofile),
        *_attributes(sys, "excepthook", "displayhook", "unraisablehook"),
        *_attributes(threading, "excepthook"),
        *_attributes(tempfile, "tempdir"),
        _State(gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
        _State(gc.get_threshold, lambda before: gc.set_threshold(*before)),
        _State(socket.getdefaulttimeout, socket.setdefaulttimeout),
    ]  # fmt: skip


_variables: Any = getattr(os.environ, "_data", os.environ)
"""The encoded variables of the process; to decode all of them takes most of the time."""


def _write_environment(before: dict[Any, Any]) -> None:
    decoded = {os.fsdecode(name): os.fsdecode(value) for name, value in before.items()}
    for name in set(os.environ) - set(decoded):
        del os.environ[name]
    os.environ.update(decoded)


def _write_path(before: tuple[list[str], list[str]]) -> None:
    """The former entries first, so that an added one hides no module; a package that adds one may still need it."""
    path, entries = before
    path[:] = [*entries, *(entry for entry in sys.path if entry not in entries)]
    sys.path = path


def _write_filters(before: tuple[list[Any], list[Any], Any]) -> None:
    warnings.filters, entries, warnings.showwarning = before  # type: ignore[assignment, misc]
    warnings.filters[:] = entries  # type: ignore[index]
    with warnings.catch_warnings():
        pass  # makes the module forget which filters it has looked up


def _environment_states() -> list[_State]:
    """What packages set when they are imported, and rely on afterwards."""
    return [
        _State(lambda: dict(_variables), _write_environment),
        _State(lambda: (sys.path, list(sys.path)), _write_path),
        _State(lambda: (warnings.filters, list(warnings.filters), warnings.showwarning), _write_filters),
    ]


_STATES = [*_torch_states(), *_process_states()]
_ENVIRONMENT = _environment_states()


class restored:
    """A block after which the global state is as it was before: of torch, numpy, Python and the process.

    environment: include what packages set when they are imported: variables, the module path, warnings filters.
    seed: of the global random states of torch, numpy and Python in the block. A child process that the block forked
    ends here, see `end_forked`.
    """

    def __init__(self, *, environment: bool = True, seed: int | None = None):
        self._states = [*_STATES, *(_ENVIRONMENT if environment else [])]
        self._seed = seed

    def __enter__(self) -> None:
        self._process = os.getpid()
        self._builtins = dict(_BUILTINS)
        self._namespaces = [(place, dict(vars(place))) for place in _NAMESPACES]
        self._streams = [(name, getattr(sys, name)) for name in _STREAMS]
        self._copies = _copies()
        self._before = [_read(state) for state in self._states]
        if self._seed is not None:
            _seed_torch(self._seed)
            np.random.seed(self._seed % 2**32)
            random.seed(self._seed)

    def __exit__(self, *raised: object) -> None:
        _BUILTINS.update(self._builtins)  # first, and without one of them: the rest needs them
        for place, attributes in self._namespaces:
            _restore_namespace(place, attributes)
        end_forked(self._process)
        _restore_descriptors(self._copies)
        for number, (name, stream) in enumerate(self._streams):
            setattr(sys, name, _opened(stream, number))
        for state, value in zip(self._states, self._before, strict=True):
            _restore(state, value)


def _read(state: _State) -> Any:
    try:
        return state.read()
    except Exception:  # such as the folder that was removed, or settings of torch that contradict each other
        return _MISSING


def _restore(state: _State, before: Any) -> None:
    if before is not _MISSING and (state.unequal or _read(state) != before):
        with contextlib.suppress(Exception):  # it cannot be set back, such as a limit or a removed folder
            state.write(before)


def _restore_namespace(place: Any, before: dict[str, Any]) -> None:
    """Put back attributes that were replaced or deleted, and remove those that hide one of a base class."""
    now = vars(place)
    if len(now) == len(before) and all(map(operator.is_, now.values(), before.values())):
        return
    for name, value in before.items():
        if now.get(name, _MISSING) is not value:
            setattr(place, name, value)
    if isinstance(place, type) and len(now) > len(before):
        for name in set(now) - set(before):
            if any(name in vars(base) for base in place.__mro__[1:]):
                delattr(place, name)


def _seed_torch(seed: int) -> None:
    """Seed torch on the devices in use. `torch.manual_seed` keeps, for devices that are not in use, every call with the
    text of its stack: milliseconds and memory for each batch."""
    if torch.cuda.is_initialized() or torch.backends.mps.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def _copies() -> list[int | None]:
    """Copies of the descriptors 0, 1 and 2; None for one that is closed."""
    copies: list[int | None] = []
    for number in range(3):
        try:
            copies.append(os.dup(number))
        except OSError:
            copies.append(None)
    return copies


def _restore_descriptors(copies: Sequence[int | None]) -> None:
    for number, copy in enumerate(copies):
        if copy is not None:
            with contextlib.suppress(OSError):  # the block closed the copy
                os.dup2(copy, number)
                os.close(copy)


def _opened(stream: Any, number: int) -> Any:
    """A stream, or a new one for its descriptor if it was closed."""
    if getattr(stream, "closed", False) is True:
        mode = "r" if number == 0 else "w"
        return open(number, mode, errors="replace", closefd=False, buffering=1)
    return stream


# a plugin must not change the state for others when it is imported; packages rely on the environment that they set
registry.importing = lambda: restored(environment=False)
