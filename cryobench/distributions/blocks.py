"""Sparse blocks: images whose b x b blocks have independent coefficients in the orthonormal DCT, most of them small.

Coefficient i of a block is large with probability p: it is N(0, s_i^2) then, and N(0, (q s_i)^2) else, a scale mixture
of two Gaussians (George & McCulloch 1993). s_i^2 falls with the frequency of the coefficient, as (1 + u^2 + v^2)^-1 for
its indices u and v. The transform is orthonormal, so that white noise remains white: density, score and denoiser are
those of scalars. Heavy tails: the kurtosis of a coefficient is 3 (p + (1 - p) q^4) / (p + (1 - p) q^2)^2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import torch

from cryobench.core import Shape
from cryobench.distributions.distribution import Distribution, level
from cryobench.errors import IncompatibleError, ParameterError


class BlocksDistribution(Distribution):
    """large: p. deviations: of the large and of the small coefficients, float64 [2, b, b]."""

    def __init__(self, large: float, deviations: torch.Tensor, shape: Shape):
        self.large, self.deviations, self.shape = large, deviations.double(), tuple(shape)
        self.block = deviations.shape[-1]
        self.log_weights = torch.tensor([large, 1 - large], dtype=torch.float64).log()

    @property
    def mean(self) -> torch.Tensor:
        return torch.zeros((1, 1, *self.shape), dtype=torch.float64)

    def analysis(self, x: torch.Tensor) -> torch.Tensor:
        """The coefficients of images [B, 1, H, W], [B, H / b, W / b, b, b]."""
        b, (H, W) = self.block, self.shape
        D = _dct(b).to(x.device, x.dtype)
        return D @ x.reshape(-1, H // b, b, W // b, b).transpose(2, 3) @ D.mT

    def synthesis(self, c: torch.Tensor) -> torch.Tensor:
        """The images [B, 1, H, W] of these coefficients; the inverse and the transpose of `analysis`."""
        D = _dct(self.block).to(c.device, c.dtype)
        return (D.mT @ c @ D).transpose(2, 3).reshape(-1, 1, *self.shape)

    def sample(self, generator: torch.Generator, count: int = 1) -> torch.Tensor:
        b, (H, W) = self.block, self.shape
        size = (count, H // b, W // b, b, b)
        small = (torch.rand(size, generator=generator, dtype=torch.float64) >= self.large).long()
        white = torch.randn(size, generator=generator, dtype=torch.float64)
        return self.synthesis(torch.where(small == 1, self.deviations[1], self.deviations[0]) * white)

    def _logs(self, c: torch.Tensor, variances: torch.Tensor) -> torch.Tensor:
        """log of weight times density of each of the two Gaussians, [2, ...]; variances [2, 1 or B, 1, 1, b, b]."""
        logs = -(c.square() / variances + (2 * math.pi * variances).log()) / 2
        return logs + self.log_weights.to(c.device).reshape(2, *[1] * c.ndim)

    def _variances(self, like: torch.Tensor, sigma: float | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The variances of the coefficients without and with noise, [2, 1, 1, 1, b, b] and [2, 1 or B, 1, 1, b, b]."""
        own = self.deviations.to(like.device).square()[:, None, None, None]
        return own, own + level(sigma, like).square().reshape(1, -1, 1, 1, 1, 1)

    def large_given(self, c: torch.Tensor) -> torch.Tensor:
        """The probability that each coefficient, of known value, is large, in the shape of c [..., b, b]."""
        variances = self.deviations.to(c.device).square().reshape(2, *[1] * (c.ndim - 2), self.block, self.block)
        return self._logs(c, variances).softmax(dim=0)[0]

    def denoise(self, z: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        c = self.analysis(z.double())
        own, noisy = self._variances(c, sigma)
        shares = self._logs(c, noisy).softmax(dim=0)
        return self.synthesis((shares * (own / noisy)).sum(dim=0) * c).to(z.dtype)

    def log_density(self, x: torch.Tensor) -> torch.Tensor:
        c = self.analysis(x.double())
        return self._logs(c, self._variances(c, 0.0)[0]).logsumexp(dim=0).flatten(1).sum(dim=1)

    def score(self, x: torch.Tensor) -> torch.Tensor:
        c = self.analysis(x.double())
        own, _ = self._variances(c, 0.0)
        return -self.synthesis((self._logs(c, own).softmax(dim=0) / own).sum(dim=0) * c)


@dataclass(frozen=True)
class BlocksParameters:
    """Images with independent, sparse coefficients of the DCT of their blocks."""

    block: Annotated[int, "side of the blocks, pixels"] = 8
    large: Annotated[float, "probability that a coefficient is large"] = 0.15
    small: Annotated[float, "deviation of the small coefficients relative to the large ones"] = 0.1
    deviation: Annotated[float, "standard deviation of a pixel, root mean square"] = 0.2

    def __post_init__(self) -> None:
        if self.block < 1:
            raise ParameterError(f"sparse_blocks: block must be at least 1, got {self.block}")
        for name in ("large", "small"):
            if not 0 < getattr(self, name) < 1:
                raise ParameterError(f"sparse_blocks: {name} must lie between 0 and 1, got {getattr(self, name):g}")
        if not 0 < self.deviation < math.inf:
            raise ParameterError(f"sparse_blocks: deviation must be positive, got {self.deviation:g}")

    def distribution(self, shape: Shape) -> BlocksDistribution:
        """The distribution of images of this shape. Raises `IncompatibleError` for sides that are no multiples of the
        block."""
        if len(shape) != 2 or any(n % self.block for n in shape):
            raise IncompatibleError(f"sparse_blocks: the sides of an image must be multiples of {self.block}, got "
                                    f"{' x '.join(map(str, shape))}; give --size or block")  # fmt: skip
        return _blocks(self.block, self.large, self.small, self.deviation, tuple(shape))

    def parameters_digest(self) -> str:
        """'': nothing is measured."""
        return ""

    def files(self) -> Sequence[Path]:
        """None: the parameters determine the distribution."""
        return ()


@lru_cache(maxsize=16)
def _blocks(block: int, large: float, small: float, deviation: float, shape: Shape) -> BlocksDistribution:
    k = torch.arange(block, dtype=torch.float64).square()
    power = 1 / (1 + k[:, None] + k)
    power = power * (deviation**2 / power.mean() / (large + (1 - large) * small**2))
    return BlocksDistribution(large, torch.stack([power.sqrt(), small * power.sqrt()]), shape)


@lru_cache(maxsize=16)
def _dct(n: int) -> torch.Tensor:
    """The orthonormal DCT-II matrix [n, n], float64."""
    k, j = (torch.arange(n, dtype=torch.float64) for _ in range(2))
    matrix = (math.pi * (2 * j + 1) * k[:, None] / (2 * n)).cos() * (2 / n) ** 0.5
    matrix[0] /= 2**0.5
    return matrix
