"""What a solver costs: calls counted by wrappers, wall time with the device synchronised, peak memory."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import psutil
import torch

from cryobench.core.operator import LinearOperator
from cryobench.errors import IncompatibleError, PluginError

NETWORK = "network"
_MIB = 2**20
_tally: ContextVar[Tally | None] = ContextVar("cryobench_calls", default=None)


class Tally:
    """Calls by name. images: how many images they were on; a call on a batch of B images counts B."""

    def __init__(self) -> None:
        self.images: Counter[str] = Counter()
        self._seconds: dict[str, float] = {}
        self._spans: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @property
    def seconds(self) -> dict[str, float]:
        """How long the calls took that were made in a `calling`. On CUDA of the device, whose queue must be empty."""
        total = dict(self._seconds)
        for name, start, stop in self._spans:
            total[name] = total.get(name, 0.0) + start.elapsed_time(stop) / 1000
        return total

    @contextmanager
    def timed(self, name: str, device: torch.device) -> Iterator[None]:
        """Add the time of the block, without waiting for the device."""
        if device.type == "cuda":
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            stop.record()
            self._spans.append((name, start, stop))
        else:
            begin = time.perf_counter()
            yield
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - begin


@contextmanager
def counting() -> Iterator[Tally]:
    """Collect the calls that are made inside the block."""
    tally = Tally()
    token = _tally.set(tally)
    try:
        yield tally
    finally:
        _tally.reset(token)


def count(name: str, images: int) -> None:
    """Count one call of `name` on each of `images` images. Wrappers of networks count `NETWORK`."""
    tally = _tally.get()
    if tally is not None:
        tally.images[name] += images


def calling(name: str, x: torch.Tensor) -> AbstractContextManager[None]:
    """A call of `name` on a batch x [B, ...]: counted, and the block timed on the device of x."""
    tally = _tally.get()
    if tally is None:
        return nullcontext()
    tally.images[name] += len(x)
    return tally.timed(name, x.device)


_ATTRIBUTES = (
    "image_shape", "channels", "measurement_shape", "dtype", "device", "nominal_compression", "nonnegative",
    "noise_in_range", "closed_form", "block", "images",
)  # fmt: skip


class CountingOperator(LinearOperator):
    """An operator that counts the calls of its applications and is otherwise the one it wraps.

    Images and measurements whose shape is not the operator's raise `IncompatibleError`, and results of another shape
    `PluginError`: they could broadcast, and the result would be wrong.
    """

    def __init__(self, operator: LinearOperator):
        self._operator = operator
        for name in _ATTRIBUTES:
            setattr(self, name, getattr(operator, name))
        self.mean_response = operator.mean_response  # set-up, made once for a run: no call of a solver's

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return self._called("A", self._image(x))

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self._called("A_adjoint", self._measured(y))

    def A_adjoint_A(self, x: torch.Tensor) -> torch.Tensor:
        return self._called("A_adjoint_A", self._image(x))

    def A_dagger(self, y: torch.Tensor) -> torch.Tensor:
        return self._called("A_dagger", self._measured(y))

    def A_dagger_A(self, x: torch.Tensor, gamma: torch.Tensor | float = math.inf) -> torch.Tensor:
        return self._called("A_dagger_A", self._image(x), gamma)

    def prox_l2(self, z: torch.Tensor, y: torch.Tensor, gamma: float) -> torch.Tensor:
        return self._called("prox_l2", self._image(z), self._measured(y), gamma)

    def on_range(self, y: torch.Tensor) -> torch.Tensor:
        return self._called("on_range", self._measured(y))

    def _called(self, name: str, x: torch.Tensor, *others: object) -> torch.Tensor:
        with calling(name, x):
            result = getattr(self._operator, name)(x, *others)
        expected = (len(x), *(self.measurement_shape if name in ("A", "on_range") else self.domain_shape))
        if tuple(result.shape) != expected:
            raise PluginError(f"{name} of the operator returned shape {list(result.shape)}, expected {list(expected)}")
        return result

    def _image(self, x: torch.Tensor) -> torch.Tensor:
        return _checked("an image", x, self.domain_shape)

    def _measured(self, y: torch.Tensor) -> torch.Tensor:
        return _checked("a measurement", y, tuple(self.measurement_shape))

    def compute_norm(self) -> float:
        return self._operator.compute_norm()

    @property
    def norms(self) -> torch.Tensor:
        return self._operator.norms

    @property
    def rank(self) -> int:
        return self._operator.rank

    @property
    def transfer(self) -> torch.Tensor | None:
        return self._operator.transfer

    def select(self, images: slice | torch.Tensor) -> CountingOperator:
        selected = self._operator.select(images)
        return self if selected is self._operator else CountingOperator(selected)

    def rows(self, part: slice | torch.Tensor) -> CountingOperator:
        return CountingOperator(self._operator.rows(part))

    def __getattr__(self, name: str):
        # what a solver knows of a particular operator (its masks, its weights) stays within reach
        if name.startswith("__") or "_operator" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._operator, name)


def _checked(what: str, x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    if tuple(x.shape[1:]) != shape:
        raise IncompatibleError(f"the operator was given {what} of shape {list(x.shape)}, expected [B, "
                                f"{', '.join(map(str, shape))}]")  # fmt: skip
    return x


class Stopwatch:
    """Wall seconds of a block, the device's queue emptied before and after: `with Stopwatch(device) as watch`."""

    def __init__(self, device: torch.device):
        self._device = device
        self.seconds = 0.0

    def __enter__(self) -> Stopwatch:
        _synchronise(self._device)
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        _synchronise(self._device)
        self.seconds += time.perf_counter() - self._start


class PeakMemory:
    """Peak memory of a block in MiB: `with PeakMemory(device) as peak: ...; peak.mib`.

    On CUDA the most device memory allocated. On the CPU the highest resident set, sampled every 5 ms in a thread,
    above that before the block: an estimate, which the allocator's reuse of freed pages can make too small.
    """

    def __init__(self, device: torch.device, interval: float = 0.005):
        self._device = device
        self._interval = interval
        self.mib = 0.0

    def __enter__(self) -> PeakMemory:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return self
        self._process = psutil.Process()
        self._before = self._highest = self._process.memory_info().rss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            self.mib = torch.cuda.max_memory_allocated(self._device) / _MIB
            return
        self._stop.set()
        self._thread.join()
        self._highest = max(self._highest, self._process.memory_info().rss)
        self.mib = (self._highest - self._before) / _MIB

    def _sample(self) -> None:
        while not self._stop.wait(self._interval):
            self._highest = max(self._highest, self._process.memory_info().rss)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
