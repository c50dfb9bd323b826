"""Maps along a curve, whose latent is the place on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cryobench.maps.curve import polynomials
from cryobench.maps.linear_volumes import LinearVolumes


@dataclass(frozen=True, eq=False)
class CurveVolumes(LinearVolumes):
    """v(t) = mean + sum_m phi_m(t) component_m, in the units of the file, for latents t [n, 1] in [0, 1]; others are
    taken to the nearer end. phi: `maps.curve.polynomials`. mean: float32 [D, D, D]. components: [M, D, D, D]."""

    @property
    def dimensions(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 1

    def weights(self, latents: torch.Tensor) -> torch.Tensor:
        return polynomials(latents[:, 0].cpu().double().clamp(0, 1), len(self.components)).float()
