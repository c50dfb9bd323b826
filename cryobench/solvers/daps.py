"""`daps`: at every noise level a sample of p(x_0 | x_t, y), to which fresh noise of the next level is added."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch

from cryobench.core import Problem, Progress, recording
from cryobench.errors import ParameterError
from cryobench.priors.denoising import DenoisingModel
from cryobench.solvers.denoising import NOISE_OF_Y, data_step, errors_in_image
from cryobench.solvers.pinv import minimum_norm
from cryobench.solvers.reverse import Draws, Sampler
from cryobench.spec import Range


@dataclass(frozen=True)
class Daps(Sampler):
    """Decoupled annealing posterior sampling (Zhang et al. 2024, "Improving Diffusion Inverse Problem Solving with
    Decoupled Noise Annealing", algorithm 1): for noise levels s that fall from `start` to `end`, z = image + s noise,

        x0 = end point of the probability-flow ODE from z:  dz/ds = (z - E[x | z]) / s
        x ~ p(x_0 | x0, y),  assuming p(x_0 | z) = N(x0, s^2)
        z = x + s' noise,    s' the next level

    The paper draws x by Langevin steps. For a linear A the draw is one proximal step (perturb and optimise):

        x = argmin_x ||A x - (y + sigma n)||^2 / sigma^2 + ||x - u||^2 / s^2
        u ~ p(x_0 | z)

    and where y is exact, the projection of u on {x : A x = y}. The last x is the answer.

    u = x0 + spread s n'. With spread = 1 u is a sample of the Gaussian. But the end point of the ODE already follows
    the distribution of images, and additional noise doubles the variance of unmeasured components (for a Gaussian
    prior, at each level). The 100 short Langevin steps of the published code also hardly leave x0 in unmeasured
    components. The default is therefore spread = 0. No n' is added at the last level, where it would remain as white
    noise.

    The paper's full setting is steps = 200.
    """

    steps: Annotated[int, Range(10, 200, log=True), "noise levels"] = 50
    ode_steps: Annotated[int, "network evaluations per level"] = 5
    start: Annotated[float, Range(1, 100, log=True), "first noise level, on images in [-1, 1]"] = 100.0
    end: Annotated[float, Range(0.02, 0.5, log=True), "last noise level"] = 0.1
    spread: Annotated[
        float, Range(0, 1), "noise added to the end point of the ODE, as a fraction of the noise level"
    ] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ode_steps < 1:
            raise ParameterError(f"daps: ode_steps must be at least 1, got {self.ode_steps}")
        for name in ("start", "end"):
            if not 0 < getattr(self, name) < math.inf:
                raise ParameterError(f"daps: {name} must be positive, got {getattr(self, name):g}")
        if not 0 <= self.spread < math.inf:
            raise ParameterError(f"daps: spread must be zero or positive, got {self.spread:g}")

    @torch.no_grad()
    def sample(self, problem: Problem, model: DenoisingModel, draws: Draws, progress: Progress) -> torch.Tensor:
        least_squares = minimum_norm(problem)
        noise_of_y = draws.stream(NOISE_OF_Y) if (problem.sigma > 0).any() else None
        # the network cannot use levels beyond its schedule
        sigmas = polynomial(min(self.start, float(model.sigmas[-1])), self.end, self.steps)
        x = torch.zeros_like(least_squares)
        z = sigmas[0] * draws.x_T()
        for i, s in enumerate(sigmas):
            u = x0 = flow(model, z, s, self.ode_steps)
            last = i == self.steps - 1
            if self.spread > 0 and not last:
                u = x0 + self.spread * s * draws.noise()
            perturbed = least_squares if noise_of_y is None else least_squares + errors_in_image(problem, noise_of_y)
            x = data_step(problem, perturbed, u, s**2)
            recording.offer(z / math.sqrt(1 + s**2), x0)
            if not last:
                z = x + sigmas[i + 1] * draws.noise()
            progress(i + 1, self.steps)
        return x


def flow(model: DenoisingModel, z: torch.Tensor, s: float, steps: int) -> torch.Tensor:
    """The probability-flow ODE from z = image + s noise to an image, `steps` network evaluations, [B, 1, H, W].

    By Euler steps; the last one, from level 0.01 to 0, returns the estimate of the network.
    """
    points = [*polynomial(s, min(s, 0.01), steps), 0.0]
    for here, then in pairwise(points):
        x0 = model.denoise(z, here).clamp(-1, 1)
        z = x0 + then / here * (z - x0)
    return z


def polynomial(start: float, end: float, steps: int, rho: float = 7) -> list[float]:
    """`steps` levels from start to end, rho-th roots evenly spaced (Karras et al. 2022, eq. 5); `start` for one."""
    if steps == 1:
        return [start]
    high, low = start ** (1 / rho), end ** (1 / rho)
    return [(high + k / (steps - 1) * (low - high)) ** rho for k in range(steps)]
