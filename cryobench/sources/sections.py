"""The sections or reslices of volumes, as a stack of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from cryobench.core import Stack, Window

View = Literal["volumes", "sections", "reslices"]
AXES = {"sections": 0, "reslices": 1}
"""The axis of a volume (z, y, x) along which its images lie, by view."""


def viewed(volumes: Stack, view: View) -> Stack:
    """The volumes themselves, or a stack of their sections Y x X or reslices Z x X."""
    return volumes if view == "volumes" else SectionStack(volumes, AXES[view])


class SectionStack(Stack):
    """The planes of volumes across one axis, in order. The volume of the last plane is kept."""

    def __init__(self, volumes: Stack, axis: int):
        self._volumes, self._axis = volumes, axis
        self.shape = tuple(n for i, n in enumerate(volumes.shape) if i != axis)
        self.label, self.reads_windows = volumes.label, volumes.reads_windows
        self._last: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self._volumes) * self._volumes.shape[self._axis]

    def read(self, index: int) -> np.ndarray:
        """Image `index`, float32, in the units of the volume."""
        self.check(index)
        number, plane = self._place(index)
        if self._last is None or self._last[0] != number:
            self._last = number, self._volumes.read(number)
        return self._last[1].take(plane, axis=self._axis)

    def read_window(self, index: int, window: Window) -> np.ndarray:
        """A window of image `index`, read alone where the volumes can and the volume of the last plane is another."""
        self.check(index)
        number, plane = self._place(index)
        if not self.reads_windows or (self._last is not None and self._last[0] == number):
            return self.read(index)[window]
        part = (*window[: self._axis], slice(plane, plane + 1), *window[self._axis :])
        return self._volumes.read_window(number, part).take(0, axis=self._axis)

    def files(self, images: Sequence[int]) -> Sequence[Path] | None:
        """Those of the volumes."""
        return self._volumes.files(list(dict.fromkeys(self._place(index)[0] for index in images)))

    def pixel_size(self, index: int) -> float | None:
        """That of the volume."""
        return self._volumes.pixel_size(self._place(index)[0])

    @property
    def white_noise(self) -> bool | None:
        """That of the volumes."""
        return self._volumes.white_noise

    @property
    def origin(self) -> Mapping[str, str]:
        """That of the volumes."""
        return self._volumes.origin

    def _place(self, index: int) -> tuple[int, int]:
        """The volume of an image, and its plane in it."""
        return divmod(index, self._volumes.shape[self._axis])
