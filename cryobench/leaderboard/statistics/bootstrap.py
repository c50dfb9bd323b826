"""Means over images and their bootstrap intervals. Depends on numpy only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cryobench.errors import ParameterError

Interval = tuple[float | None, float | None]

CHUNK = 2_000_000
"""Maximum number of resamples, and of their sums, held at once: 8 MiB each as float32, for any size of the data."""
EXACT = 2**24
"""The largest number up to which float32 represents every integer."""


def mean(values: Sequence[float | None]) -> float | None:
    """The mean over images, or None if a value is missing (None or NaN).

    Images without a value are not dropped: solvers fail on difficult images, so a mean over the others would be biased.
    Infinite values (the PSNR of an exact image) are kept.
    """
    numbers = [math.nan if value is None else float(value) for value in values]
    if not numbers or any(map(math.isnan, numbers)):
        return None
    if all(map(math.isfinite, numbers)):  # clipped for rounding: three times 0.1 have the mean 0.1
        return min(max(math.fsum(numbers) / len(numbers), min(numbers)), max(numbers))
    total = sum(number for number in numbers if math.isinf(number))
    return None if math.isnan(total) else total


def bootstrap_interval(
    values: Sequence[float | None], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval (lo, hi) of the mean of `values` [images], in their unit.

    (None, None) for fewer than two images, and if a value is None, NaN or infinite: no image is dropped. The same
    values and seed give the same interval. With few images, percentile bootstrap intervals are too narrow: the coverage
    of nominal 95% intervals of normal data is about 80% for 4 images, 90% for 10 and 94% for 50.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
    Raises `ParameterError` for a level outside (0, 1) or fewer than one resample.
    """
    return bootstrap_intervals([values], level=level, resamples=resamples, seed=seed)[0]


def bootstrap_intervals(
    series: Sequence[Sequence[float | None]], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> list[Interval]:
    """`bootstrap_interval` of each series; series of equal length share their resamples."""
    if not 0 < level < 1:
        raise ParameterError(f"level must be between 0 and 1, got {level}; 0.95 is usual")
    if resamples < 1:
        raise ParameterError(f"resamples must be at least 1, got {resamples}; 10000 is usual")
    intervals: list[Interval] = [(None, None)] * len(series)
    lengths: dict[int, list[int]] = {}
    for place, values in enumerate(series):
        if len(values) >= 2 and all(value is not None and math.isfinite(value) for value in values):
            lengths.setdefault(len(values), []).append(place)
    for places in lengths.values():
        data = np.array([series[place] for place in places], dtype=float)
        ends = interval_ends(data, level=level, resamples=resamples, seed=seed)
        for place, lo, hi in zip(places, *(end.tolist() for end in ends), strict=True):
            intervals[place] = (lo, hi)
    return intervals


def interval_ends(
    data: np.ndarray, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The ends lo and hi [series] of the `bootstrap_interval` of data [series, images]; NaN if there is none.

    All series share their resamples. Deviations from the mean of a series are rounded to integers, in units of n / 2^24
    of the largest one, for n images. float32 sums integers exactly, so the result depends neither on the order of
    summation nor on the other series. Up to ten thousand images this rounding is far below the variance of resampling.
    """
    n_images = data.shape[1]
    ends = np.full((2, len(data)), math.nan)
    finite = np.flatnonzero(np.isfinite(data).all(axis=1)) if n_images > 1 else np.arange(0)
    if not len(finite):
        return ends[0], ends[1]
    data = data[finite]
    least, most = data.min(axis=1), data.max(axis=1)
    centre = np.clip(data.mean(axis=1), least, most)  # clipped for rounding: three times 0.1 have the mean 0.1
    offsets = data - centre[:, None]
    largest = np.abs(offsets).max(axis=1)
    largest[largest == 0] = 1
    units = max(1, EXACT // n_images)
    offsets = np.rint(offsets / largest[:, None] * units).astype(np.float32)
    tails = (1 - level) / 2, (1 + level) / 2
    batch = max(1, CHUNK // resamples)
    for start in range(0, len(data), batch):
        sums = _resampled_sums(offsets[start : start + batch], resamples, seed).astype(float)
        ends[:, finite[start : start + batch]] = np.quantile(sums, tails, axis=1)
    ends[:, finite] = np.clip(ends[:, finite] / units * (largest / n_images) + centre, least, most)
    return ends[0], ends[1]


def _resampled_sums(data: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Sums [series, resamples] of float32 data [series, images] over as many images drawn with replacement."""
    n_images = data.shape[1]
    sums = np.empty((len(data), resamples), np.float32)
    rng = np.random.default_rng(seed)
    rows = max(1, CHUNK // n_images)
    for start in range(0, resamples, rows):
        n_rows = min(rows, resamples - start)
        drawn = rng.integers(n_images, size=(n_rows, n_images)) + n_images * np.arange(n_rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=n_rows * n_images).reshape(n_rows, n_images)
        np.matmul(data, counts.T.astype(np.float32), out=sums[:, start : start + n_rows])
    return sums
