"""The course of a reconstruction, for who wants to watch: solvers offer images as they go, a recording keeps some."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

Pair = tuple[torch.Tensor, torch.Tensor]
_recording: ContextVar[Recording | _Mapped | None] = ContextVar("cryobench_frames", default=None)


class Recording:
    """At most `most` of the pairs that are offered, evenly spread, and the last, as float32 on the CPU.

    frames: (the iterate, the estimate of the image then), each [n, H, W], of the first n images of the batch.
    steps: the number of each, counted from 1 as they were offered.
    """

    def __init__(self, images: int = 1, most: int = 64):
        self.frames: list[Pair] = []
        self.steps: list[int] = []
        self._images, self._most, self._stride, self._offered = images, most, 1, 0
        self._last: Pair | None = None

    def offer(self, x: torch.Tensor, estimate: torch.Tensor) -> None:
        """A pair [B, 1, H, W] each; kept if its turn has come. When too many are kept every other one goes."""
        turn = self._offered % self._stride == 0
        self._offered += 1
        self._last = self._first_images(x), self._first_images(estimate)
        if turn:
            self._keep(self._last)
            if len(self.frames) > self._most:
                del self.frames[1::2], self.steps[1::2]
                self._stride *= 2

    def finish(self) -> None:
        """Nothing more will be offered: what was offered last is kept, whether it was its turn or not."""
        if self._last is not None and self.steps[-1] != self._offered:
            self._keep(self._last)
        self._last = None

    def _first_images(self, images: torch.Tensor) -> torch.Tensor:
        """[n, H, W], a copy where they lie: solvers go on writing into theirs."""
        return images[: self._images, 0].detach().clone()

    def _keep(self, pair: Pair) -> None:
        x, estimate = (images.float().cpu() for images in pair)
        self.frames.append((x, estimate))
        self.steps.append(self._offered)


@contextmanager
def recording(images: int = 1, most: int = 64, *, into: Recording | None = None) -> Iterator[Recording]:
    """Keep what solvers offer inside the block, in a new recording or `into` one."""
    kept = Recording(images, most) if into is None else into
    token = _recording.set(kept)
    try:
        yield kept
    finally:
        _recording.reset(token)
        kept.finish()


class _Mapped:
    """A recording of images on another scale than they are offered on."""

    def __init__(self, kept: Recording | _Mapped, to_scale: Callable[[torch.Tensor], torch.Tensor]):
        self._kept, self._to_scale = kept, to_scale

    def offer(self, x: torch.Tensor, estimate: torch.Tensor) -> None:
        self._kept.offer(self._to_scale(x), self._to_scale(estimate))


@contextmanager
def mapped(to_scale: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Map images [B, 1, H, W] offered inside the block before they are kept."""
    kept = _recording.get()
    token = _recording.set(None if kept is None else _Mapped(kept, to_scale))
    try:
        yield
    finally:
        _recording.reset(token)


def offer(x: torch.Tensor, estimate: torch.Tensor) -> None:
    """An iterate x_t and the estimate of the image then, [B, 1, H, W]; costs nothing unless someone records."""
    kept = _recording.get()
    if kept is not None:
        kept.offer(x, estimate)
