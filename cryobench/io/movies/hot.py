"""Hot and dead pixels: those whose sum over all frames is impossible for the counts around them."""

from __future__ import annotations

import numpy as np

_SAMPLE = 1_000_000
_TAILS = 0.001
"""Fraction of the sample that is left out at either end, where hot and dead pixels are."""
_OFFSET = 3 / 8
_BLOCK = 32
_NEIGHBOURS = 3
"""A candidate is compared with the median of the square of so many pixels in each direction."""
_PART = 200_000
"""Candidates that are compared at once."""


def hot_pixels(total: np.ndarray, threshold: float) -> np.ndarray:
    """The hot and dead pixels of the sum of all frames `total` [H, W], NaN where it is not known; bool [H, W].

    Anscombe's transform a(x) = 2 sqrt(x / g + 3/8) (1948, Biometrika 35:246) gives counts of any mean unit variance; it
    goes on linearly below 0. The gain g = variance / mean is measured between neighbouring pixels, so that slow
    variation does not matter. A pixel is bad if a(x) is more than `threshold` from that of the median of a block of the
    image, and also from that of the pixels within three pixels. Where the mean is not positive, x is compared in
    standard deviations.
    """
    bad = np.zeros(total.shape, bool)
    mean, variance = _statistics(total) if min(total.shape) > 1 else (0.0, 0.0)
    if variance <= 0:
        return bad

    def stabilised(values: np.ndarray) -> np.ndarray:
        if mean <= 0:
            return values / np.sqrt(variance)
        counts = values * (mean / variance)
        return 2 * np.sqrt(np.maximum(counts, 0) + _OFFSET) + np.minimum(counts, 0)

    blocks = stabilised(_block_medians(total, mean))
    across = np.arange(total.shape[1]) // _BLOCK
    rows = [np.flatnonzero(np.abs(stabilised(row) - blocks[number // _BLOCK, across]) > threshold)
            for number, row in enumerate(total)]  # fmt: skip
    positions = np.concatenate([number * total.shape[1] + row for number, row in enumerate(rows)])
    for start in range(0, len(positions), _PART):
        part = positions[start : start + _PART]
        around = _median_around(total, part)
        own = stabilised(total.reshape(-1)[part])
        bad.reshape(-1)[part] = ~(np.abs(own - stabilised(around)) <= threshold)  # NaN if nothing is known around
    return bad


def _statistics(total: np.ndarray) -> tuple[float, float]:
    """Mean and variance of the noise of most pixels."""
    differences = total[:, 1:] - total[:, :-1]
    step = max(1, differences.size // _SAMPLE)
    sample = np.stack([total[:, 1:].reshape(-1)[::step], differences.reshape(-1)[::step]]).astype(np.float64)
    sample = sample[:, np.isfinite(sample).all(axis=0)]
    if not sample.size:
        return 0.0, 0.0
    low, high = np.quantile(sample, [_TAILS, 1 - _TAILS], axis=1)
    values, changes = (row[(row >= a) & (row <= b)] for row, a, b in zip(sample, low, high, strict=True))
    return float(values.mean()), float(np.square(changes).mean() / 2)


def _block_medians(total: np.ndarray, unknown: float) -> np.ndarray:
    """The median of each block of the image; those at the end are repeated to whole ones. unknown: in place of NaN."""
    (H, W), b = total.shape, _BLOCK
    found = np.empty((-(-H // b), -(-W // b)))
    for number in range(len(found)):
        strip = np.pad(total[number * b : (number + 1) * b], ((0, 0), (0, -W % b)), "edge")
        strip = np.nan_to_num(strip, nan=unknown).reshape(len(strip), -1, b)
        found[number] = np.median(strip, axis=(0, 2))
    return found


def _median_around(total: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The median of the pixels around each position, which are hot themselves only in clusters."""
    H, W = total.shape
    step = np.arange(-_NEIGHBOURS, _NEIGHBOURS + 1)
    y = positions[:, None] // W + np.repeat(step, len(step))
    x = positions[:, None] % W + np.tile(step, len(step))
    inside = (y >= 0) & (y < H) & (x >= 0) & (x < W) & ((y * W + x) != positions[:, None])
    values = np.where(inside, total.reshape(-1)[np.where(inside, y * W + x, 0)], np.nan)
    return np.nanmedian(values, axis=1)
