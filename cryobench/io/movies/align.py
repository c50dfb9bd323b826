"""Rigid alignment of frames by Fourier cross-correlation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cryobench.io.fourier_crop import crop_half_spectrum

SIDE = 1024
"""Frames are cropped in Fourier space to at most so many pixels in each direction before they are aligned."""
B_FACTOR = 500.0
"""Å², of the envelope exp(-B k² / 4) of the cross-correlation."""
ROUNDS = 10
FARTHEST = 1 / 8
"""Largest shift of a frame, as a fraction of the side of the image."""
CONVERGED = 0.02
"""Pixels by which no frame moves in the last round."""


def small_spectrum(spectrum: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """The spectrum of a frame cropped for the alignment, and the shape of its image. spectrum: see `rfft2`."""
    factor = max(1.0, max(shape) / SIDE)
    small = max(1, round(shape[0] / factor)), max(1, round(shape[1] / factor))
    return crop_half_spectrum(spectrum, shape, small), small


def shift_phase(shape: tuple[int, int], shift: Sequence[float] | np.ndarray) -> np.ndarray:
    """What moves an image of `shape` by `shift` (y, x) pixels, to larger indices, if multiplied with its `rfft2`.

    complex64 [H, W // 2 + 1]. What leaves the image on one side comes in on the other.
    """
    y = np.exp(-2j * np.pi * np.fft.fftfreq(shape[0]) * shift[0]).astype(np.complex64)
    x = np.exp(-2j * np.pi * np.fft.rfftfreq(shape[1]) * shift[1]).astype(np.complex64)
    return y[:, None] * x


def rigid_shifts(spectra: Sequence[np.ndarray], shape: tuple[int, int], pixel_size: float | None) -> np.ndarray:
    """The shift (y, x) of each frame that aligns it with the others, pixels, with mean 0; float64 [n, 2].

    spectra: `rfft2` of the frames, of `shape`. pixel_size: Å, 1 if unknown, for the envelope.

    Each frame is correlated with the sum of the others, shifted by what is known so far, until none moves. A frame is
    not part of its reference: its noise would keep it in place. The peak is that of a parabola through the largest
    value and its neighbours, in each direction.
    """
    y, x = np.meshgrid(np.fft.fftfreq(shape[0]), np.fft.rfftfreq(shape[1]), indexing="ij")
    envelope = np.exp(-B_FACTOR / 4 * (y**2 + x**2) / (pixel_size or 1.0) ** 2).astype(np.float32)
    envelope[0, 0] = 0  # the mean says nothing
    filtered = [spectrum * envelope for spectrum in spectra]
    shifts = np.zeros((len(spectra), 2))
    for _ in range(ROUNDS):
        moved = [spectrum * shift_phase(shape, shift) for spectrum, shift in zip(filtered, shifts, strict=True)]
        total = np.sum(moved, axis=0)
        found = np.array([
            _peak(np.fft.irfft2(spectrum.conj() * (total - own), s=shape))
            for spectrum, own in zip(filtered, moved, strict=True)
        ])  # fmt: skip
        found -= found.mean(axis=0)
        change, shifts = np.abs(found - shifts).max(), found
        if change < CONVERGED:
            break
    return shifts


def _peak(correlation: np.ndarray) -> np.ndarray:
    """The position (y, x) of the maximum of a periodic array within `FARTHEST` of the origin, with fractions."""
    y, x = (np.abs(np.fft.fftfreq(side)) <= FARTHEST for side in correlation.shape)  # indices as fractions of the side
    at = np.unravel_index(int(np.argmax(np.where(y[:, None] & x, correlation, -np.inf))), correlation.shape)
    found = []
    for axis, (index, side) in enumerate(zip(at, correlation.shape, strict=True)):
        before, middle, after = (
            float(correlation[tuple((place + step) % n if here == axis else place
                                    for here, (place, n) in enumerate(zip(at, correlation.shape, strict=True)))])
            for step in (-1, 0, 1)
        )  # fmt: skip
        curvature = before - 2 * middle + after
        fraction = 0.0 if curvature == 0 else (before - after) / (2 * curvature)
        found.append((index + side // 2) % side - side // 2 + fraction)
    return np.array(found)
