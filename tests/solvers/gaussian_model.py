"""A diffusion model in closed form: the exact denoiser of a Gaussian prior, and its exact posterior.

Images x ~ N(m, C), C diagonal in Fourier with power c(k) (the variance of an orthonormal coefficient). With white noise
on them, x_t = sqrt(a) x + sqrt(1 - a) eps, every coefficient is estimated on its own:

    E[x | x_t] = m + F^-1 [sqrt(a) c / (a c + 1 - a)] F (x_t - sqrt(a) m)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from optics import dense

from cryobench.core import Problem, Shape
from cryobench.errors import IncompatibleError
from cryobench.priors.denoising import DenoisingPrior
from cryobench.priors.diffusion import DiffusionModel

ALPHAS = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
"""a_t of the DDPM of 1000 linear steps."""


class GaussianPrior:
    """N(m, C) on images of `size` x `size`: m a blob of height 0.3, c(k) falling as (1 + (k/2)^2)^-2, or the same for
    all k, so that a pixel has the `deviation` stated."""

    def __init__(self, size: int = 16, deviation: float = 0.2, white: bool = False):
        k = torch.fft.fftfreq(size, dtype=torch.float64) * size
        radius2 = k[:, None] ** 2 + k[None, :] ** 2
        self.shape = (size, size)
        self.mean = 0.3 * torch.exp(-radius2 / (2 * (size / 5) ** 2)).roll((size // 2, size // 2), (0, 1))
        power = torch.ones_like(radius2) if white else (1 + radius2 / 4) ** -2
        self.power = (deviation**2 * power / power.mean())[:, : size // 2 + 1]

    def filtered(self, x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        return torch.fft.irfft2(gain * torch.fft.rfft2(x), s=self.shape)

    def draw(self, n: int, seed: int = 0) -> torch.Tensor:
        """n images [n, 1, H, W], float64."""
        white = torch.randn((n, 1, *self.shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return self.mean + self.filtered(white, self.power.sqrt())

    def estimate(self, x_t: torch.Tensor, a: float) -> torch.Tensor:
        """E[x | x_t]."""
        gain = math.sqrt(a) * self.power / (a * self.power + 1 - a)
        return self.mean + self.filtered(x_t - math.sqrt(a) * self.mean, gain)

    @cached_property
    def covariance(self) -> np.ndarray:
        """C, [N, N]."""
        N = self.shape[0] * self.shape[1]
        return (
            self.filtered(torch.eye(N, dtype=torch.float64).reshape(N, 1, *self.shape), self.power).flatten(1).numpy()
        )

    def model(self, prediction: str = "epsilon", alphas: torch.Tensor = ALPHAS) -> DiffusionModel:
        return DiffusionModel(_Network(self, prediction, alphas), alphas, prediction)  # type: ignore[arg-type]

    def posterior(self, problem: Problem) -> Posterior:
        """p(x | y) of the first image, by dense linear algebra."""
        A, C = dense(problem.operator), self.covariance
        variance = float(problem.sigma[0]) ** 2
        noise = np.eye(len(A))
        if problem.operator.noise_in_range:
            rank = np.linalg.matrix_rank(A, tol=1e-6)
            noise, variance = A @ np.linalg.pinv(A, rcond=1e-6), variance * len(A) / rank
        gain = C @ A.T @ np.linalg.pinv(A @ C @ A.T + variance * noise, rcond=1e-10, hermitian=True)
        m = self.mean.flatten().numpy()
        mean = m + gain @ (problem.y[0].double().flatten().numpy() - A @ m)
        return Posterior(mean.reshape(self.shape), C - gain @ A @ C)


@dataclass(frozen=True)
class Posterior:
    """mean [H, W] and covariance [N, N]."""

    mean: np.ndarray
    covariance: np.ndarray

    @property
    def deviation(self) -> np.ndarray:
        """Of every pixel, [H, W]."""
        return np.sqrt(np.diag(self.covariance).clip(0)).reshape(self.mean.shape)


class _Network:
    """Replaces the UNet: exact, in float64, differentiable."""

    dtype = torch.float64

    def __init__(self, prior: GaussianPrior, prediction: str, alphas: torch.Tensor):
        self.config: dict[str, Any] = {"sample_size": prior.shape[0], "in_channels": 1, "out_channels": 1}
        self._prior, self._prediction, self._alphas = prior, prediction, alphas

    def to(self, *_: Any, **__: Any) -> _Network:
        return self

    def __call__(self, x_t: torch.Tensor, t: torch.Tensor, return_dict: bool = False) -> tuple[torch.Tensor]:
        if t.numel() > 1:  # a level for each image
            return (torch.cat([self(x, level)[0] for x, level in zip(x_t.split(1), t, strict=True)]),)
        a = alpha(self._alphas, float(t))
        x0 = self._prior.estimate(x_t, a)
        eps = (x_t - math.sqrt(a) * x0) / math.sqrt(1 - a)
        v = math.sqrt(a) * eps - math.sqrt(1 - a) * x0
        return ({"epsilon": eps, "sample": x0, "v_prediction": v}[self._prediction],)


def alpha(alphas: torch.Tensor, t: float) -> float:
    """a_t; between two levels the logarithm of the noise (1 - a) / a is linear in t."""
    below = math.floor(t)
    low, high = (math.log((1 - a) / a) for a in alphas[[below, min(below + 1, len(alphas) - 1)]].tolist())
    return 1 / (1 + math.exp(low + (t - below) * (high - low)))


@dataclass(frozen=True)
class Known(DenoisingPrior):
    """A prior with a given live model."""

    live: DiffusionModel
    noise: float | Literal["auto"] = 0.0
    trained_on_clean: bool = False
    trained_with_symmetries: bool = False

    def check(self, shape: Shape) -> None:
        if shape != self.live.image_shape:
            raise IncompatibleError(f"the prior is of images of {self.live.image_shape}, and these are {shape}")

    def load(self, device: Any = "cpu") -> DiffusionModel:
        return self.live
