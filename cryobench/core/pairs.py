"""Micrographs of which two halves with independent noise are known."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cryobench.core.operator import Window


class Pairs(ABC):
    """Micrographs, each with two halves of independent noise: the sums of its odd and of its even frames.

    Micrographs may differ in shape. Only the requested window is read.
    """

    label: str
    """The name of the set in tables and messages."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """The name of micrograph `index` (0-based), without folder and suffix."""

    @abstractmethod
    def shape(self, index: int) -> tuple[int, int]:
        """Height and width of micrograph `index`."""

    @abstractmethod
    def read(self, index: int, window: Window | None = None) -> np.ndarray:
        """Both halves of a window of micrograph `index`, odd frames first, float32 [2, h, w]; all of it by default."""

    @abstractmethod
    def digests(self, index: int) -> tuple[str, str]:
        """The digest of each half, odd frames first, to find out whether a network was trained on it."""

    def files(self, index: int) -> Sequence[Path] | None:
        """The files that micrograph `index` is read from; None (the default) if they are not known."""
        return None

    def pixel_size(self, index: int) -> float | None:
        """Å per pixel of micrograph `index`, or None if unknown."""
        return None
