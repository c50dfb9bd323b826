"""`cryosense`: unconditional DDPM sampling, guided by Nesterov-accelerated gradients of the data term."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from cryobench.core import Problem, Progress, recording
from cryobench.errors import ParameterError
from cryobench.numerics.linalg import norm
from cryobench.priors.denoising import DenoisingModel
from cryobench.solvers.reverse import Draws, Sampler, ancestral, levels
from cryobench.spec import Range

ZETA = {16: 1.0, math.inf: 10.0}
"""zeta by block size K: the entry of the smallest key >= K. Operators without blocks have K = 1."""


@dataclass(frozen=True)
class CryoSense(Sampler):
    """CryoSENSE: DDPM steps, each followed by a gradient step on the data term with momentum.

        x_prev, x0 = DDPM step from x_t, and its estimate of x_0 clamped to [-1, 1]
        z = clamp(x0 - beta_i v, -1, 1)                     look-ahead
        g = grad_z mean((A z - y)^2),  g = g / (||g|| + 1e-8) for each image
        v = beta_i v + zeta_i g
        x = clamp(x_prev - v, -1, 1)

    beta_i and zeta_i increase linearly from beta_min and zeta_min at the first step to beta and zeta at the last. As
    published, except that the gradient is normalised per image and not over the batch, so that results do not depend on
    the batch. The gradient is A^T A z - A^T y, without autograd.
    """

    steps: Annotated[int, "network evaluations"] = 1000
    zeta: Annotated[
        float | Literal["auto"],
        Range(0.1, 100, log=True, also=("auto",)),
        "step size at the end; auto: 1 for blocks up to 16, else 10",
    ] = "auto"
    zeta_min: Annotated[float, "step size at the start"] = 1e-2
    beta: Annotated[float, Range(0, 0.99), "momentum at the end"] = 0.9
    beta_min: Annotated[float, "momentum at the start"] = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("zeta", "zeta_min", "beta", "beta_min"):
            value = getattr(self, name)
            if value != "auto" and not 0 <= value < math.inf:
                raise ParameterError(f"cryosense: {name} must be zero or positive, got {value:g}")

    def sample(self, problem: Problem, model: DenoisingModel, draws: Draws, progress: Progress) -> torch.Tensor:
        operator = problem.operator
        back_projection = operator.A_adjoint(problem.y)
        zeta = zeta_of(operator.block) if self.zeta == "auto" else self.zeta
        weight = 2 / problem.y[0].numel()
        with torch.no_grad():
            x = draws.x_T()
            v = torch.zeros_like(x)
            for i, t, then in levels(model, self.steps):
                rise = i / max(self.steps - 1, 1)
                beta_i = self.beta_min + (self.beta - self.beta_min) * rise
                zeta_i = self.zeta_min + (zeta - self.zeta_min) * rise
                x0 = model.predict(x, t).x0.clamp_(-1, 1)
                x_prev = ancestral(model, x, x0, t, then, draws.noise() if t > 0 else None)
                z = (x0 - beta_i * v).clamp_(-1, 1)
                g = (operator.A_adjoint_A(z) - back_projection) * weight
                g = g / (norm(g) + 1e-8)
                v = beta_i * v + zeta_i * g
                x = (x_prev - v).clamp_(-1, 1)
                recording.offer(x, x0)
                progress(i + 1, self.steps)
        return x


def zeta_of(block: int) -> float:
    """The published step size for a block of K x K pixels."""
    return next(value for largest, value in ZETA.items() if block <= largest)
