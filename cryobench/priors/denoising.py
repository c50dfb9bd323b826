"""Priors that are used through their denoisers, whatever these are: a network, or the closed form of a distribution.

At the noise levels t = 0 .. T-1 (Ho, Jain & Abbeel 2020, eq. 4)

    x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps,    eps ~ N(0, I),    a_t decreasing from nearly 1 to nearly 0,

so that x_t / sqrt(a_t) is an image with white noise of standard deviation sigma_t = sqrt((1 - a_t) / a_t). The estimate
of x_0 is E[x_0 | x_t], and the score of the distribution of z = x_0 + sigma n is (E[x_0 | z] - z) / sigma^2 (Tweedie's
formula), so that a denoiser at every level is all that solvers need.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from cryobench.core import Prior
from cryobench.errors import ParameterError

if TYPE_CHECKING:
    from typing import Self


class Prediction(NamedTuple):
    """The estimates of the noise in x_t and of the noise-free image, each [B, 1, H, W]."""

    eps: torch.Tensor
    x0: torch.Tensor


class DenoisingModel(ABC):
    """A live denoiser with its noise levels.

    alphas_cumprod: a_t, float64 [T] on the CPU. prediction: what the model predicts: epsilon, sample or v_prediction.
    Where it is epsilon, the estimate of x_0 contains rounding that grows with sigma.
    """

    alphas_cumprod: torch.Tensor
    prediction: str
    device: torch.device

    @property
    def T(self) -> int:
        """The number of noise levels."""
        return len(self.alphas_cumprod)

    def alpha(self, t: int) -> float:
        """a_t; 1 for t < 0 (no noise)."""
        return float(self.alphas_cumprod[t]) if t >= 0 else 1.0

    @cached_property
    def sigmas(self) -> torch.Tensor:
        """sigma_t = sqrt((1 - a_t) / a_t), [T] float64, increasing: the noise in x_t / sqrt(a_t)."""
        return ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()

    @abstractmethod
    def denoise(self, z: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """E[x | z] for z = x + sigma n, n ~ N(0, I), both [B, 1, H, W]. Differentiable.

        sigma: for all images, or per image, positive and [B, 1, 1, 1]. For sigma = 0 the result is z.
        Raises `ParameterError` for a sigma that is negative or not finite.
        """

    def predict(self, x: torch.Tensor, t: float) -> Prediction:
        """The estimates of eps and x_0 from x_t [B, 1, H, W] at level t, in the dtype of x. Differentiable.

        t may lie between two levels: a_t is then that of the geometrically interpolated sigma_t.
        """
        a = self.alpha_between(t)
        x0 = self.denoise(x / a**0.5, ((1 - a) / a) ** 0.5)
        return Prediction((x - a**0.5 * x0) / (1 - a) ** 0.5, x0)

    def select(self, images: slice | torch.Tensor) -> Self:
        """The model for some of the images; the model itself if it is the same for all images."""
        return self

    @torch.no_grad()
    def generate(self, noise: torch.Tensor, steps: int = 50) -> torch.Tensor:
        """Samples [B, 1, H, W] of the prior from noise x_T ~ N(0, I), by DDIM (Song, Meng & Ermon 2021, eq. 12).

        At min(steps, T) levels, evenly spaced from T - 1 to 0. Each estimate of x_0 is clamped to [-1, 1] and
        eps recomputed from it, as diffusers' `DDIMScheduler` does with `use_clipped_model_output`.
        """
        if steps < 1:
            raise ParameterError(f"steps must be at least 1, got {steps}")
        x = noise
        levels = torch.linspace(self.T - 1, 0, min(steps, self.T)).round().int().tolist()
        for t, then in zip(levels, [*levels[1:], -1], strict=True):
            a, b = self.alpha(t), self.alpha(then)
            x0 = self.predict(x, t).x0.clamp(-1, 1)
            eps = (x - math.sqrt(a) * x0) / math.sqrt(1 - a)
            x = math.sqrt(b) * x0 + math.sqrt(1 - b) * eps
        return x

    def level_of(self, sigma: float) -> float:
        """The level t, between 0 and T - 1, whose sigma_t is `sigma`, interpolated linearly in log sigma.

        Clamped to the ends of the schedule. Raises `ParameterError` for a sigma that is negative or not finite.
        """
        check_sigma(sigma)
        logs = self.sigmas.log()
        log = math.log(sigma) if sigma > 0 else -math.inf
        above = int(torch.searchsorted(logs, log))
        if above == 0:
            return 0.0
        if above == self.T:
            return self.T - 1.0
        low, high = logs[above - 1 : above + 1].tolist()
        return above - 1 + (log - low) / (high - low)

    def alpha_between(self, t: float) -> float:
        """a_t at a level between two integers, with log sigma_t interpolated linearly."""
        below = math.floor(t)
        if below == t:
            return self.alpha(below)
        low, high = self.sigmas[below : below + 2].log().tolist()
        return 1 / (1 + math.exp(2 * (low + (t - below) * (high - low))))


class DenoisingPrior(Prior):
    """A registered prior with a denoiser at every noise level: what solvers with a `DenoisingModel` require.

    in_units_of_file: whether it describes images in the units of their file, so that solvers take the scale of the
    problem and estimate none; else images in [-1, 1].
    """

    noise: Any
    """Standard deviation of white noise in the images, in addition to that which the prior models; auto: estimated."""
    in_units_of_file: bool = False

    @abstractmethod
    def load(self, device: torch.device | str = "cpu") -> DenoisingModel:
        """The live model on a device, cached. Raises `DataError` if it cannot be read."""

    @property
    def intensity(self) -> tuple[float, float] | None:
        """Mean and standard deviation over pixels of the images that it describes; None if unknown."""
        return None

    @property
    def trained_on_clean(self) -> bool:
        """Whether the training images had no noise."""
        return False

    @property
    def trained_with_symmetries(self) -> bool:
        """Whether its images are as probable after any symmetry of the square."""
        return False


def check_sigma(sigma: float) -> None:
    """Raise `ParameterError` for a noise level that is negative or not finite."""
    if not 0 <= sigma < math.inf:
        raise ParameterError(f"a noise level must be zero or positive, and finite; got {sigma:g}")
