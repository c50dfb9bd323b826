"""How sure a mean over images is. Needs numpy alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cryobench.errors import ParameterError

Interval = tuple[float | None, float | None]

# Entries of a chunk of resamples held at once: 16 MiB as float64, however many images there are.
CHUNK = 2_000_000


def mean(values: Sequence[float | None]) -> float | None:
    """The mean over images, or None where it is not defined for every image.

    An image without a number (None or NaN) is not dropped: solvers fail on the hard images, so a mean over the
    others would flatter them. Infinite values (the PSNR of an exact image) are kept.
    """
    numbers = [math.nan if value is None else float(value) for value in values]
    if not numbers or any(map(math.isnan, numbers)):
        return None
    if all(map(math.isfinite, numbers)):
        return _finite_mean(numbers)
    total = sum(number for number in numbers if math.isinf(number))
    return None if math.isnan(total) else total


def _finite_mean(numbers: Sequence[float]) -> float:
    """The mean, which rounding must not push out of the range: three times 0.1 have the mean 0.1."""
    return min(max(math.fsum(numbers) / len(numbers), min(numbers)), max(numbers))


def bootstrap_interval(
    values: Sequence[float | None], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval (lo, hi) of the mean of `values` [images], in their unit.

    (None, None) for fewer than two images, and where an image's value is None, NaN or infinite: no image is dropped.
    The same values and seed give the same interval. For few images it is too narrow, as every percentile bootstrap
    is: of nominal 95% intervals of normal data about 80% hold the mean for 4 images, 90% for 10 and 94% for 50.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
    Raises `ParameterError` for a level outside (0, 1) or fewer than one resample.
    """
    return bootstrap_intervals([values], level=level, resamples=resamples, seed=seed)[0]


def bootstrap_intervals(
    series: Sequence[Sequence[float | None]], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> list[Interval]:
    """`bootstrap_interval` of each series; those over equally many images share one drawing of resamples."""
    if not 0 < level < 1:
        raise ParameterError(f"level must be between 0 and 1, and is {level}; 0.95 is usual")
    if resamples < 1:
        raise ParameterError(f"resamples must be at least 1, and is {resamples}; 10000 is usual")
    intervals: list[Interval] = [(None, None)] * len(series)
    tails = [(1 - level) / 2, (1 + level) / 2]
    for places in _by_length(series).values():
        data = np.array([series[place] for place in places], dtype=float)
        for place, means in zip(places, _resampled_means(data, resamples, seed), strict=True):
            lo, hi = np.quantile(means, tails)
            intervals[place] = (float(lo), float(hi))
    return intervals


def _by_length(series: Sequence[Sequence[float | None]]) -> dict[int, list[int]]:
    """The places of the series that have an interval, by number of images."""
    places: dict[int, list[int]] = {}
    for place, values in enumerate(series):
        if len(values) >= 2 and all(value is not None and math.isfinite(value) for value in values):
            places.setdefault(len(values), []).append(place)
    return places


def _resampled_means(data: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Means [series, resamples] of data [series, images] over images drawn with replacement."""
    n_images = data.shape[1]
    centre = np.array([[_finite_mean(row)] for row in data.tolist()])
    offsets = data - centre  # so that rounding is small beside the spread, and equal values give no spread
    rng = np.random.default_rng(seed)
    rows = max(1, CHUNK // n_images)
    means = np.empty((len(data), resamples))
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        counts = _multiplicities(rng, stop - start, n_images)
        for series, offset in enumerate(offsets):  # one product each: a series' bits do not depend on the others
            means[series, start:stop] = counts @ offset / n_images
    return means + centre


def _multiplicities(rng: np.random.Generator, rows: int, n_images: int) -> np.ndarray:
    """How often each image is drawn, [rows, n_images], in n_images draws a row."""
    drawn = rng.integers(n_images, size=(rows, n_images))
    drawn += n_images * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * n_images).reshape(rows, n_images).astype(float)
