"""`ddnm`: the reverse process, with the range component from the measurements and the null space from the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from cryobench.core import Problem, Progress, recording
from cryobench.errors import ParameterError
from cryobench.priors.denoising import DenoisingModel
from cryobench.solvers.denoising import NOISE_OF_Y, noise_in_image
from cryobench.solvers.pinv import minimum_norm
from cryobench.solvers.reverse import Draws, Sampler, levels, noise_in
from cryobench.spec import Range


@dataclass(frozen=True)
class Ddnm(Sampler):
    """DDNM and its noisy form DDNM+ (Wang, Yu & Zhang 2023, "Zero-Shot Image Restoration Using Denoising Diffusion
    Null-Space Model", eqs. 13 and 17-19):

        x0 <- x0 - w A^+ (A x0 - y)                     replaces the measured component
        x_s = sqrt(a_s) x0 + sqrt(1 - a_s) (sqrt(1 - eta^2) eps + eta noise)

    with w = 1 where y is exact. Where y is noisy, A^+ y has noise of deviation s_x (estimated by one application of A^+
    to noise), and w = min(1, sqrt(1 - a_s) / (sqrt(a_s) s_x)), which limits it to the noise of level s. The variance
    a_s w^2 s_x^2 that enters with y is subtracted from the noise drawn on the range of A.
    """

    eta: Annotated[float, Range(0, 1), "fraction of fresh noise in a step, 0 (none) to 1"] = 0.85

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ParameterError(f"ddnm: eta must lie in [0, 1], got {self.eta:g}")

    @torch.no_grad()
    def sample(self, problem: Problem, model: DenoisingModel, draws: Draws, progress: Progress) -> torch.Tensor:
        operator, least_squares = problem.operator, minimum_norm(problem)
        deviation = noise_in_image(problem, draws.stream(NOISE_OF_Y))
        noisy = bool((deviation > 0).any())
        x = draws.x_T()
        for i, t, then in levels(model, self.steps):
            x0 = model.predict(x, t).x0.clamp_(-1, 1)
            # eps is that of the uncorrected x0: recomputing it from the corrected x0 would undo part of the correction
            eps = noise_in(model, x, x0, t)
            b = model.alpha(then)
            # w is 1 without noise in y: at the last level the quotient would be 0 / 0
            w = torch.where(deviation > 0, (((1 - b) / b) ** 0.5 / deviation).clamp_max(1.0), 1.0)
            x0 = x0 + w * operator.A_dagger_A(least_squares - x0)
            if t == 0:
                x = x0
            else:
                drawn = (1 - self.eta**2) ** 0.5 * eps + self.eta * draws.noise()
                x = b**0.5 * x0 + (1 - b) ** 0.5 * drawn
                if noisy:
                    left = (1 - b - b * (w * deviation).square()).clamp_min(0).sqrt()
                    x = x + (left - (1 - b) ** 0.5) * operator.A_dagger_A(drawn)
            recording.offer(x, x0)
            progress(i + 1, self.steps)
        return x
