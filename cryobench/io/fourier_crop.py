"""Resampling by cutting or padding the spectrum."""

from __future__ import annotations

import numpy as np


def square_crop(image: np.ndarray) -> np.ndarray:
    """The central square of an image, the central cube of a volume: every side is min(image.shape). A view."""
    n = min(image.shape)
    return image[tuple(slice((side - n) // 2, (side - n) // 2 + n) for side in image.shape)]


def fourier_resize(image: np.ndarray, n: int) -> np.ndarray:
    """Resample a square image [N, N] to [n, n], or a cube likewise, its spectrum cut or padded with zeros. float32.

    Scaled so that the mean is kept. Pixel j of the result stands at j N / n of the image. For n < N it is a sharp
    low-pass, and an image without frequencies at or above n / 2 cycles per image is sampled exactly; for n > N it is
    sinc interpolation, which adds no information. Of an even side, the frequencies +-n/2 are one, the alternating
    pattern: cutting adds the two, padding halves the one, so that padding and cutting back gives the image again.
    (The convention of `scipy.signal.resample`.)
    """
    N = image.shape[0]
    if image.shape != (N,) * image.ndim or N < 1 or n < 1:
        raise ValueError(f"cannot resize {image.shape} to {n} pixels a side")
    if n == N:
        return np.asarray(image, dtype=np.float32)
    spectrum = np.fft.fftn(image.astype(np.float64))
    for axis in range(image.ndim):
        spectrum = np.moveaxis(_resize_rows(np.moveaxis(spectrum, axis, 0), n), 0, axis)
    return (np.fft.ifftn(spectrum).real * (n / N) ** image.ndim).astype(np.float32)


def _resize_rows(spectrum: np.ndarray, n: int) -> np.ndarray:
    """Cut or pad a spectrum [N, ...] (zero frequency first) to [n, ...], n != N."""
    N = len(spectrum)
    kept = min(N, n)
    h = kept // 2  # frequencies -h to kept - h - 1 have room, which leaves out +h of an even side
    resized = np.zeros((n, *spectrum.shape[1:]), spectrum.dtype)
    resized[: kept - h] = spectrum[: kept - h]
    if h:
        resized[-h:] = spectrum[-h:]
    if kept % 2 == 0 and n < N:
        resized[-h] += spectrum[h]
    elif kept % 2 == 0:
        resized[-h] /= 2
        resized[h] = resized[-h]
    return resized
