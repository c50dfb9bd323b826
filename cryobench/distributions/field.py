"""Stationary Gaussian fields: x ~ N(m, C) with periodic borders, C diagonal in the Fourier basis.

With X the orthonormal DFT of x - m and S(k) = E |X(k)|^2 its power spectrum,

    log p(x) = -1/2 sum_k (|X|^2 / S + log 2 pi S)
    E[x | x + sigma n = z] = m + F^-1 [S / (S + sigma^2)] F (z - m)          (Wiener 1949)

The spectrum of a given one is a power law with a corner, S(k) ~ (1 + (|k| / corner)^2)^(-exponent / 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import torch

from cryobench.core import Shape, Source
from cryobench.distributions.distribution import Distribution, level
from cryobench.distributions.measured import CleanImages, clean_files, read_clean
from cryobench.distributions.spectrum import Spectrum, read_spectrum
from cryobench.errors import ParameterError
from cryobench.numerics.fft import irfftn, rfftn, whole_spectrum
from cryobench.numerics.shells import radial_frequency, shell_sums, shells
from cryobench.spec import Component

_LEAST = 1e-6
"""Least power of a coefficient of a measured spectrum, relative to the mean: all covariances are positive definite."""


class GaussianFieldDistribution(Distribution):
    """N(m, C). power: S, float64 in the layout of `rfftn`, positive. level: m, one number."""

    def __init__(self, power: torch.Tensor, shape: Shape, level: float = 0.0):
        self.power, self.shape, self.level = power.double(), tuple(shape), level

    @property
    def mean(self) -> torch.Tensor:
        return torch.full((1, 1, *self.shape), self.level, dtype=torch.float64)

    def filtered(self, x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        """F^-1 gain F x for a real gain in the layout of `rfftn`."""
        return irfftn(gain * rfftn(x, len(self.shape)), self.shape)

    def covariance(self, x: torch.Tensor) -> torch.Tensor:
        """C x, [B, 1, *S]."""
        return self.filtered(x, self.power.to(x.device, x.dtype))

    def sample(self, generator: torch.Generator, count: int = 1) -> torch.Tensor:
        white = torch.randn((count, 1, *self.shape), generator=generator, dtype=torch.float64)
        return self.level + self.filtered(white, self.power.sqrt())

    def denoise(self, z: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        power, variance = self.power.to(z.device), level(sigma, z).square().reshape(-1, *[1] * (z.ndim - 1))
        gain = (power / (power + variance)).to(z.dtype)
        return self.level + self.filtered(z - self.level, gain)

    def log_density(self, x: torch.Tensor) -> torch.Tensor:
        power = self.power.to(x.device)
        spectrum = rfftn(x.double() - self.level, len(self.shape), norm="ortho").abs().square()
        terms = spectrum / power + (2 * math.pi * power).log()
        return -whole_spectrum(terms, self.shape).flatten(1).sum(dim=1) / 2

    def score(self, x: torch.Tensor) -> torch.Tensor:
        return -self.filtered(x.double() - self.level, 1 / self.power.to(x.device))


@dataclass(frozen=True)
class FieldParameters:
    """A stationary Gaussian field with periodic borders: its power spectrum, given or measured.

    The given spectrum is the power law (1 + (|k| / corner)^2)^(-exponent / 2), or that of a file with `spectrum`. With
    `images` it is that of the clean images of a source, resampled to the size that is asked for and averaged over
    shells. In all cases it is scaled to the stated deviation.
    """

    corner: Annotated[float, "frequency below which the power is constant, cycles per pixel"] = 0.06
    exponent: Annotated[float, "of the decrease of the power above it"] = 3.0
    deviation: Annotated[float, "standard deviation of a pixel"] = 0.2
    images: Annotated[
        Source | None, Component("sources"), "measure the spectrum on the clean images of this source instead"
    ] = None
    count: Annotated[int, "number of these images, the first ones"] = 256
    spectrum: Annotated[str | None, "or a text file with rows of frequency, cycles per pixel, and power"] = None

    def __post_init__(self) -> None:
        for name in ("corner", "exponent", "deviation"):
            if not 0 < getattr(self, name) < math.inf:
                raise ParameterError(f"gaussian_field: {name} must be positive, got {getattr(self, name):g}")
        if self.count < 1:
            raise ParameterError(f"gaussian_field: count must be at least 1, got {self.count}")
        if self.images is not None and self.spectrum is not None:
            raise ParameterError("gaussian_field: images and spectrum both state the power; give one of them")

    def distribution(self, shape: Shape) -> GaussianFieldDistribution:
        """The field of images of this shape. Raises `DataError` for a file that is no spectrum."""
        return self.fixed()(shape)

    def fixed(self) -> Callable[[Shape], GaussianFieldDistribution]:
        """`distribution` with the file or the images as they are now, whatever happens to them later."""
        given = self._given()
        return lambda shape: _field(self.corner, self.exponent, self.deviation, given, tuple(shape))

    def parameters_digest(self) -> str:
        """A digest of the images or the file that it is measured on; '' without."""
        given = self._given()
        return "" if given is None else given.digest

    def _given(self) -> Spectrum | CleanImages | None:
        if self.spectrum is not None:
            return read_spectrum(self.spectrum)
        return None if self.images is None else read_clean(self.images, self.count)

    def files(self) -> Sequence[Path] | None:
        """The files that the distribution depends on; None if those of its images are not known."""
        if self.spectrum is not None:
            return [Path(self.spectrum).expanduser()]
        return () if self.images is None else clean_files(self.images, self.count)


@lru_cache(maxsize=16)
def _field(
    corner: float, exponent: float, deviation: float, given: Spectrum | CleanImages | None, shape: Shape
) -> GaussianFieldDistribution:
    if given is None:
        power = (1 + (radial_frequency(shape) / corner).square()) ** (-exponent / 2)
    elif isinstance(given, Spectrum):
        power = given.at(radial_frequency(shape))
    else:
        found = given.resampled(shape)
        shell = shells(shape)
        measured = rfftn(found - found.mean(), len(shape), norm="ortho").abs().square().mean(dim=0, keepdim=True)
        sums, sizes = (shell_sums(v, shell, shape)[0] for v in (measured, torch.ones_like(measured)))
        power = (sums / sizes)[shell]
        power = power.clamp_min(_LEAST * float(power.mean()))
    return GaussianFieldDistribution(power * (deviation**2 / whole_spectrum(power, shape).mean()), shape)
