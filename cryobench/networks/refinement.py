"""Conditional diffusion with a continuous noise level (Saharia et al. 2022, SR3 and Palette; Chen et al. 2021).

    y = sqrt(gamma) x + sqrt(1 - gamma) eps,      gamma_t = product of 1 - beta_s over s <= t,   gamma_0 = 1

Training: a step t is drawn uniformly and gamma uniformly between gamma_{t-1} and gamma_t; the network predicts eps from
y, gamma and the condition. Sampling goes from gamma_T down, with alpha = gamma_t / gamma_s for the next level s < t:

    x'  = (y - sqrt(1 - gamma_t) eps') / sqrt(gamma_t), clamped
    y'  = [sqrt(gamma_s) (1 - alpha) x' + sqrt(alpha) (1 - gamma_s) y] / (1 - gamma_t)
        + sqrt((1 - alpha) (1 - gamma_s) / (1 - gamma_t)) z
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from cryobench.errors import ParameterError

NOISIEST = 100.0
"""sigma at which sampling begins with "log" spacing: the image is 1% of the noise; training reaches 148."""
LIMIT = 1.0
"""Estimates of the image are clamped to [-LIMIT, LIMIT]."""


@dataclass(frozen=True)
class Levels:
    """`steps` values of beta, from `first` to `last` linearly."""

    steps: int
    first: float
    last: float

    def gammas(self) -> torch.Tensor:
        """gamma_0 = 1, gamma_1, ..., gamma_T, float64 [T + 1]."""
        betas = torch.linspace(self.first, self.last, self.steps, dtype=torch.float64)
        return torch.cat([betas.new_ones(1), (1 - betas).cumprod(0)])


TRAINING, SAMPLING = Levels(2000, 1e-6, 0.01), Levels(1000, 1e-4, 0.09)
"""The published schedules of EMDiffuse."""


def drawn_level(step: torch.Tensor, between: torch.Tensor, gammas: torch.Tensor) -> torch.Tensor:
    """gamma [n] for numbers in (0, 1): `step` selects a step uniformly, `between` a level uniformly within it."""
    T = len(gammas) - 1
    t = 1 + (step * T).long().clamp_max(T - 1)
    upper, lower = gammas[t - 1].to(between), gammas[t].to(between)
    return upper + (lower - upper) * between


def noisy(x: torch.Tensor, noise: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """sqrt(gamma) x + sqrt(1 - gamma) noise. x, noise: [n, ...]; gamma: [n]."""
    gamma = gamma.to(x.dtype).reshape(-1, *(1 for _ in x.shape[1:]))
    return gamma.sqrt() * x + (1 - gamma).sqrt() * noise


def velocity(x: torch.Tensor, noise: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """v = sqrt(gamma) noise - sqrt(1 - gamma) x (Salimans & Ho 2022, appendix D). x, noise: [n, ...]; gamma: [n]."""
    gamma = gamma.to(x.dtype).reshape(-1, *(1 for _ in x.shape[1:]))
    return gamma.sqrt() * noise - (1 - gamma).sqrt() * x


def noise_of(v: torch.Tensor, y: torch.Tensor, gamma: float) -> torch.Tensor:
    """eps of the velocity at y = sqrt(gamma) x + sqrt(1 - gamma) eps: sqrt(1 - gamma) y + sqrt(gamma) v."""
    return (1 - gamma) ** 0.5 * y + gamma**0.5 * v


def respaced(gammas: torch.Tensor, steps: int, spacing: str = "log") -> torch.Tensor:
    """`steps` + 1 levels from gamma = 1 down to noise, [steps + 1].

    spacing: "linear" takes every (T / steps)-th level, the last among them. "log" spaces sigma = sqrt(1 / gamma - 1)
    evenly on a log scale, from that of the first level to `NOISIEST`; with T steps or more it is linear too. Raises
    `ParameterError` for more steps than there are.
    """
    T = len(gammas) - 1
    if not 1 <= steps <= T:
        raise ParameterError(f"steps must be 1 to {T}, the published number, got {steps}")
    if spacing == "linear" or steps in (1, T):
        return gammas[torch.linspace(0, T, steps + 1, dtype=torch.float64).round().long()]
    first = (1 / gammas[1] - 1).sqrt()
    sigmas = first * (NOISIEST / first) ** torch.linspace(0, 1, steps, dtype=torch.float64)
    return torch.cat([gammas[:1], 1 / (1 + sigmas.square())])


def sampling_step(
    y: torch.Tensor, eps: torch.Tensor, gamma: float, following: float, noise: torch.Tensor | None
) -> torch.Tensor:
    """y at the level `following` from y at the level `gamma` < `following`; without noise if `noise` is None."""
    x = ((y - (1 - gamma) ** 0.5 * eps) / gamma**0.5).clamp(-LIMIT, LIMIT)
    alpha = gamma / following
    mean = (following**0.5 * (1 - alpha) * x + alpha**0.5 * (1 - following) * y) / (1 - gamma)
    if noise is None:
        return mean
    return mean + ((1 - alpha) * (1 - following) / (1 - gamma)) ** 0.5 * noise


def sample(
    predict: Callable[[torch.Tensor, float], torch.Tensor],
    normal: Callable[[], torch.Tensor],
    levels: torch.Tensor,
    progress: Callable[[int, int], None] = lambda done, steps: None,
) -> torch.Tensor:
    """A sample. predict: eps from y and gamma. normal: new standard normal numbers of the shape of y.

    levels: of `respaced`. At the last step, to gamma = 1, the result is the clamped estimate.
    """
    values = levels.tolist()
    steps = len(values) - 1
    y = normal()
    for done, t in enumerate(range(steps, 0, -1)):
        gamma, following = values[t], values[t - 1]
        y = sampling_step(y, predict(y, gamma), gamma, following, normal() if t > 1 else None)
        progress(done + 1, steps)
    return y
