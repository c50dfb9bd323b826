"""Measures the cost of a solver: calls, wall time with the device synchronised, and peak memory."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from time import perf_counter  # bound here: a solver may replace the function of the module

import psutil
import torch

from cryobench.core.operator import Crop, LinearOperator, Window
from cryobench.errors import IncompatibleError, PluginError

NETWORK = "network"
_MIB = 2**20
_tally: ContextVar[Tally | None] = ContextVar("cryobench_calls", default=None)


class Tally:
    """Call counts by name. images: the number of images processed; a call on a batch of B images counts B."""

    def __init__(self) -> None:
        self.images: Counter[str] = Counter()
        self._seconds: dict[str, float] = {}
        self._spans: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @property
    def seconds(self) -> dict[str, float]:
        """Duration of the calls made inside `calling`. On CUDA it is device time, and the queue must be empty."""
        total = dict(self._seconds)
        for name, start, stop in self._spans:
            total[name] = total.get(name, 0.0) + start.elapsed_time(stop) / 1000
        return total

    @contextmanager
    def timed(self, name: str, device: torch.device) -> Iterator[None]:
        """Add the duration of the block, without waiting for the device."""
        if device.type == "cuda":
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            stop.record()
            self._spans.append((name, start, stop))
        else:
            begin = perf_counter()
            yield
            self._seconds[name] = self._seconds.get(name, 0.0) + perf_counter() - begin


@contextmanager
def counting() -> Iterator[Tally]:
    """Count the calls made inside the block."""
    tally = Tally()
    token = _tally.set(tally)
    try:
        yield tally
    finally:
        _tally.reset(token)


def count(name: str, images: int) -> None:
    """Count a call of `name` on `images` images. Network wrappers count `NETWORK`."""
    tally = _tally.get()
    if tally is not None:
        tally.images[name] += images


def calling(name: str, x: torch.Tensor) -> AbstractContextManager[None]:
    """Count a call of `name` on a batch x [B, ...], and time the block on the device of x."""
    tally = _tally.get()
    if tally is None:
        return nullcontext()
    tally.images[name] += len(x)
    return tally.timed(name, x.device)


_ATTRIBUTES = (
    "image_shape", "channels", "measurement_shape", "dtype", "device", "nominal_compression", "nonnegative",
    "noise_in_range", "closed_form", "identity", "block", "images", "views", "convolution",
)  # fmt: skip


class CountingOperator(LinearOperator):
    """A wrapper that counts and times the calls of an operator.

    Images and measurements whose shape is not the operator's raise `IncompatibleError`, and results of another shape
    `PluginError`: they could broadcast, and the result would be wrong.
    """

    def __init__(self, operator: LinearOperator):
        self._operator = operator
        for name in _ATTRIBUTES:
            setattr(self, name, getattr(operator, name))
        self.mean_response = operator.mean_response  # computed during set-up: not counted as a call of the solver

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

    def kernel(self) -> torch.Tensor:
        return self._operator.kernel()

    def compute_norm(self) -> float:
        return self._operator.compute_norm()

    @property
    def norms(self) -> torch.Tensor:
        return self._operator.norms

    @property
    def rank(self) -> int:
        return self._operator.rank

    @property
    def noise_rank(self) -> int:
        return self._operator.noise_rank

    @property
    def transfer(self) -> torch.Tensor | None:
        return self._operator.transfer

    @property
    def positions(self) -> tuple[torch.Tensor, ...] | None:
        return self._operator.positions

    def select(self, images: slice | torch.Tensor) -> CountingOperator:
        selected = self._operator.select(images)
        return self if selected is self._operator else CountingOperator(selected)

    def rows(self, part: slice | torch.Tensor) -> CountingOperator:
        return CountingOperator(self._operator.rows(part))

    @property
    def crop_step(self) -> int:
        return self._operator.crop_step

    def crop(self, window: Window) -> Crop:
        crop = self._operator.crop(window)
        return Crop(CountingOperator(crop.operator), crop.measurements)

    def __getattr__(self, name: str):
        # solvers written for a particular operator may read its attributes (masks, weights)
        if name.startswith("__") or "_operator" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._operator, name)


def _checked(what: str, x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    if tuple(x.shape[1:]) != shape:
        raise IncompatibleError(f"the operator was given {what} of shape {list(x.shape)}, expected [B, "
                                f"{', '.join(map(str, shape))}]")  # fmt: skip
    return x


class Stopwatch:
    """Wall time of a block in seconds, synchronised with the device: `with Stopwatch(device) as watch`."""

    def __init__(self, device: torch.device):
        self._device = device
        self.seconds = 0.0

    def __enter__(self) -> Stopwatch:
        _synchronise(self._device)
        self._start = perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        _synchronise(self._device)
        self.seconds += perf_counter() - self._start


class PeakMemory:
    """Peak memory of a block in MiB: `with PeakMemory(device) as peak: ...; peak.mib`.

    On CUDA it is the peak of allocated device memory. On the CPU it is the increase of the resident set, sampled every
    5 ms in a thread; it can be too small, because the allocator reuses freed pages.
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
