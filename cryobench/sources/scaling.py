"""Min-max scaling of one image to [-1, 1], and back to the file's own units."""

from __future__ import annotations

import numpy as np

from cryobench.errors import DataError


def minmax(image: np.ndarray, where: str) -> tuple[np.ndarray, float, float]:
    """Scale an image [H, W] to [-1, 1]: float32 x = 2 (image - lo) / (hi - lo) - 1. Returns (x, lo, hi).

    `where` names the image in messages. `undo(x, lo, hi)` gives the image back. Raises `DataError` for an image
    that is empty, not finite, or constant: it has no scale.
    """
    if image.size == 0:
        raise DataError(f"{where} has no pixels; choose an image that has some")
    lo, hi = float(image.min()), float(image.max())
    if not (np.isfinite(lo) and np.isfinite(hi)):
        raise DataError(f"{where} holds values that are not finite; leave this image out")
    if lo == hi:
        raise DataError(f"{where} is constant (every pixel is {lo:g}), so it cannot be scaled; leave this image out")
    scaled = 2 * (image.astype(np.float64) - lo) / (hi - lo) - 1  # float64: hi - lo may overflow float32
    return scaled.astype(np.float32), lo, hi


def undo(scaled: np.ndarray, lo: float, hi: float) -> np.ndarray:
    """The inverse of `minmax`: from [-1, 1] to [lo, hi], float32 of the same shape."""
    return (lo + (scaled.astype(np.float64) + 1) / 2 * (hi - lo)).astype(np.float32)
