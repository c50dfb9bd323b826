"""Cases for metrics: random images whose spectrum falls off like that of particles."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cryobench.core import Case, LinearOperator, Measured, Metric, Problem, Reconstruction, build_operator
from cryobench.numerics.linalg import per_item
from cryobench.operators.identity import Identity
from cryobench.operators.noise import NoNoise


def images(n: int, shape: tuple[int, int], *, seed: int = 0, fall: float = 1.0) -> torch.Tensor:
    """Random images [n, 1, H, W] in [-1, 1], float64; the amplitude of their spectrum falls as 1 / (1 + r)^fall."""
    white = torch.randn((n, 1, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    smooth = torch.fft.irfft2(torch.fft.rfft2(white) / (1 + ring_radius(shape)) ** fall, s=shape)
    low, high = smooth.amin(dim=(1, 2, 3), keepdim=True), smooth.amax(dim=(1, 2, 3), keepdim=True)
    return 2 * (smooth - low) / (high - low) - 1


def ring_radius(shape: tuple[int, int]) -> torch.Tensor:
    """The frequency of each coefficient of `rfft2`, in units of 1 / min(H, W)."""
    n = min(shape)
    return torch.hypot(
        torch.fft.fftfreq(shape[0], 1 / n).double()[:, None], torch.fft.rfftfreq(shape[1], 1 / n).double()
    )


def low_passed(x: torch.Tensor, radius: float) -> torch.Tensor:
    """Images without the frequencies above that radius, in units of 1 / min(H, W)."""
    shape = (x.shape[2], x.shape[3])
    return torch.fft.irfft2(torch.fft.rfft2(x) * (ring_radius(shape) <= radius), s=shape)


def case_of(
    truth: torch.Tensor,
    *,
    operator: LinearOperator | None = None,
    pixel_size: float | None = None,
    within: Sequence[float] | None = None,
) -> Case:
    """Exact measurements of these images, by default by the identity."""
    operator = operator or build_operator(
        Identity(), tuple(truth.shape[2:]), seed=0, dtype=truth.dtype, device=truth.device
    )
    y = operator.A(truth)
    problem = Problem(operator, y, NoNoise(), per_item(truth.new_zeros(len(truth)), y))
    return Case(problem, truth, [str(i) for i in range(len(truth))], [pixel_size] * len(truth), within=within)


def measure(metric: Metric, case: Case, x: torch.Tensor, deviation: torch.Tensor | None = None) -> Measured:
    """The result of a metric for images."""
    return metric.measure(case, Reconstruction(x, deviation=deviation))


def alone(case: Case, index: int) -> Case:
    """The case of one of its images; its operator must be the same for all of them."""
    one = slice(index, index + 1)
    problem = Problem(case.problem.operator, case.problem.y[one], case.problem.noise, case.problem.sigma[one])
    within = None if case.within is None else case.within[one]
    return Case(problem, case.truth[one], case.image_ids[one], case.pixel_size[one], within=within)
