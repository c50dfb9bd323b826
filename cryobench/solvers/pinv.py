"""`pinv`: the floor of every leaderboard."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cryobench.core import Problem, Progress, Reconstruction, Solver
from cryobench.linalg import mean_intensity
from cryobench.rng import Rng


@dataclass(frozen=True)
class Pinv(Solver):
    """The least-norm solution around the mean intensity c that the measurements imply: x = c + A^+ (y - c A 1).

    Of all images that agree with the measurements it is the one nearest to a constant. It invents nothing, so a
    method that does not beat it has shown nothing.
    """

    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        return Reconstruction(least_norm(problem))


def least_norm(problem: Problem) -> torch.Tensor:
    """x = c + A^+ (y - c A 1), [B, 1, H, W], with c from `linalg.mean_intensity`."""
    operator, y = problem.operator, problem.y
    c = mean_intensity(operator, y)
    return c + operator.A_dagger(y - c * operator.mean_response)
