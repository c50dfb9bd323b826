"""`pinv`, the baseline of every leaderboard, and `tikhonov`: one proximal step of the data term each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from cryobench.core import Problem, Progress, Reconstruction, Solver, mean_intensity
from cryobench.errors import ParameterError
from cryobench.numerics.linalg import norm, per_item
from cryobench.rng import Rng
from cryobench.spec import Range


@dataclass(frozen=True)
class Pinv(Solver):
    """The minimum-norm solution about the mean intensity c estimated from y.

        x = c + A^+ (y - c A 1),    c = <A 1, y> / ||A 1||^2

    Of all images that are consistent with the measurements it is the closest to a constant image. It uses no further
    prior knowledge, which makes it the baseline for other solvers.
    """

    dims = (2, 3)

    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        return Reconstruction(minimum_norm(problem))


@dataclass(frozen=True)
class Tikhonov(Solver):
    """Least squares with a penalty on the squared norm, about the mean intensity c estimated from y.

        x = argmin_x 1/2 ||A x - y||^2 + lam/2 ||x - c||^2

    One proximal step from c. `lam=auto` chooses the weight at which ||A x - A A^+ y|| equals the expected norm of the
    noise (Morozov's discrepancy principle); if y is exact this is lam = 0, which is `pinv`.
    """

    dims = (2, 3)

    lam: Annotated[
        float | Literal["auto"],
        Range(1e-4, 100, log=True, also=("auto",)),
        "weight of the squared norm; auto: from the noise level",
    ] = "auto"

    def __post_init__(self) -> None:
        if self.lam != "auto" and not 0 <= self.lam < math.inf:
            raise ParameterError(f"tikhonov: lam must be zero, positive or auto, got {self.lam:g}")

    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        operator, least_squares = problem.operator, minimum_norm(problem)
        c = per_item(mean_intensity(operator, problem.y), least_squares)
        lam = _discrepancy_weight(problem, least_squares - c) if self.lam == "auto" else torch.full_like(c, self.lam)
        x = torch.where(lam > 0, c + operator.A_dagger_A(least_squares - c, 1 / lam), least_squares)
        return Reconstruction(x, {"lam": lam.flatten(), "misfit": norm(operator.A(x - least_squares)).flatten()})


def minimum_norm(problem: Problem) -> torch.Tensor:
    """x = c + A^+ (y - c A 1), [B, C, *S], with c from `mean_intensity`."""
    operator, y = problem.operator, problem.y
    c = mean_intensity(operator, y)
    structure = operator.A_dagger(y - c * operator.mean_response)
    return per_item(c, structure) + structure


def expected_misfit(problem: Problem) -> torch.Tensor:
    """The expected norm of the noise on the range of A, [B, 1, ..., 1] as sigma: sigma sqrt(rank A).

    If y is stored in a larger space and sigma is the deviation there (`noise_in_range`), sigma sqrt(entries of y).
    """
    operator = problem.operator
    dimensions = problem.y[0].numel() if operator.noise_in_range else operator.rank
    return problem.sigma * dimensions**0.5


def _discrepancy_weight(problem: Problem, structure: torch.Tensor) -> torch.Tensor:
    """The weight at which the misfit of the Tikhonov solution equals the expected one; 0 where that is 0.

    By bisection between 1e-8 and 1e8 ||A||^2, since the misfit increases with the weight.
    """
    operator, target = problem.operator, per_item(expected_misfit(problem), structure)
    if not target.any():
        return torch.zeros_like(target)
    scale = operator.norms.to(target.dtype).square()
    scale = torch.where(scale > 0, scale, 1.0) * torch.ones_like(target)
    low, high = 1e-8 * scale, 1e8 * scale
    for _ in range(40):
        middle = (low * high).sqrt()
        misfit = norm(operator.A(operator.A_dagger_A(structure, 1 / middle) - structure))
        below = per_item(misfit, structure) < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.where(target > 0, (low * high).sqrt(), 0.0)
