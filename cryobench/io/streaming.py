"""One pass through a stack in chunks: the next ones are read while the present one is worked on."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, runtime_checkable

import numpy as np

from cryobench.core import Stack

CHUNK_BYTES = 16 << 20
AHEAD = 2
"""Chunks read in advance: memory is bounded by twice as many, however long the stack."""

Chunk = tuple[list[int], np.ndarray]
"""Numbers of images, and those images, float32 [n, H, W]."""


@runtime_checkable
class ReadsBlocks(Protocol):
    """A stack that reads several images at once faster than one by one."""

    def read_block(self, images: Sequence[int]) -> np.ndarray:
        """These images in this order, float32 [n, H, W]."""
        ...


def stream(stack: Stack, images: Sequence[int] | None = None, *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """The images (all of them, or those of these numbers, in that order) in chunks of about `chunk_bytes` bytes.

    Yields (numbers, images float32 [n, H, W]), n >= 1. One thread reads up to `AHEAD` chunks in advance; it has ended
    when the iterator is used up or closed, which leaving a `for` loop does. Raises what reading an image raises, in its
    place: the chunks before it are yielded first.
    """
    numbers = range(len(stack)) if images is None else images
    length = max(1, chunk_bytes // (4 * math.prod(stack.shape)))
    pool = ThreadPoolExecutor(1, "stream")
    ahead: deque[Future[Chunk]] = deque()
    try:
        for start in range(0, len(numbers), length):
            ahead.append(pool.submit(_read, stack, [int(number) for number in numbers[start : start + length]]))
            if len(ahead) > AHEAD:
                yield ahead.popleft().result()  # given no name here, so that the chunk lives no longer than it is used
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read(stack: Stack, numbers: list[int]) -> Chunk:
    if isinstance(stack, ReadsBlocks):
        return numbers, stack.read_block(numbers)
    return numbers, np.stack([stack.read(number) for number in numbers])
