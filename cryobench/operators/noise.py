"""Noise models: the noise that a detector adds to exact measurements. All draws are keyed by (seed, image id)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from cryobench.core import LinearOperator, NoiseModel, Noisy, Problem, Scale, mean_intensity
from cryobench.errors import ParameterError, Unsupported
from cryobench.numerics.linalg import dot, item_axes, per_item
from cryobench.rng import Rng

PURPOSE = "measurement noise"


@dataclass(frozen=True)
class NoNoise(NoiseModel):
    """Exact measurements.

        y = A x

    Solvers are given a standard deviation of 0.
    """

    dims = (2, 3)

    def apply(self, y: torch.Tensor, operator: LinearOperator, scale: Scale, rng: Rng) -> Noisy:
        return Noisy(y, per_item(y.new_zeros(len(y)), y))


@dataclass(frozen=True)
class Gaussian(NoiseModel):
    """White Gaussian noise, of a standard deviation given in the units of y (`sigma`) or relative to it (`rel`).

        y = A x + sigma n,    n ~ N(0, I)

    `rel` is relative to the root mean square of y minus its mean response c A 1 (c: the mean intensity estimated from
    y), per image, so that the noise is relative to the structure in y and not to its offset.
    For operators that store y in a space larger than their range (`fourier`), the noise is projected onto the range
    of A: unmeasured coefficients have no noise, and the standard deviation per entry of y, which solvers are given,
    is reduced by sqrt(rank(A) / N).
    """

    dims = (2, 3)

    sigma: Annotated[float | None, "standard deviation in the units of y"] = None
    rel: Annotated[float | None, "standard deviation relative to the RMS of y minus its mean response"] = None

    def __post_init__(self) -> None:
        if (self.sigma is None) == (self.rel is None):
            raise ParameterError("gaussian requires one level, as gaussian:0.1 (sigma) or gaussian:rel=0.05")
        for name, level in (("sigma", self.sigma), ("rel", self.rel)):
            if level is not None and not 0 <= level < float("inf"):
                raise ParameterError(f"gaussian: {name} must be zero or positive, got {level:g}")

    def apply(self, y: torch.Tensor, operator: LinearOperator, scale: Scale, rng: Rng) -> Noisy:
        sigma = per_item(y.new_full((len(y),), self.sigma or 0.0), y)
        if self.rel is not None:
            structure = y - mean_intensity(operator, y) * operator.mean_response
            sigma = self.rel * (dot(structure, structure) / structure[0].numel()).sqrt()
        noise = sigma * rng.stream(PURPOSE).normal(y.shape[1:], dtype=y.dtype, device=y.device)
        if operator.noise_in_range:
            noise = operator.on_range(noise)
            sigma = sigma * (operator.noise_rank / y[0].numel()) ** 0.5
        return Noisy(y + noise, sigma)


@dataclass(frozen=True)
class Poisson(NoiseModel):
    """Counting noise, scaled back to the units of y.

        counts ~ Poisson(dose A u),    u = (x - lo) / (hi - lo)

    [lo, hi] is the range of the scale, [-1, 1] by default. `dose` is the mean count for one pixel of full intensity
    behind a mask of one. Requires an operator with non-negative pixel weights. The stated sigma is the root mean square
    deviation of an entry, estimated from the counts.
    """

    dims = (2, 3)

    dose: Annotated[float, "mean counts for a pixel of full intensity"]

    def __post_init__(self) -> None:
        if not 0 < self.dose < float("inf"):
            raise ParameterError(f"poisson: dose must be positive, got {self.dose:g}")

    def unsupported(self, operator: LinearOperator, scale: Scale) -> str | None:
        if scale.range is None:
            return f"poisson noise needs intensities of known range; scaling {scale.name} has none, use minmax"
        return None if operator.nonnegative else "poisson noise counts particles: it needs non-negative pixel weights"

    def apply(self, y: torch.Tensor, operator: LinearOperator, scale: Scale, rng: Rng) -> Noisy:
        if scale.range is None:
            raise ParameterError(f"{self.unsupported(operator, scale)}")
        low, high = scale.range
        # A x = width A((x - lo) / width) + lo A 1
        width, offset = high - low, low * operator.mean_response
        rate = (self.dose * (y - offset) / width).clamp_min(0)
        counts = rng.stream(PURPOSE).poisson(rate)
        # the variance of an entry width counts / dose is width^2 rate / dose^2, and counts is an estimate of rate
        variance = width**2 * counts.mean(dim=item_axes(y), keepdim=True) / self.dose**2
        return Noisy(width * counts / self.dose + offset, variance.sqrt())


@dataclass(frozen=True)
class Own(NoiseModel):
    """The noise that the images already have, without further noise.

        y = A a,    sigma^2 = <y^2 - y z>,    z = A b

    The standard deviation is estimated per image from the other half b, with y and z minus the mean response c A 1:
    the signal and every other part that both halves have in common cancel. Where there is no other
    half, b is the clean image. The images are the measurement and no truth.
    """

    dims = (2, 3)
    of_image = True

    def apply(self, y: torch.Tensor, operator: LinearOperator, scale: Scale, rng: Rng) -> Noisy:
        raise Unsupported(_ONE_IMAGE)

    def apply_to_halves(
        self, y: torch.Tensor, other: torch.Tensor | None, operator: LinearOperator, scale: Scale, rng: Rng
    ) -> Noisy:
        if other is None:
            raise Unsupported(_ONE_IMAGE)
        middle = (y + other) / 2
        middle = (mean_intensity(operator, middle) * operator.mean_response).double()
        variance = ((y - middle) * (y.double() - other)).mean(dim=item_axes(y), keepdim=True)
        if not (variance > 0).all():
            raise Unsupported(
                "the estimated variance of the noise is not positive; own needs images with independent noise"
            )
        return Noisy(y, variance.sqrt().to(y.dtype))


_ONE_IMAGE = ("own estimates the noise of an image from a second one of the same specimen, and the data have none; use "
              "a source of halves, movies or pairs, or gaussian")  # fmt: skip


def noise_power(problem: Problem) -> torch.Tensor:
    """N, the mean square of the noise in a coefficient of the orthonormal DFT of y, float64 [B, 1, ..., 1].

    It is sigma^2; if noise is confined to the range of A and sigma is its mean over y, sigma^2 N / rank(A).
    """
    operator, variance = problem.operator, problem.sigma.double().square()
    return variance * (problem.y[0].numel() / max(operator.rank, 1)) if operator.noise_in_range else variance
