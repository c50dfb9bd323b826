"""One pass through a stack in chunks. The next chunks are read while the current one is processed."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from cryobench.core import Stack

CHUNK_BYTES = 16 << 20
AHEAD = 2
"""Chunks read in advance. Memory is bounded by twice as many, independent of the length of the stack."""

Chunk = tuple[list[int], np.ndarray]
"""Numbers of images, and those images, float32 [n, *shape]."""


def stream(stack: Stack, images: Sequence[int] | None = None, *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """Read all images, or these in this order, in chunks of about `chunk_bytes` bytes.

    Yields (numbers, images float32 [n, *shape]), n >= 1. One thread reads up to `AHEAD` chunks in advance. It ends when
    the iterator is exhausted or closed, for example by leaving a `for` loop. A read error is raised after the chunks
    that precede it.
    """
    numbers = range(len(stack)) if images is None else images
    length = max(1, chunk_bytes // (4 * math.prod(stack.shape)))
    pool = ThreadPoolExecutor(1, "stream")
    ahead: deque[Future[Chunk]] = deque()
    try:
        for start in range(0, len(numbers), length):
            ahead.append(pool.submit(_read, stack, [int(number) for number in numbers[start : start + length]]))
            if len(ahead) > AHEAD:
                yield ahead.popleft().result()  # not bound to a name, which would keep the chunk alive
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read(stack: Stack, numbers: list[int]) -> Chunk:
    return numbers, stack.read_block(numbers)
