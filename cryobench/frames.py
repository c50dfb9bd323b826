"""The course of a reconstruction, for who wants to watch: solvers offer images as they go, a recording keeps some."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_recording: ContextVar[Recording | None] = ContextVar("cryobench_frames", default=None)


class Recording:
    """At most `most` of the pairs that are offered, evenly spread, as float32 on the CPU.

    frames: (the iterate, the estimate of the image then), each [n, H, W], of the first n images of the batch.
    """

    def __init__(self, images: int = 1, most: int = 64):
        self.frames: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._images, self._most, self._stride, self._offered = images, most, 1, 0

    def offer(self, x: torch.Tensor, estimate: torch.Tensor) -> None:
        """A pair [B, 1, H, W] each; kept if its turn has come. When too many are kept every other one goes."""
        if self._offered % self._stride == 0:
            kept = tuple(image[: self._images, 0].detach().float().cpu().clone() for image in (x, estimate))
            self.frames.append(kept)
            if len(self.frames) > self._most:
                del self.frames[1::2]
                self._stride *= 2
        self._offered += 1


@contextmanager
def recording(images: int = 1, most: int = 64) -> Iterator[Recording]:
    """Keep what solvers offer inside the block."""
    kept = Recording(images, most)
    token = _recording.set(kept)
    try:
        yield kept
    finally:
        _recording.reset(token)


def offer(x: torch.Tensor, estimate: torch.Tensor) -> None:
    """An iterate x_t and the estimate of the image then, [B, 1, H, W]; costs nothing unless someone records."""
    kept = _recording.get()
    if kept is not None:
        kept.offer(x, estimate)
