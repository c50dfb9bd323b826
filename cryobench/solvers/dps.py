"""`dps`: the reverse process with a gradient step of the data term, taken through the network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch

from cryobench.core import Problem, Progress, recording
from cryobench.errors import ParameterError
from cryobench.numerics.linalg import norm, tiny
from cryobench.priors.denoising import DenoisingModel
from cryobench.solvers.reverse import Draws, Sampler, ancestral, differentiable, levels
from cryobench.spec import Range


@dataclass(frozen=True)
class Dps(Sampler):
    """Diffusion posterior sampling (Chung et al. 2023, "Diffusion Posterior Sampling for General Noisy Inverse
    Problems", algorithm 1, for Gaussian noise), at every level

        x_s = a draw given x_t and x0(x_t)   the ancestral step, x0 clamped to [-1, 1]
        x_s <- x_s - zeta grad_{x_t} ||y - A x0(x_t)|| / ||A||

    The gradient is that of the norm, J^T A^T (A x0 - y) / ||A x0 - y|| with J the Jacobian of the network's x0, as in
    the published code, whose default is zeta = 1; the paper states the gradient of the squared norm over the norm,
    which is twice that. Only J^T needs autograd. The division by ||A|| is an addition: the published operators have
    norms of about one, and without it the step length would depend on the units of y. The step length does not decrease
    with the residual, so the measurements are fitted only to within a step; the noise level is not used.
    """

    steps: Annotated[int, "network evaluations, each with its gradient"] = 1000
    zeta: Annotated[float, Range(0.05, 20, log=True), "length of the gradient step"] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.zeta < math.inf:
            raise ParameterError(f"dps: zeta must be zero or positive, got {self.zeta:g}")

    @torch.no_grad()
    def sample(self, problem: Problem, model: DenoisingModel, draws: Draws, progress: Progress) -> torch.Tensor:
        operator, y = problem.operator, problem.y
        scale = operator.norms.to(y.dtype).clamp_min(tiny(y))
        x = draws.x_T()
        for i, t, then in levels(model, self.steps):
            (_, x0), vjp = differentiable(model, x, t)
            residual = operator.A(x0) - y
            gradient = operator.A_adjoint(residual / norm(residual).clamp_min(tiny(y))) / scale
            step = self.zeta * vjp(gradient)
            x = ancestral(model, x, x0, t, then, draws.noise() if t > 0 else None) - step
            recording.offer(x, x0)
            progress(i + 1, self.steps)
        return x
