"""Replacement of pixels that measure nothing by the mean of their good neighbours."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from cryobench.errors import DataError

_ENOUGH = 3
"""Good neighbours of which the mean is taken, at least."""


class Replacement:
    """Replaces bad pixels by the mean of the good pixels in the smallest square around each that has three of them.

    It is linear, so that the replaced pixels of a sum of frames are the sums of the replaced pixels.
    """

    def __init__(self, bad: np.ndarray):
        """bad: [H, W] bool. Raises `DataError` where hardly a pixel is good."""
        self.positions = np.flatnonzero(bad)
        self._weights = csr_array((0, bad.size))
        if len(self.positions):
            self._weights = _weights(bad, self.positions)

    def values(self, image: np.ndarray) -> np.ndarray:
        """What takes the place of the bad pixels, in the order of `positions`, float32 [k]. image: [H, W]."""
        return np.asarray(self._weights @ image.reshape(-1), np.float32)

    def apply(self, image: np.ndarray) -> None:
        """Replace the bad pixels of a contiguous float32 image [H, W]."""
        image.reshape(-1)[self.positions] = self.values(image)


def _weights(bad: np.ndarray, positions: np.ndarray) -> csr_array:
    """The matrix [k, H W] of the means."""
    H, W = bad.shape
    rows, columns, weights = [], [], []
    left, radius = np.arange(len(positions)), 1
    while len(left):
        if radius > max(H, W):
            raise DataError(f"{len(positions)} of {bad.size} pixels are bad; expected at least {_ENOUGH} good ones: "
                            "correct the gain reference or the file of defects")  # fmt: skip
        step = np.arange(-radius, radius + 1)
        y = positions[left, None] // W + np.repeat(step, len(step))
        x = positions[left, None] % W + np.tile(step, len(step))
        inside = (y >= 0) & (y < H) & (x >= 0) & (x < W)
        flat = np.where(inside, y * W + x, 0)
        good = inside & ~bad.reshape(-1)[flat]
        count = good.sum(axis=1)
        found = count >= _ENOUGH
        rows.append(np.repeat(left[found], count[found]))
        columns.append(flat[found][good[found]])
        weights.append(np.repeat(1 / count[found], count[found]))
        left, radius = left[~found], radius * 2
    index = np.concatenate(rows), np.concatenate(columns)
    shape = len(positions), bad.size
    return csr_array((np.concatenate(weights).astype(np.float32), index), shape=shape)
