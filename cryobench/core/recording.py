"""Recording of intermediate images: solvers offer their iterates, and an active recording keeps some of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

Pair = tuple[torch.Tensor, torch.Tensor]
_recording: ContextVar[Recording | _Mapped | None] = ContextVar("cryobench_frames", default=None)


class Recording:
    """At most `most` of the offered pairs, evenly spaced, and the last pair, as float32 on the CPU.

    frames: pairs (iterate, current estimate of the image), each [n, H, W], for the first n images of the batch.
    steps: the step number of each pair, from 1.
    """

    def __init__(self, images: int = 1, most: int = 64):
        self.frames: list[Pair] = []
        self.steps: list[int] = []
        self._images, self._most, self._stride, self._offered = images, most, 1, 0
        self._last: Pair | None = None

    def offer(self, x: torch.Tensor, estimate: torch.Tensor) -> None:
        """Offer a pair, [B, 1, H, W] each. Every stride-th is kept; if they are too many, half are dropped."""
        due = self._offered % self._stride == 0
        self._offered += 1
        self._last = self._first_images(x), self._first_images(estimate)
        if due:
            self._keep(self._last)
            if len(self.frames) > self._most:
                del self.frames[1::2], self.steps[1::2]
                self._stride *= 2

    def finish(self) -> None:
        """End the recording; the last pair is always kept."""
        if self._last is not None and self.steps[-1] != self._offered:
            self._keep(self._last)
        self._last = None

    def _first_images(self, images: torch.Tensor) -> torch.Tensor:
        """[n, H, W], a copy on the same device, since solvers may modify the originals in place."""
        return images[: self._images, 0].detach().clone()

    def _keep(self, pair: Pair) -> None:
        x, estimate = (images.float().cpu() for images in pair)
        self.frames.append((x, estimate))
        self.steps.append(self._offered)


@contextmanager
def recording(images: int = 1, most: int = 64, *, into: Recording | None = None) -> Iterator[Recording]:
    """Record the pairs offered inside the block, in a new recording or in `into`."""
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


@contextmanager
def paused() -> Iterator[None]:
    """Keep nothing that is offered inside the block, as for images that are parts of the recorded one."""
    token = _recording.set(None)
    try:
        yield
    finally:
        _recording.reset(token)


def offer(x: torch.Tensor, estimate: torch.Tensor) -> None:
    """Offer an iterate x_t and the current estimate of the image, [B, 1, H, W]; does nothing without a recording."""
    kept = _recording.get()
    if kept is not None:
        kept.offer(x, estimate)
