"""Downsampling by cropping the spectrum."""

from __future__ import annotations

import numpy as np


def square_crop(image: np.ndarray) -> np.ndarray:
    """The central square of an image: [H, W] -> [n, n] with n = min(H, W). A view."""
    n = min(image.shape)
    top, left = ((side - n) // 2 for side in image.shape)
    return image[top : top + n, left : left + n]


def fourier_crop(image: np.ndarray, n: int) -> np.ndarray:
    """Downsample a square image [N, N] to [n, n], n <= N, by keeping the n x n lowest frequencies. float32.

    A sharp low-pass, scaled so that the mean is kept. Pixel j of the result stands at j N / n of the image, so an
    image without frequencies at or above n / 2 cycles per image is sampled exactly. Where n is even and below N,
    only one of the two frequencies +-n/2 fits: cosines there keep half their amplitude.
    """
    N = image.shape[0]
    if image.shape != (N, N) or not 1 <= n <= N:
        raise ValueError(f"cannot crop {image.shape} to {n} x {n}")
    if n == N:
        return np.asarray(image, dtype=np.float32)
    low = N // 2 - n // 2  # where frequency -(n // 2) stands once the zero frequency is at N // 2
    spectrum = np.fft.fftshift(np.fft.fft2(image.astype(np.float64)))[low : low + n, low : low + n]
    return (np.fft.ifft2(np.fft.ifftshift(spectrum)).real * (n / N) ** 2).astype(np.float32)
