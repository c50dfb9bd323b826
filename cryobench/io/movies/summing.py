"""From a movie to its two halves: frame by frame, read once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np

from cryobench.core.source import size_text
from cryobench.errors import DataError
from cryobench.io.fourier_crop import crop_half_spectrum
from cryobench.io.movies.align import rigid_shifts, shift_phase, small_spectrum
from cryobench.io.movies.defects import read_defects
from cryobench.io.movies.eer import EerMovie
from cryobench.io.movies.exposure import weights
from cryobench.io.movies.gain import Gain, read_gain
from cryobench.io.movies.hot import hot_pixels
from cryobench.io.movies.movie import Movie, grouped
from cryobench.io.movies.mrc import open_mrc_movie
from cryobench.io.movies.replacement import Replacement
from cryobench.io.movies.settings import MovieSettings
from cryobench.io.movies.tiff import TiffMovie
from cryobench.io.movies.windows import checked, corrected
from cryobench.io.notices import warn_once
from cryobench.io.paths import suffix_of
from cryobench.limits import check_memory
from cryobench.text import counted

READERS: dict[str, Callable[[Path], Movie]] = {
    ".mrc": open_mrc_movie,
    ".mrcs": open_mrc_movie,
    ".tif": TiffMovie,
    ".tiff": TiffMovie,
    ".eer": EerMovie,
}
"""The readers of movies by suffix; `.mrc` and `.mrcs` also with `.gz` or `.bz2`."""
_BYTES_PER_PIXEL = 40
"""Peak memory in bytes for each pixel of a frame: both halves, their sum, a spectrum and copies."""


def open_movie(path: Path) -> Movie:
    """The movie in a file, opened by its headers. Raises `DataError`."""
    suffix = suffix_of(path)
    if suffix not in READERS:
        raise DataError(f"{path} has the unknown suffix {path.suffix!r}; expected a movie: {', '.join(READERS)}")
    return READERS[suffix](path)


@dataclass(frozen=True)
class Summed:
    """The odd and even half of a movie: the sums of frames 1, 3, ... and 2, 4, ..., counted from 1.

    halves: float32 [2, h, w]. Where nothing was interpolated they are counts, which are still to be multiplied by
    `gain`, with `values` [2, k] in place of the pixels `positions` [k]; see `corrected`. frames: those that were
    summed. dropped: frames of the file that were not. shifts: (y, x) of each frame in pixels of the movie,
    [frames, 2], or None.
    """

    halves: np.ndarray
    gain: Gain | None
    positions: np.ndarray
    values: np.ndarray
    frames: int
    dropped: int
    pixel_size: float | None
    shifts: np.ndarray | None
    interpolated: bool

    @property
    def images(self) -> np.ndarray:
        """Both halves with all corrections, float32 [2, h, w]."""
        if self.interpolated:
            return self.halves
        factor = None if self.gain is None else self.gain.factor
        return corrected(self.halves, factor, self.positions, self.values, checked(None, self.halves.shape[1:]))


class Summer:
    """Sums movies to halves by one set of corrections; the gain reference is read once.

    Raises `DataError` for corrections whose files cannot be read, when they are first used.
    """

    def __init__(self, settings: MovieSettings):
        self.settings = settings
        self._gain = cache(self._read_gain)
        self._bad = cache(self._read_bad)

    def gain(self, movie: Movie) -> Gain | None:
        """The gain reference for a movie. Raises `DataError` if it does not fit."""
        gain = self._gain(movie.divided_by_gain)
        if gain is not None:
            gain.check_shape(movie.path, movie.shape)
        return gain

    def _read_gain(self, divided: bool) -> Gain | None:
        settings = self.settings
        if settings.gain is None:
            return None
        path = Path(settings.gain).expanduser()
        return read_gain(path, settings.gain_mode, settings.rotate, settings.flip, divided=divided)

    def _read_bad(self, shape: tuple[int, int]) -> np.ndarray:
        """The pixels in the file of defects."""
        settings = self.settings
        if settings.defects is None:
            return np.zeros(shape, bool)
        return read_defects(Path(settings.defects).expanduser(), shape)

    def shape(self, movie: Movie) -> tuple[int, int]:
        """Height and width of the halves of a movie."""
        H, W = movie.shape
        return max(1, round(H / self.settings.bin)), max(1, round(W / self.settings.bin))

    def pixel_size(self, movie: Movie) -> float | None:
        """Å per pixel of the halves of a movie, or None if unknown."""
        stored = self.settings.pixel_size or movie.pixel_size
        return None if stored is None else stored * self.settings.bin

    def frames(self, movie: Movie) -> int:
        """The number of frames that are summed: even. Raises `DataError` for a movie of fewer than two."""
        found = movie.frames // self.settings.group
        if found < 2:
            groups = "" if self.settings.group == 1 else f", {found} after group={self.settings.group}"
            raise DataError(
                f"{movie.path} has {counted(movie.frames, 'frame')}{groups}; two halves need at least 2: give movies "
                "that are not summed"
            )
        if found % 2:
            warn_once("odd", movie.path, f"has {found} frames; the last is dropped, so that both halves have "
                      f"{found // 2}")  # fmt: skip
        return found - found % 2

    def sum(self, movie: Movie, report: Callable[[float], None] = lambda fraction: None) -> Summed:
        """The halves of a movie. report: called with the fraction that is done.

        Warns of a gain reference that does not fit, and of an odd number of frames. Raises `DataError`.
        """
        gain, frames = self.gain(movie), self.frames(movie)
        if self.settings.weight and self.pixel_size(movie) is None:
            raise DataError(f"{movie.path} does not say the pixel size, which weight=true needs; give pixel_size, the "
                            "Å per pixel of a frame")  # fmt: skip
        keep = self.settings.align or self.settings.weight
        needed = (_BYTES_PER_PIXEL + keep * frames) * math.prod(movie.shape)
        what = f"summing {movie.path} ({size_text(movie.shape)} pixels)"
        check_memory(what, needed, "use a machine with more", DataError)
        halves, kept = np.zeros((2, *movie.shape), np.float32), []
        for number, frame in enumerate(islice(grouped(movie, self.settings.group), frames)):
            halves[number % 2] += frame
            if keep:
                kept.append(_compact(frame))
            report((number + 1) / frames / (2 if keep else 1))
        total = halves[0] + halves[1]
        bad = self._bad(movie.shape)
        if gain is not None:
            complaint = gain.complaint(total)
            if complaint is not None:
                warn_once("gain", movie.path, f"suggests a mistake: {complaint}")
            total *= gain.factor
            bad = bad | gain.bad
        if self.settings.hot:
            total[bad] = np.nan
            bad = bad | hot_pixels(total, self.settings.hot)
        del total
        replacement = Replacement(bad)
        values = np.empty((2, 0), np.float32)
        shifts = None
        if not self.settings.interpolates:
            factor = np.float32(1) if gain is None else gain.factor
            if len(replacement.positions):
                values = np.stack([replacement.values(half * factor) for half in halves])
        elif keep:
            halves, shifts = self._combined(movie, kept, gain, replacement, report)
        else:
            halves = self._binned(movie, halves, gain, replacement)
        return Summed(
            halves=halves,
            gain=gain,
            positions=replacement.positions,
            values=values,
            frames=frames,
            dropped=movie.frames - frames * self.settings.group,
            pixel_size=self.pixel_size(movie),
            shifts=shifts,
            interpolated=self.settings.interpolates,
        )

    def _binned(self, movie: Movie, halves: np.ndarray, gain: Gain | None, replacement: Replacement) -> np.ndarray:
        """Both halves, corrected and binned."""
        shape = self.shape(movie)
        found = np.empty((2, *shape), np.float32)
        for half, out in zip(halves, found, strict=True):
            _correct(half, gain, replacement)
            out[...] = np.fft.irfft2(crop_half_spectrum(np.fft.rfft2(half), movie.shape, shape), s=shape)
        return found

    def _combined(
        self, movie: Movie, frames: list[np.ndarray], gain: Gain | None, replacement: Replacement,
        report: Callable[[float], None],
    ) -> tuple[np.ndarray, np.ndarray | None]:  # fmt: skip
        """Both halves of corrected, binned, aligned and weighted frames, and the shifts."""
        settings, shape = self.settings, self.shape(movie)

        def spectrum(frame: np.ndarray) -> np.ndarray:
            image = frame.astype(np.float32)
            _correct(image, gain, replacement)
            return np.fft.rfft2(image)

        shifts = None
        if settings.align:
            small = [small_spectrum(spectrum(frame), movie.shape) for frame in frames]
            sides = small[0][1]
            factor = np.divide(movie.shape, sides)
            pixel = settings.pixel_size or movie.pixel_size
            pixel = None if pixel is None else pixel * float(factor.max())
            shifts = rigid_shifts([one for one, _ in small], sides, pixel) * factor
        sums = np.zeros((2, shape[0], shape[1] // 2 + 1), np.complex64)
        weight = self._weights(movie, len(frames)) if settings.weight else None
        for number, frame in enumerate(frames):
            part = crop_half_spectrum(spectrum(frame), movie.shape, shape)
            if shifts is not None:
                part = part * shift_phase(shape, shifts[number] * np.divide(shape, movie.shape))
            if weight is not None:
                part = part * weight(number // 2)
            sums[number % 2] += part
            report((1 + (number + 1) / len(frames)) / 2)
        return np.stack([np.fft.irfft2(half, s=shape) for half in sums]).astype(np.float32), shifts

    def _weights(self, movie: Movie, frames: int) -> Callable[[int], np.ndarray]:
        """The exposure weights [h, w // 2 + 1] of each two neighbouring frames, by their number.

        Both frames have the weight of the exposure between them, so that the halves are filtered alike.
        """
        shape, pixel, dose = self.shape(movie), self.pixel_size(movie), self.settings.dose
        assert pixel is not None, "checked before frames are read"
        assert dose is not None, "checked by the settings"
        exposures = self.settings.pre_dose + dose * (2 * np.arange(frames // 2) + 1)
        y, x = np.fft.fftfreq(shape[0]) / pixel, np.fft.rfftfreq(shape[1]) / pixel
        k = np.hypot(y[:, None], x)
        radii = np.linspace(0, float(k.max()), 4 * max(shape))
        curves = weights(exposures, radii, self.settings.voltage)
        return lambda pair: np.interp(k, radii, curves[pair]).astype(np.float32)


def _correct(image: np.ndarray, gain: Gain | None, replacement: Replacement) -> None:
    """Apply gain and replacement to a float32 image in place."""
    if gain is not None:
        image *= gain.factor
    replacement.apply(image)


def _compact(frame: np.ndarray) -> np.ndarray:
    """The frame as integers of 8 or 16 bits if its values are such integers, else as float32."""
    if frame.dtype.kind == "f":
        for kind in (np.uint8, np.uint16):
            with np.errstate(invalid="ignore"):
                integers = frame.astype(kind)
            if np.array_equal(integers, frame):
                return integers
        return frame.astype(np.float32, copy=False)
    return frame
