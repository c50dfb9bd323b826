"""What every distribution of images has: draws, density, score and the denoiser of every noise level."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from cryobench.core import Shape


class Distribution(ABC):
    """A distribution of images of one shape, with closed forms. Computed in float64 on the CPU or the device of x."""

    shape: Shape

    @abstractmethod
    def sample(self, generator: torch.Generator, count: int = 1) -> torch.Tensor:
        """Independent images, float64 [count, 1, *S]."""

    @property
    @abstractmethod
    def mean(self) -> torch.Tensor:
        """The mean image, float64 [1, 1, *S]."""

    @abstractmethod
    def denoise(self, z: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """E[x | z] for z = x + sigma n, n ~ N(0, I), [B, 1, *S] in the dtype of z. Differentiable.

        sigma: at least 0, one for all images or [B, 1, 1, 1].
        """

    @abstractmethod
    def log_density(self, x: torch.Tensor) -> torch.Tensor:
        """log p(x) with its constant, float64 [B]."""

    @abstractmethod
    def score(self, x: torch.Tensor) -> torch.Tensor:
        """The gradient of log p at x, float64 [B, 1, *S]."""


def level(sigma: float | torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """sigma as float64 [1 or B], on the device of z."""
    return torch.as_tensor(sigma, dtype=torch.float64).to(z.device).reshape(-1)
