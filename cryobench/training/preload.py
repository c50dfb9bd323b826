"""Where the data of a run are kept, and the thread that reads ahead. Neither changes a batch."""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psutil
import torch

from cryobench.core import Examples, Shape, Window
from cryobench.errors import ParameterError
from cryobench.limits import available_memory, bytes_text
from cryobench.training.settings import AUTO, DEVICE, NONE, RAM

_SHARE = 0.5
"""Of the free memory that data may take when the place is chosen automatically."""
READERS = max(2, min(8, os.cpu_count() or 1))
"""Threads that read ahead, and batches that are ready or being read: they wait for the disk, not for the processor."""
_BLOCK = 2**27
"""Bytes of examples of one shape that are read together to be kept."""


class Kept(Examples):
    """Examples that are read once and stay in memory, or on a device, after `keep`; before, each time when needed."""

    def __init__(self, examples: Examples):
        self.label, self.origin = examples.label, examples.origin
        self._examples = examples
        self._device: torch.device | None = None
        self._arrays: list[torch.Tensor | None] = []
        self._whole: torch.Tensor | None = None
        self._lock = threading.Lock()

    def keep(self, device: torch.device) -> None:
        """Keep each example on this device from now on."""
        self._device, self._arrays = device, [None] * len(self)

    def load(self) -> None:
        """Read those that have not been read, if they are kept.

        Examples of one shape are read in blocks, which a source that computes them does many times as fast, and become
        one array, of which a batch is taken at once.
        """
        shapes = {self.shape(index) for index in range(len(self._arrays))}
        if len(shapes) != 1 or any(found is not None for found in self._arrays):
            for index in range(len(self._arrays)):
                self._array(index)
        elif self._whole is None:
            (shape,) = shapes
            whole = torch.empty(len(self), *shape, device=self._device)
            length = max(1, _BLOCK // (4 * math.prod(shape)))
            for start in range(0, len(self), length):
                block = range(start, min(start + length, len(self)))
                whole[start : block.stop] = self._examples.read_block(block).to(self._device)
            self._whole = whole

    def _array(self, index: int) -> torch.Tensor:
        if self._whole is not None:
            return self._whole[index]
        with self._lock:
            found = self._arrays[index]
            if found is None:
                found = self._arrays[index] = self._examples.read(index).to(self._device)
        return found

    def __len__(self) -> int:
        return len(self._examples)

    def shape(self, index: int) -> Shape:
        return self._examples.shape(index)

    def read(self, index: int, window: Window | None = None) -> torch.Tensor:
        if self._device is None:
            return self._examples.read(index, window)
        found = self._array(index)
        return found if window is None else found[(slice(None), *window)]

    def read_block(self, indices: Sequence[int]) -> torch.Tensor:
        if self._whole is not None:
            return self._whole[torch.tensor(indices, device=self._whole.device)]
        return self._examples.read_block(indices) if self._device is None else super().read_block(indices)

    def name(self, index: int) -> str:
        return self._examples.name(index)

    def digests(self, index: int) -> Sequence[str]:
        return self._examples.digests(index)

    @property
    def facts(self) -> Mapping[str, Any]:
        return self._examples.facts

    @property
    def nbytes(self) -> int:
        return self._examples.nbytes


def choose_place(preload: str, needed: int, drawn: int, device: torch.device) -> str:
    """Where data of `needed` bytes are kept by a run that draws `drawn` bytes of them: none, ram or device.

    auto: on a GPU or in memory if the data take at most half of what is free there and the run draws more than it would
    read at its start. Raises `ParameterError` if a stated place is too small.
    """
    free = {RAM: _free_memory()}
    if preload in (AUTO, DEVICE) and device.type == "cuda":
        free[DEVICE] = torch.cuda.mem_get_info(device)[0]
    if preload == DEVICE and DEVICE not in free:
        preload = RAM  # the device is the processor, whose memory it is
    if preload in free and needed > free[preload]:
        raise ParameterError(f"--preload {preload} needs {bytes_text(needed)}, but {bytes_text(free[preload])} are "
                             f"free; give --preload {NONE} to read the data when they are needed")  # fmt: skip
    if preload != AUTO:
        return preload
    fits = [place for place in (DEVICE, RAM) if needed <= _SHARE * free.get(place, 0) and needed <= drawn]
    return fits[0] if fits else NONE


def place_text(place: str, needed: int) -> str:
    """A message for the user."""
    where = {NONE: "read when needed", RAM: "kept in memory", DEVICE: "kept on the device"}[place]
    return f"training data: {bytes_text(needed)}, {where} (--preload {place})"


def _free_memory() -> int:
    return min(psutil.virtual_memory().available, available_memory())


class ReadAhead:
    """Batches of successive steps, read by threads before they are asked for. `close` waits for the threads."""

    def __init__(self, read: Callable[[int], Any], last: int):
        self._read, self._last = read, last
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="read-ahead")
        self._waiting: deque[tuple[int, Future[Any]]] = deque()
        self._latest: tuple[int, Any] = (-1, None)

    def __call__(self, step: int) -> Any:
        """The batch of a step. Raises what reading it raises."""
        if self._latest[0] == step:
            return self._latest[1]
        if self._waiting and self._waiting[0][0] != step:
            self._cancel()
        following = self._waiting[-1][0] + 1 if self._waiting else step
        for ahead in range(following, min(step + READERS, self._last) + 1):
            self._waiting.append((ahead, self._threads.submit(self._read, ahead)))
        self._latest = step, self._waiting.popleft()[1].result()
        return self._latest[1]

    def _cancel(self) -> None:
        for _, future in self._waiting:
            future.cancel()
        self._waiting.clear()

    def close(self) -> None:
        """Stop reading."""
        self._cancel()
        self._threads.shutdown(wait=True, cancel_futures=True)


@contextmanager
def reading(read: Callable[[int], Any], last: int, *, ahead: bool) -> Iterator[Callable[[int], Any]]:
    """A function from a step to its batch, up to step `last`; ahead: read by threads before it is called."""
    if not ahead:
        yield read
        return
    batches = ReadAhead(read, last)
    try:
        yield batches
    finally:
        batches.close()
