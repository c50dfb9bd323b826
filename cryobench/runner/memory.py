"""Batch sizes that adapt to the available memory."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import TypeVar

import torch

from cryobench.errors import reason_of

T = TypeVar("T")


class BatchSizes:
    """Batch size per task: halved when memory runs out, and kept for the rest of the run to avoid repeated failures."""

    def __init__(self, maximum: int, device: torch.device):
        self._maximum, self._device = maximum, device
        self._fits: dict[Hashable, int] = {}

    def fit(
        self,
        task: Hashable,
        images: int,
        attempt: Callable[[int], T],
        report: Callable[[int], None],
        *,
        maximum: int | None = None,
    ) -> T:
        """The result of attempt(batch), with the largest batch size that is allowed and fits in memory.

        task: the key of the batch size. report: called with each smaller batch before it is tried. maximum: upper
        bound.
        """
        batch = min(self.of(task, images), maximum or images)
        while True:
            try:
                return attempt(batch)
            except Exception as error:
                if batch == 1 or not is_out_of_memory(error):
                    raise
            batch = self._fits[task] = batch // 2
            report(batch)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def of(self, task: Hashable, images: int) -> int:
        """The batch size of a task with this many images."""
        return min(images, self._maximum, self._fits.get(task, images))

    def chunks(
        self, task: Hashable, images: int, attempt: Callable[[slice, int], T], report: Callable[[int], None], most: int
    ) -> Iterator[T]:
        """The results of attempt(chunk, batch) for chunks of the images, in order: whole batches, at most `most` images
        unless one batch is larger. See `fit`."""
        start = 0
        while start < images:

            def of_batch(batch: int, start: int = start) -> tuple[slice, T]:
                chunk = slice(start, min(start + batch * max(1, most // batch), images))
                return chunk, attempt(chunk, batch)

            chunk, result = self.fit(task, images, of_batch, report)
            yield result
            start = chunk.stop


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception of any library means that host or device memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    phrases = ("can't allocate memory", "not enough memory", "out of memory", "alloc_failed")
    return isinstance(error, RuntimeError) and any(phrase in reason_of(error).lower() for phrase in phrases)
