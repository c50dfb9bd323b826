"""`blur`: convolution with a Gaussian point-spread function, with periodic borders.

The kernel is a Gaussian sampled at whole pixels, wrapped and divided by its sum:

    g[n] = sum_m exp(-(n + m N)^2 / (2 width^2)) / Z,    w(k) = DFT of g, a product over the axes

g is positive, so measurements can be counts, and w is real, positive and even.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch

from cryobench.core import Imaging, OperatorRecipe
from cryobench.core.source import size_text
from cryobench.errors import IncompatibleError, ParameterError
from cryobench.operators.spectral import SpectralOperator

_REACH = 40
"""Widths from the centre at which the kernel ends: exp(-800) is 0 in float64."""


@dataclass(frozen=True)
class Blur(OperatorRecipe):
    """Convolution with a Gaussian point-spread function of a given width; the borders are periodic.

        y(p) = sum_d g(d) x(p - d),    g(d) = 1/Z exp(-|d|^2 / (2 width^2))

    Z: the sum of the exponentials. Composed with `decimate` it is super-resolution (`decimate:2@blur:1.2`), in closed
    form.
    """

    dims = (2, 3)

    width: Annotated[float, "standard deviation of the Gaussian, pixels"]
    axis: Annotated[int | None, "the only axis that is blurred, 0 for z of a volume; none: all axes"] = None

    def __post_init__(self) -> None:
        if not 0 < self.width < math.inf:
            raise ParameterError(f"blur: width must be a positive number of pixels, got {self.width:g}")
        if self.axis is not None and not 0 <= self.axis <= 2:
            raise ParameterError(f"blur: axis must be 0, 1 or 2, or none for all axes, got {self.axis}")

    def check(self, imaging: Imaging) -> tuple[int, ...]:
        shape = imaging.shape
        if self.axis is not None and self.axis >= len(shape):
            raise IncompatibleError(
                f"blur: axis={self.axis}, but images of {size_text(shape)} have the axes 0 to {len(shape) - 1}; give "
                "one of these"
            )
        shortest = min(shape) if self.axis is None else shape[self.axis]
        if self.width > shortest:
            raise IncompatibleError(
                f"blur: width {self.width:g} is more than a side of {shortest} pixels, so the result is constant; give "
                "a smaller width"
            )
        return (1, *shape)

    def build(
        self, imaging: Imaging, drawn: Mapping[str, torch.Tensor], *, dtype: torch.dtype, device: torch.device
    ) -> SpectralOperator:
        dims, factors = len(imaging.shape), []
        for axis, n in enumerate(imaging.shape):
            if self.axis in (None, axis):
                w = torch.fft.fft(kernel(self.width, n)).real
                w = w[: n // 2 + 1] if axis == dims - 1 else w
                factors.append(w.reshape(-1, *[1] * (dims - 1 - axis)))
        half = (1, 1, *imaging.shape[:-1], imaging.shape[-1] // 2 + 1)
        transfer = torch.ones(half, dtype=torch.float64)
        for factor in factors:
            transfer = transfer * factor
        operator = SpectralOperator(transfer, imaging.shape, dtype=dtype, device=device)
        operator.nonnegative = True
        return operator


def kernel(width: float, n: int) -> torch.Tensor:
    """The periodic kernel of n pixels with its centre at pixel 0, float64 [n]; its sum is 1."""
    wraps = math.ceil(_REACH * width / n)
    places = torch.arange(-wraps * n, (wraps + 1) * n, dtype=torch.float64)
    g = (-(places**2) / (2 * width**2)).exp().reshape(-1, n).sum(dim=0)
    return g / g.sum()
