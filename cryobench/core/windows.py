"""Overlapping windows of an image or volume, and weights with which their contents are blended."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch

from cryobench.core.operator import Shape, Window
from cryobench.errors import Unsupported


class Windows:
    """Windows of one shape that cover an image, at multiples of `step` pixels, and the weights of their pixels.

    Along each axis as few as overlap by `overlap` pixels, evenly spaced. Raises `Unsupported` if `tile` is too small
    for the step.
    """

    def __init__(self, image_shape: Shape, tile: int, overlap: int, step: int):
        side, shared = tile // step, math.ceil(overlap / step)
        if side <= shared:
            raise Unsupported(
                f"its windows are multiples of {step} pixels, so tile={tile} with overlap={overlap} is too small; "
                f"use tile={(shared + 1) * step} or more"
            )
        axes = [_starts(n // step, side, shared) for n in image_shape]
        self.shape = tuple(min(n, side * step) for n in image_shape)
        self._starts = [[start * step for start in starts] for starts in axes]
        self.windows: list[Window] = [
            tuple(slice(start, start + n) for start, n in zip(starts, self.shape, strict=True))
            for starts in itertools.product(*self._starts)
        ]
        self._weights = [
            _partition(starts, n, size) for starts, n, size in zip(self._starts, self.shape, image_shape, strict=True)
        ]

    def weights(self, window: Window) -> torch.Tensor:
        """The weight of each pixel of a window, [*shape], float64."""
        product = torch.ones((), dtype=torch.float64)
        for part, starts, weights in zip(window, self._starts, self._weights, strict=True):
            product = product.unsqueeze(-1) * weights[starts.index(part.start)]
        return product


def _starts(n: int, side: int, shared: int) -> list[int]:
    """Where intervals of `side` start that cover 0 to n and overlap by `shared` or more, evenly spaced."""
    if n <= side:
        return [0]
    count = math.ceil((n - shared) / (side - shared))
    return [i * (n - side) // (count - 1) for i in range(count)]


def _partition(starts: Sequence[int], side: int, n: int) -> torch.Tensor:
    """The weights of overlapping intervals of one axis, [intervals, side], that sum to one at each of n pixels.

    A raised cosine over the smallest overlap from each edge that is not the image's, divided by the sum over the
    intervals.
    """
    ramp = min((first + side - second for first, second in itertools.pairwise(starts)), default=0)
    position = torch.arange(side, dtype=torch.float64) + 0.5
    weights = []
    for start in starts:
        rise = torch.ones(side, dtype=torch.float64)
        for distance, inside in ((position, start > 0), (side - position, start + side < n)):
            if inside and ramp:
                rise = rise * (math.pi / 2 * (distance / ramp).clamp_max(1)).sin().square()
        weights.append(rise)
    total = torch.zeros(n, dtype=torch.float64)
    for start, own in zip(starts, weights, strict=True):
        total[start : start + side] += own
    return torch.stack([own / total[start : start + side] for start, own in zip(starts, weights, strict=True)])
