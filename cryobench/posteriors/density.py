"""`hpd_coverage`: whether the truth lies in the highest-density sets of a sampler, as often as it should."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from cryobench.core import Case, Column, Measured, Metric, Reconstruction
from cryobench.metrics.missing import not_measured
from cryobench.metrics.ranks import NEEDS_DRAWS, covered, rank
from cryobench.posteriors.exact import log_posterior, not_compared
from cryobench.priors.known import GaussianField, KnownPrior
from cryobench.spec import Component

LEVEL = 0.9
"""Nominal coverage of the set."""


@dataclass(frozen=True)
class DensityCoverage(Metric):
    """Whether the posterior density of the truth is as high as that of the draws of a sampler.

    The statistic is -log p(x | y), known up to a constant for a known prior; where y is exact, that of the projection
    on {x : A x = y}. `hpd_coverage`: 1 where the truth is in the highest-density set of nominal coverage 90% that the
    draws give, else 0 (module `metrics.ranks`); its mean over images is 0.9 for an exact sampler, less where draws are
    too close to the mode, more where they are too noisy. `hpd_rank`: (r + 1/2) / (K + 1), uniform on (0, 1) if
    calibrated.
    """

    columns = (Column("hpd_coverage", "none", interval="binomial"), Column("hpd_rank", "none"))
    uses_draws = True

    prior: Annotated[KnownPrior, Component("priors"), "the prior of the images"] = GaussianField()

    def weights_digest(self) -> str:
        return self.prior.weights_digest()

    @torch.no_grad()
    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        draws = reconstruction.draws
        reason = not_compared(case.problem, self.prior)
        if reason is None and (draws is None or draws.shape[1] < 2):
            reason = NEEDS_DRAWS
        if reason is not None or draws is None:
            return not_measured(self, case, str(reason))
        truth = -log_posterior(case.problem, self.prior, case.truth)
        each = torch.stack([-log_posterior(case.problem, self.prior, one) for one in draws.unbind(dim=1)], dim=1)
        r, K = rank(truth, each), draws.shape[1]
        return Measured({"hpd_coverage": covered(r, K, LEVEL), "hpd_rank": (r + 0.5) / (K + 1)})
