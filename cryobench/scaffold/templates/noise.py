"""Uniform noise, as of rounding, as a cryobench noise model."""

from dataclasses import dataclass
from typing import Annotated

import torch

from cryobench.core import LinearOperator, NoiseModel, Noisy
from cryobench.rng import Rng


@dataclass(frozen=True)
class Example(NoiseModel):
    """Noise that is uniform between -width / 2 and width / 2, of deviation width / sqrt(12)."""

    width: Annotated[float, "in the units of y"] = 0.1

    def apply(self, y: torch.Tensor, operator: LinearOperator, rng: Rng) -> Noisy:
        u = rng.stream("uniform noise").uniform(y.shape[1:], dtype=y.dtype, device=y.device)
        sigma = torch.full((len(y), 1, 1, 1), self.width / 12**0.5, dtype=y.dtype, device=y.device)
        return Noisy(y + self.width * (u - 0.5), sigma)

    def unsupported(self, operator: LinearOperator) -> str | None:
        return "y lies on a subspace, and this noise would leave it" if operator.noise_in_range else None
