"""`diffpir`: the reverse process with a proximal step of the data term at every level."""

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
from cryobench.solvers.reverse import Draws, Sampler, levels, noise_in, renoised
from cryobench.spec import Range


@dataclass(frozen=True)
class DiffPir(Sampler):
    """DiffPIR (Zhu et al. 2023, "Denoising Diffusion Models for Plug-and-Play Image Restoration", algorithm 1):

        x0 <- argmin_x ||A x - y||^2 + rho_t ||x - x0||^2
        eps = (x_t - sqrt(a_t) x0) / sqrt(1 - a_t)
        x_s = sqrt(a_s) x0 + sqrt(1 - a_s) (sqrt(1 - zeta) eps + sqrt(zeta) noise)

    with rho_t = lam sigma^2 / sigma_t^2. Where y is exact the first line is the projection on {x : A x = y}.
    """

    zeta: Annotated[float, Range(0, 1), "fraction of fresh noise in the variance of a step, 0 (none) to 1"] = 0.3
    lam: Annotated[float, Range(0.5, 50, log=True), "weight of the prior where y is noisy"] = 8.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.zeta <= 1:
            raise ParameterError(f"diffpir: zeta must lie in [0, 1], got {self.zeta:g}")
        if not 0 < self.lam < math.inf:
            raise ParameterError(f"diffpir: lam must be positive, got {self.lam:g}")

    @torch.no_grad()
    def sample(self, problem: Problem, model: DenoisingModel, draws: Draws, progress: Progress) -> torch.Tensor:
        least_squares = minimum_norm(problem)
        x = draws.x_T()
        for i, t, then in levels(model, self.steps):
            x0 = model.predict(x, t).x0.clamp_(-1, 1)
            x0 = data_step(problem, least_squares, x0, float(model.sigmas[t]) ** 2 / self.lam)
            eps = noise_in(model, x, x0, t)
            x = renoised(x0, eps, draws.noise() if t > 0 else None, model.alpha(then), self.zeta)
            recording.offer(x, x0)
            progress(i + 1, self.steps)
        return x
