"""`pigdm`: the reverse process, guided by the pseudo-inverse through the network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch

from cryobench.core import Problem, Progress, recording
from cryobench.errors import ParameterError
from cryobench.priors.denoising import DenoisingModel
from cryobench.solvers.denoising import data_step
from cryobench.solvers.pinv import minimum_norm
from cryobench.solvers.reverse import Draws, Sampler, differentiable, levels, renoised
from cryobench.spec import Range


@dataclass(frozen=True)
class PiGdm(Sampler):
    """Pseudoinverse-guided diffusion (Song, Vahdat, Mardani & Kautz 2023, "Pseudoinverse-Guided Diffusion Models for
    Inverse Problems", algorithm 1), assuming p(x_0 | x_t) = N(x0, r^2), r^2 = 1 - a_t:

        g = J^T A^T (A A^T + sigma^2 / r^2)^-1 (y - A x0),   J = dx0/dx_t
        x_s = sqrt(a_s) x0 + sqrt(1 - a_s) (sqrt(1 - f) eps + sqrt(f) noise)
              + sqrt(a_t) g
        f = eta^2 (1 - a_t / a_s) / (1 - a_t)

    Where y is exact, g is J^T A^+ (y - A x0). eps and x0 are the network's, x0 clamped to [-1, 1]. Only J^T needs
    autograd; it is applied to the change of x0 by a proximal step. As in the paper, sqrt(a_t) g does not scale with the
    step length: r^2 times the score of p(y | x_t) is added at every level.
    """

    steps: Annotated[int, Range(10, 200, log=True), "network evaluations, each with its gradient"] = 100
    eta: Annotated[float, Range(0, 1), "fraction of fresh noise in a step, 0 (none, DDIM) to 1 (that of DDPM)"] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ParameterError(f"pigdm: eta must lie in [0, 1], got {self.eta:g}")

    @torch.no_grad()
    def sample(self, problem: Problem, model: DenoisingModel, draws: Draws, progress: Progress) -> torch.Tensor:
        least_squares = minimum_norm(problem)
        x = draws.x_T()
        for i, t, then in levels(model, self.steps):
            a, b = model.alpha(t), model.alpha(then)
            (eps, x0), vjp = differentiable(model, x, t)
            g = vjp(data_step(problem, least_squares, x0, 1 - a) - x0)
            fresh = self.eta**2 * (1 - a / b) / (1 - a)
            x = renoised(x0, eps, draws.noise() if t > 0 else None, b, fresh) + math.sqrt(a) * g
            recording.offer(x, x0)
            progress(i + 1, self.steps)
        return x
