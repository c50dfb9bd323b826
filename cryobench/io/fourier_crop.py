"""Resampling of images and volumes by cropping or padding the spectrum."""

from __future__ import annotations

import numpy as np

from cryobench.core.source import size_text
from cryobench.errors import DataError


def square_crop(image: np.ndarray) -> np.ndarray:
    """The central square of an image, the central cube of a volume: every side is n = min(image.shape). A view.

    The centre, pixel N // 2 of a side of N pixels, becomes pixel n // 2.
    """
    n = min(image.shape)
    return image[tuple(slice(side // 2 - n // 2, side // 2 - n // 2 + n) for side in image.shape)]


def fourier_resize(image: np.ndarray, n: int) -> np.ndarray:
    """Resample a square image or a cube to n pixels a side, by cropping its spectrum or padding it with zeros. float32.

    The mean is preserved, and the centre, pixel N // 2 (RELION's origin), becomes pixel n // 2: pixel j of the result
    is at N // 2 + (j - n // 2) N / n of the image. n < N is a sharp low-pass filter, and an image without frequencies
    at or above n / 2 cycles per image is sampled exactly. n > N is sinc interpolation, which adds no information. For
    an even side, +n/2 and -n/2 are the same frequency: cropping adds the two, padding splits it into halves, so that
    cropping is the inverse of padding (the convention of `scipy.signal.resample`, which the result equals where N and n
    are even). Raises `DataError` for an image that is not square, and for n < 1.
    """
    N = image.shape[0]
    if image.shape != (N,) * image.ndim or N < 1 or n < 1:
        raise DataError(f"cannot resample {size_text(image.shape)} to {n} pixels a side; expected a square or a cube")
    if n == N:
        return np.asarray(image, dtype=np.float32)
    spectrum = np.fft.fftn(image.astype(np.float64))
    for axis in range(image.ndim):
        spectrum = np.moveaxis(_resize_rows(np.moveaxis(spectrum, axis, 0), n), 0, axis)
    return (np.fft.ifftn(spectrum).real * (n / N) ** image.ndim).astype(np.float32)


def _resize_rows(spectrum: np.ndarray, n: int) -> np.ndarray:
    """Crop or pad a spectrum [N, ...] (zero frequency first) to [n, ...], n != N, and move the centre to n // 2."""
    N = len(spectrum)
    kept = min(N, n)
    h = kept // 2  # frequencies -h to kept - h - 1 fit, so +h of an even side does not
    if n < N:
        spectrum = _centred(spectrum, _cycles(N), N, n)  # on the larger grid, where -h and +h differ
    resized = np.zeros((n, *spectrum.shape[1:]), spectrum.dtype)
    resized[: kept - h] = spectrum[: kept - h]
    if h:
        resized[-h:] = spectrum[-h:]
    if kept % 2 == 0 and n < N:
        resized[-h] += spectrum[h]
    elif kept % 2 == 0:
        resized[-h] /= 2
        resized[h] = resized[-h]
    return _centred(resized, _cycles(n), N, n) if n > N else resized


def _cycles(n: int) -> np.ndarray:
    """The frequencies of a spectrum of n samples, zero first, in cycles per image."""
    return np.fft.fftfreq(n, 1 / n)


def _centred(spectrum: np.ndarray, cycles: np.ndarray, N: int, n: int) -> np.ndarray:
    """The spectrum of the image moved so that pixel N // 2 of N, resampled to n pixels, is pixel n // 2.

    cycles: the frequency of each row of the spectrum, in cycles per image.
    """
    if N % 2 == n % 2 == 0:
        return spectrum
    phase = np.exp(2j * np.pi * cycles * (N // 2 / N - n // 2 / n)).astype(spectrum.dtype)
    return spectrum * phase.reshape(-1, *[1] * (spectrum.ndim - 1))


def crop_half_spectrum(spectrum: np.ndarray, shape: tuple[int, int], cropped: tuple[int, int]) -> np.ndarray:
    """Crop the spectrum of a real image of `shape` (H, W), [H, W // 2 + 1] as of `rfft2`, to that of `cropped` (h, w).

    Nothing is scaled, so that `irfft2(..., s=cropped)` preserves the sum of the pixels: counts of a detector. Otherwise
    it is `fourier_resize` in each direction, for images that need not be square. h <= H and w <= W.
    """
    (H, W), (h, w) = shape, cropped
    if w < W:
        spectrum = _centred(spectrum.T, np.arange(W // 2 + 1), W, w)[: w // 2 + 1].T
        if w % 2 == 0:  # -w/2, the conjugate of +w/2 at the opposite row, is the same frequency
            opposite = np.roll(spectrum[::-1, -1], 1)
            spectrum = np.concatenate([spectrum[:, :-1], (spectrum[:, -1] + opposite.conj())[:, None]], axis=1)
    return _resize_rows(spectrum, h) if h < H else spectrum
