"""What a movie is to a reader: frames of one shape, one after the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cryobench.errors import DataError


class Movie(ABC):
    """An open movie. Its frames are read once, one by one."""

    path: Path
    frames: int
    """The number of frames."""
    shape: tuple[int, int]
    """Height and width of a frame, pixels."""
    pixel_size: float | None
    """Å per pixel by the file, or None if it does not say."""
    divided_by_gain = False
    """Whether a frame is divided by the gain reference of this format, not multiplied by it."""

    @abstractmethod
    def read(self) -> Iterator[np.ndarray]:
        """The frames in order, each [H, W] of integers or floats as stored. Raises `DataError` for a damaged file."""


def grouped(movie: Movie, size: int) -> Iterator[np.ndarray]:
    """The sums of `size` frames each, in order, [H, W]; frames left over at the end are not read.

    A sum of integers is float32, exact up to 2^24. Raises `DataError` for a frame that is zero everywhere or not
    finite.
    """
    frames = movie.read()
    for number in range(movie.frames // size):
        total = next(frames)
        if size > 1:
            total = total.astype(np.float32)
            for _ in range(size - 1):
                total += next(frames)
        _check(movie, number, size, total)
        yield total


def _check(movie: Movie, number: int, size: int, frame: np.ndarray) -> None:
    name = f"frame {number + 1}" if size == 1 else f"the sum of frames {number * size + 1} to {(number + 1) * size}"
    if frame.dtype.kind == "f" and not np.isfinite(frame).all():
        raise DataError(f"{movie.path}: {name} has values that are not finite; leave out the movie, or write it again")
    if not frame.any():
        raise DataError(f"{movie.path}: {name} of {movie.frames} is zero everywhere; leave out the movie, or write it "
                        "without that frame")  # fmt: skip
