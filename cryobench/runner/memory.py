"""How many images go at once: fewer where memory ran out."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

import torch

T = TypeVar("T")


class BatchSizes:
    """How many images go at once, by what is done with them: halved where memory ran out, and kept so for the rest of
    the run, so that the failure is not repeated."""

    def __init__(self, most: int, device: torch.device):
        self._most, self._device = most, device
        self._fits: dict[Hashable, int] = {}

    def fit(
        self,
        task: Hashable,
        images: int,
        attempt: Callable[[int], T],
        tell: Callable[[int], None],
        *,
        most: int | None = None,
    ) -> T:
        """What attempt(batch) gives, with as many of the images at once as is asked for and memory holds.

        task: what is remembered. tell: called with each smaller batch before it is tried. most: a bound of this task.
        """
        batch = min(images, self._most, self._fits.get(task, images), most or images)
        while True:
            try:
                return attempt(batch)
            except Exception as error:
                if batch == 1 or not is_out_of_memory(error):
                    raise
            batch = self._fits[task] = batch // 2
            tell(batch)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on the device or in the machine, by whichever library noticed."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    signs = ("can't allocate memory", "not enough memory", "out of memory", "alloc_failed")
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in signs)
