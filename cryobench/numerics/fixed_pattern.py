"""Whether two halves of micrographs have a pattern of the detector in common, which makes their noise dependent.

An error of the gain reference or a hot pixel is the same in both halves, as the specimen is, and no statistic of one
micrograph separates the two. Different micrographs show different specimens at the same detector pixels, so the
correlation of half a of one with half b of another is that of the detector's pattern alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

_WINDOW = 8
"""Side in pixels of the blocks whose mean is subtracted, so that ice of varying thickness does not correlate."""
_BLOCK = 64
SIGNIFICANT = 5.0
"""Standard errors from which a correlation counts as a pattern: one false alarm in 3 million data sets."""


@dataclass(frozen=True)
class FixedPattern:
    """The mean correlation of half a with half b of other micrographs, its standard error, and `share`, the fraction
    that it makes of the correlation of the halves of one micrograph."""

    correlation: float
    error: float
    share: float

    @property
    def found(self) -> bool:
        return self.correlation > SIGNIFICANT * self.error


def fixed_pattern(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> FixedPattern:
    """Compare half a of every micrograph with half b of the next, in the frame of the detector.

    first, second: the halves of at least two micrographs, each [H, W] of one shape.
    """
    a, b = ([_high_passed(image) for image in images] for images in (first, second))
    others = [_correlation(a[i], b[(i + 1) % len(b)]) for i in range(len(a))]
    same = [_correlation(x, y)[0] for x, y in zip(a, b, strict=True)]
    mean = sum(value for value, _ in others) / len(others)
    error = math.sqrt(sum(error**2 for _, error in others)) / len(others)
    return FixedPattern(mean, error, mean * len(same) / sum(same) if sum(same) > 0 else math.nan)


def _high_passed(image: torch.Tensor) -> torch.Tensor:
    """The image minus the mean of each block of `_WINDOW` pixels, cut to whole blocks, float64."""
    rows, columns = (side // _WINDOW for side in image.shape)
    blocks = image[: rows * _WINDOW, : columns * _WINDOW].double().reshape(rows, _WINDOW, columns, _WINDOW)
    return (blocks - blocks.mean(dim=(1, 3), keepdim=True)).reshape(rows * _WINDOW, columns * _WINDOW)


def _correlation(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    """The correlation coefficient, and its standard error from the spread over blocks."""
    side = min(_BLOCK, *(max(n // 4, 1) for n in a.shape))
    rows, columns = (n // side for n in a.shape)
    product = (a * b)[: rows * side, : columns * side].reshape(rows, side, columns, side).mean(dim=(1, 3)).flatten()
    scale = float((a.square().mean() * b.square().mean()).sqrt())
    if scale == 0:
        return 0.0, math.inf
    return float((a * b).mean()) / scale, float(product.std()) / math.sqrt(len(product)) / scale
