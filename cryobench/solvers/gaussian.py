"""`gaussian`: convolution with a Gaussian, of a given width or of the width with the least estimated risk."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from cryobench.core import Problem, Progress, Reconstruction, Solver
from cryobench.errors import ParameterError
from cryobench.numerics.fft import irfftn, rfftn
from cryobench.rng import Rng
from cryobench.spec import Range

NARROWEST, WIDEST = 0.1, 0.25
"""Of the widths that are searched: in pixels, and as a fraction of the shortest side."""
_GRID, _REFINED = 40, 24
"""Widths of the first search, in geometric progression, and steps of the golden section between the best three."""


@dataclass(frozen=True)
class GaussianFilter(Solver):
    """A Gaussian low-pass filter, on `identity`; periodic borders.

        x = F^-1 h F y,    h(k) = exp(-2 pi^2 width^2 |k|^2)    k in cycles per pixel

    auto: the width that minimises Stein's unbiased estimate of the mean squared error, which needs white noise of the
    stated standard deviation sigma (Stein 1981, Ann. Statist. 9:1135), with Y the orthonormal transform of y:

        SURE = 1/N sum_k ((1 - h)^2 |Y|^2 + 2 sigma^2 h) - sigma^2
    """

    dims = (2, 3)

    width: Annotated[
        float | Literal["auto"],
        Range(0.3, 30, log=True, also=("auto",)),
        "standard deviation of the Gaussian in pixels; auto: that of the least estimated risk",
    ] = "auto"

    any_size = True

    def __post_init__(self) -> None:
        if self.width != "auto" and not 0 <= self.width < math.inf:
            raise ParameterError(f"gaussian: width must be zero or more pixels, or auto, got {self.width:g}")

    def unsupported(self, problem: Problem) -> str | None:
        if not problem.operator.identity:
            return "gaussian smooths images; it needs the operator identity"
        return None

    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        x, widths = torch.empty_like(problem.y), []
        sigma = problem.sigma.flatten().double().tolist()
        for i, y in enumerate(problem.y):  # one at a time: an image may be a micrograph
            spectrum = rfftn(y, y.ndim - 1)
            noise = sigma[i if len(sigma) > 1 else 0]
            width = least_risk(spectrum[0], y.shape[1:], noise) if self.width == "auto" else float(self.width)
            for axis, response in enumerate(responses(width, y.shape[1:], y.device), 1):
                spectrum *= response.to(y.dtype).reshape([-1 if k == axis else 1 for k in range(y.ndim)])
            x[i] = irfftn(spectrum, y.shape[1:])
            widths.append(width)
            if progress is not None:
                progress(i + 1, problem.batch)
        return Reconstruction(x, {"width": torch.tensor(widths, dtype=torch.float64)})


def responses(width: float, shape: torch.Size, device: torch.device) -> list[torch.Tensor]:
    """The factors of h along each axis of the half spectrum of images [*shape], float64: h is their outer product."""
    *whole, last = shape
    axes = [torch.fft.fftfreq(n, dtype=torch.float64, device=device) for n in whole]
    axes.append(torch.fft.rfftfreq(last, dtype=torch.float64, device=device))
    return [(-2 * (math.pi * width * k) ** 2).exp() for k in axes]


def least_risk(spectrum: torch.Tensor, shape: torch.Size, sigma: float) -> float:
    """The width in pixels with the least `Risk`, between `NARROWEST` pixels and `WIDEST` of the shortest side; 0 if no
    such width is better than none, and where sigma is 0. spectrum: half spectrum (`rfftn`) of an image [*shape]."""
    if sigma == 0:
        return 0.0
    risk = Risk(spectrum, shape, sigma)
    low, high = math.log(NARROWEST), math.log(max(WIDEST * min(shape), 2 * NARROWEST))
    places = [low + (high - low) * i / (_GRID - 1) for i in range(_GRID)]
    values = [risk(math.exp(place)) for place in places]
    best = min(range(_GRID), key=values.__getitem__)
    a, b = places[max(best - 1, 0)], places[min(best + 1, _GRID - 1)]
    ratio = (math.sqrt(5) - 1) / 2
    inner = [b - ratio * (b - a), a + ratio * (b - a)]
    found = [risk(math.exp(place)) for place in inner]
    for _ in range(_REFINED):
        if found[0] < found[1]:
            b, inner[1], found[1] = inner[1], inner[0], found[0]
            inner[0] = b - ratio * (b - a)
            found[0] = risk(math.exp(inner[0]))
        else:
            a, inner[0], found[0] = inner[0], inner[1], found[1]
            inner[1] = a + ratio * (b - a)
            found[1] = risk(math.exp(inner[1]))
    width = math.exp((a + b) / 2)
    return width if risk(width) < risk(0.0) else 0.0


class Risk:
    """SURE of a Gaussian filter as a function of its width, for one image; see `GaussianFilter`.

    h is a product over the axes, so the sums over all frequencies are products of the power |Y|^2 with one vector for
    each axis: sum (1 - h)^2 |Y|^2 = sum |Y|^2 - 2 sum h |Y|^2 + sum h^2 |Y|^2.
    """

    def __init__(self, spectrum: torch.Tensor, shape: torch.Size, sigma: float):
        self._shape, self._variance = shape, sigma**2
        # the half spectrum counts twice where it stands for a conjugate pair
        self._twice = torch.full((spectrum.shape[-1],), 2.0, dtype=torch.float64, device=spectrum.device)
        self._twice[0] = 1
        if shape[-1] % 2 == 0:
            self._twice[-1] = 1
        self._power = (spectrum.real.double().square() + spectrum.imag.double().square()) / math.prod(shape)
        self._total = self._sum([torch.ones(n, dtype=torch.float64, device=spectrum.device) for n in spectrum.shape])

    def __call__(self, width: float) -> float:
        factors = responses(width, self._shape, self._power.device)
        passed, squared = self._sum(factors), self._sum([factor.square() for factor in factors])
        trace = math.prod(float(factor.sum()) for factor in factors[:-1]) * float(factors[-1] @ self._twice)
        residual = self._total - 2 * passed + squared
        return (residual + 2 * self._variance * trace) / math.prod(self._shape) - self._variance

    def _sum(self, factors: list[torch.Tensor]) -> float:
        """The sum over the whole spectrum of |Y|^2 times a product of one factor for each axis."""
        *others, last = factors
        left = self._power @ (last * self._twice)
        for factor in reversed(others):
            left = left @ factor
        return float(left)
