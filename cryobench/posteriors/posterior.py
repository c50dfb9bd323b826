"""What an exact posterior gives."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from cryobench.rng import Rng


class Posterior(ABC):
    """p(x | y) for a batch of images; float64.

    mean: [B, 1, *S]. deviation: of each pixel, [B, 1, *S]; None if only draws give it. info: numbers [B] by name that
    state how exact it is.
    """

    mean: torch.Tensor
    deviation: torch.Tensor | None
    info: dict[str, torch.Tensor]

    @abstractmethod
    def draw(self, rng: Rng, number: int) -> torch.Tensor:
        """Draw number 0, 1, ... of each image, [B, 1, *S]."""
