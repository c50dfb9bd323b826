"""`optimality_gap`: the error of a reconstruction over that of the exact posterior mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from cryobench.core import Case, Column, Measured, Metric, Reconstruction
from cryobench.metrics.missing import not_measured
from cryobench.numerics.linalg import item_axes
from cryobench.posteriors.exact import not_compared
from cryobench.posteriors.known_case import posterior_of
from cryobench.priors.known import GaussianField, KnownPrior
from cryobench.spec import Component


@dataclass(frozen=True)
class OptimalityGap(Metric):
    """Squared error over that of the exact posterior mean m of a known prior, in dB; no solver is below 0 on average.

    `optimality_gap`: 10 log10 (||x - t||^2 / ||m - t||^2), t the truth. It scatters, since one image may be closer to x
    than to m by chance. `expected_gap`: the same with expectations over the posterior, 10 log10 (1 + ||x - m||^2 / tr
    C), C its covariance, because E ||x - t||^2 = ||x - m||^2 + tr C for t ~ p(t | y): it does not need the truth, and
    is 0 for the exact mean only. For images of the source of the same name, Gaussian noise of a stated deviation and
    `--scaling none`.
    """

    columns = (Column("optimality_gap", "lower", "dB"), Column("expected_gap", "lower", "dB"))

    prior: Annotated[KnownPrior, Component("priors"), "the prior of the images"] = GaussianField()

    def weights_digest(self) -> str:
        return self.prior.weights_digest()

    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        reason = not_compared(case.problem, self.prior)
        if reason is not None:
            return not_measured(self, case, reason)
        exact, x, truth = posterior_of(case, self.prior), reconstruction.x.double(), case.truth.double()
        axes = item_axes(x)
        error, least, apart = ((a - b).square().sum(dim=axes)
                               for a, b in ((x, truth), (exact.mean, truth), (x, exact.mean)))  # fmt: skip
        values = {"optimality_gap": 10 * (error / least).log10()}
        if exact.deviation is None:
            missing = torch.full_like(error, torch.nan)
            reason = "the trace of the posterior covariance is not known for images of this size"
            return Measured(values | {"expected_gap": missing}, unmeasured={"expected_gap": reason})
        trace = exact.deviation.double().square().sum(dim=axes)
        return Measured(values | {"expected_gap": 10 * (1 + apart / trace).log10()})
