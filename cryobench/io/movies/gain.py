"""The gain reference of a detector: a factor for each pixel, and the pixels that have none."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from cryobench.core.source import size_text
from cryobench.errors import DataError
from cryobench.io.movies.images import read_image

Mode = Literal["auto", "multiply", "divide"]
Turn = Literal[0, 90, 180, 270]
Flip = Literal["none", "ud", "lr"]
FLATTER = 1e-3
"""Relative difference of two standard deviations below which neither image counts as flatter."""
_FALCON = ".gain"


@dataclass(frozen=True)
class Gain:
    """factor: by which counts are multiplied, float32 [H, W], 0 at the pixels `bad`, bool [H, W]. path: of its file."""

    path: Path
    factor: np.ndarray
    bad: np.ndarray
    divided: bool

    @property
    def digest(self) -> str:
        """SHA-256 of the factors."""
        return hashlib.sha256(repr(self.factor.shape).encode() + self.factor.tobytes()).hexdigest()

    def check_shape(self, movie: Path, shape: tuple[int, int]) -> None:
        """Raise `DataError` unless frames have the shape of the gain reference."""
        if self.factor.shape != shape:
            turned = self.factor.shape == shape[::-1]
            advice = "give rotate=90 or rotate=270" if turned else "give the reference of this detector and its binning"
            raise DataError(f"{self.path} has {size_text(self.factor.shape)} pixels after turns and flips, the frames "
                            f"of {movie} {size_text(shape)}; {advice}")  # fmt: skip

    def complaint(self, total: np.ndarray) -> str | None:
        """What is wrong with the reference by the sum of all frames `total` [H, W], for a warning; None if nothing.

        The right one flattens the sum: its relative standard deviation is least multiplied by the factors.
        """
        good = ~self.bad
        values, factors = total[good], self.factor[good]
        used, other, none = (_relative_deviation(image) for image in (values * factors, values / factors, values))
        best = min(other, none)
        if used <= best * (1 + FLATTER):
            return None
        if other < none:
            now, wanted = ("divided", "multiply") if self.divided else ("multiplied", "divide")
            return (f"frames are {now} by {self.path}, and the other way flattens their sum better (standard deviation "
                    f"{other:.4f} of the mean, now {used:.4f}); gain_mode={wanted} sets it")  # fmt: skip
        return (f"{self.path} does not flatten the sum of the frames (standard deviation {used:.4f} of the mean, "
                f"{none:.4f} without it); it may be applied already, or need rotate= or flip=")  # fmt: skip


def read_gain(path: Path, mode: Mode, turn: Turn, flip: Flip, *, divided: bool) -> Gain:
    """The gain reference in a file, turned, then flipped, to the orientation of the movies.

    turn: degrees anticlockwise with row 0 at the top (`numpy.rot90`). flip: `ud` reverses the rows, `lr` the columns.
    mode: how frames are corrected; auto divides by a `.gain` and by that of movies for which `divided` is true, and
    multiplies by others. Pixels that are not positive and finite are bad. Raises `DataError`.
    """
    image = np.rot90(read_image(path), turn // 90)
    if flip != "none":
        image = np.flip(image, {"ud": 0, "lr": 1}[flip])
    bad = ~(np.isfinite(image) & (image > 0))
    if bad.all():
        raise DataError(f"{path} has no positive pixel; expected a gain reference")
    divide = mode == "divide" or (mode == "auto" and (divided or path.suffix.lower() == _FALCON))
    safe = np.where(bad, 1, image).astype(np.float32)
    factor = np.where(bad, 0, 1 / safe if divide else safe).astype(np.float32)
    return Gain(path, np.ascontiguousarray(factor), np.ascontiguousarray(bad), divide)


def _relative_deviation(values: np.ndarray) -> float:
    """The standard deviation divided by the mean, of values between their 0.1% and 99.9% quantiles."""
    step = max(1, values.size // 4_000_000)
    sample = values[::step].astype(np.float64)
    low, high = np.quantile(sample, [0.001, 0.999])
    sample = sample[(sample >= low) & (sample <= high)]
    return float(sample.std() / abs(sample.mean())) if sample.mean() else float("inf")
