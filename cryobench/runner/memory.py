"""Batch sizes that adapt to the available memory."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

import torch

T = TypeVar("T")


class BatchSizes:
    """Batch size per task: halved when memory runs out, and kept for the rest of the run to avoid repeated failures."""

    def __init__(self, most: int, device: torch.device):
        self._most, self._device = most, device
        self._fits: dict[Hashable, int] = {}

    def fit(
        self,
        task: Hashable,
        images: int,
        attempt: Callable[[int], T],
        report: Callable[[int], None],
        *,
        most: int | None = None,
    ) -> T:
        """The result of attempt(batch), with the largest batch that the settings allow and memory holds.

        task: the key of the batch size. report: called with each smaller batch before it is tried. most: upper bound.
        """
        batch = min(images, self._most, self._fits.get(task, images), most or images)
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


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on the device or in the machine, by whichever library noticed."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    signs = ("can't allocate memory", "not enough memory", "out of memory", "alloc_failed")
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in signs)
