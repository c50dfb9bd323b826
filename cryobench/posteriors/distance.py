"""`energy_distance`: how far the draws of a sampler are from exact draws, as distributions.

The energy distance of two distributions with independent draws X, X' and Y, Y' (Székely & Rizzo 2013, "Energy
statistics: a class of statistics based on distances") is

    2 E ||X - Y|| - E ||X - X'|| - E ||Y - Y'||

at least 0, and 0 only if they are equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from cryobench.core import Case, Column, Measured, Metric, Reconstruction
from cryobench.errors import ParameterError
from cryobench.metrics.missing import not_measured
from cryobench.metrics.ranks import NEEDS_DRAWS
from cryobench.posteriors.exact import not_compared
from cryobench.posteriors.known_case import metric_rng, posterior_of
from cryobench.priors.known import GaussianField, KnownPrior
from cryobench.spec import Component


@dataclass(frozen=True)
class EnergyDistance(Metric):
    """Energy distance between the draws of a sampler and exact draws of the posterior, as a fraction of 2 E ||X - Y||.

    0 for an exact sampler and at most 1. Estimated without bias by pairs of different draws, so that it may be negative
    for a good sampler. Draws that are too narrow, too wide, biased or in too few modes increase it.
    """

    columns = (Column("energy_distance", "lower"),)
    against_truth = False
    uses_draws = True

    prior: Annotated[KnownPrior, Component("priors"), "the prior of the images"] = GaussianField()
    draws: Annotated[int, "exact draws"] = 64

    def __post_init__(self) -> None:
        if self.draws < 2:
            raise ParameterError(f"energy_distance: draws must be at least 2, got {self.draws}")

    def weights_digest(self) -> str:
        return self.prior.weights_digest()

    @torch.no_grad()
    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        drawn = reconstruction.draws
        reason = not_compared(case.problem, self.prior)
        if reason is None and (drawn is None or drawn.shape[1] < 2):
            reason = NEEDS_DRAWS
        if reason is not None or drawn is None:
            return not_measured(self, case, str(reason))
        posterior, rng = posterior_of(case, self.prior), metric_rng(case)
        exact = torch.stack([posterior.draw(rng, k) for k in range(self.draws)], dim=1)
        return Measured({"energy_distance": energy_distance(drawn.double().flatten(2), exact.flatten(2))})


def energy_distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The energy distance over 2 E ||X - Y||, of draws [B, K, N] and [B, L, N], by different draws only; [B]."""
    between = torch.cdist(x, y).mean(dim=(1, 2))
    own = [torch.cdist(z, z).sum(dim=(1, 2)) / (z.shape[1] * (z.shape[1] - 1)) for z in (x, y)]
    return (2 * between - own[0] - own[1]) / (2 * between)
