"""Uniform noise, such as rounding errors, as a cryobench noise model."""

from dataclasses import dataclass
from typing import Annotated

import torch

from cryobench.core import LinearOperator, NoiseModel, Noisy, Scale
from cryobench.numerics.linalg import per_item
from cryobench.rng import Rng


@dataclass(frozen=True)
class Example(NoiseModel):
    """Noise that is uniform between -width / 2 and width / 2, with standard deviation width / sqrt(12)."""

    dims = (2, 3)

    width: Annotated[float, "in the units of y"] = 0.1

    def apply(self, y: torch.Tensor, operator: LinearOperator, scale: Scale, rng: Rng) -> Noisy:
        u = rng.stream("uniform noise").uniform(y.shape[1:], dtype=y.dtype, device=y.device)
        sigma = per_item(y.new_full((len(y),), self.width / 12**0.5), y)
        return Noisy(y + self.width * (u - 0.5), sigma)

    def unsupported(self, operator: LinearOperator, scale: Scale) -> str | None:
        return "y lies in a subspace, which this noise would leave" if operator.noise_in_range else None
