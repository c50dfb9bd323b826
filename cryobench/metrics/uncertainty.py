"""Calibration of the standard deviation of each pixel, for solvers that estimate one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from cryobench.core import Case, Column, Measured, Metric, Reconstruction
from cryobench.metrics.missing import not_measured
from cryobench.metrics.missing_sections import between_measured
from cryobench.metrics.ranks import NEEDS_DRAWS, covered, rank
from cryobench.metrics.within import inside, mean_inside
from cryobench.numerics.linalg import item_axes

LEVELS = tuple(number / 20 for number in range(1, 20))
"""Nominal coverages of the central intervals that are evaluated."""
STATED = {"coverage": 0.9, "coverage_68": 0.68, "coverage_95": 0.95}
"""Nominal coverages that have a column."""
_ROUNDING = 1e-6
"""Relative spread of the predicted variance up to which it is constant."""
_NO_DEVIATION = "the solver states no standard deviation; samplers do with samples=2 or more"


@dataclass(frozen=True)
class Coverage(Metric):
    """How often the truth lies in the central intervals of its predictive distribution, pixel by pixel.

    That is N(x, deviation^2), or, where x and the deviation s are the mean and the standard deviation of K draws
    (`Reconstruction.samples`), x + s sqrt(1 + 1/K) times Student's t with K - 1 degrees of freedom: the distribution of
    another draw of the same normal distribution. (The interval x +- s of 8 exact draws covers 62%, not 68%.)

    `coverage`: the fraction of pixels in the 90% interval, which is 0.9 for a calibrated solver, more if the deviation
    is too large and less if it is too small. `coverage_68`, `coverage_95`: the same for 68 and 95%. `coverage_error`:
    the mean of |observed - nominal| over the levels 0.05, 0.10 to 0.95 (the calibration error of Kuleshov, Fenner and
    Ermon 2018, ICML, with absolute values and central intervals): 0 for a calibrated solver, about 0.5 if all or none
    of the pixels are covered at every level. The curve `coverage` is the fraction at each of these levels. A deviation
    of 0 covers only exact pixels. Where an operator keeps some rows or sections, only those between them are evaluated.
    """

    dims = (2, 3)
    columns = (
        Column("coverage", "none"),
        Column("coverage_68", "none"),
        Column("coverage_95", "none"),
        Column("coverage_error", "lower"),
    )

    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        if reconstruction.deviation is None:
            return not_measured(self, case, _NO_DEVIATION)
        error = reconstruction.x.double() - case.truth.double()
        needed = _nominal(error, reconstruction.deviation, reconstruction.samples)
        scored = _uncertain(case)
        levels = {name: _fraction(needed <= level, scored) for name, level in STATED.items()}
        curve = torch.stack([_fraction(needed <= level, scored) for level in LEVELS], dim=1)
        off = (curve - curve.new_tensor(LEVELS)).abs().mean(dim=1)
        return Measured({**levels, "coverage_error": off}, {"coverage": curve})


@dataclass(frozen=True)
class EnergyCoverage(Metric):
    """Whether the truth is as far from the draws of a sampler as they are from each other.

    The statistic is the squared distance, its energy, to the mean of truth and draws together, which is exchangeable
    between them if the sampler is exact. `coverage_energy`: 1 where the truth is in the ball of nominal coverage 90%
    about the mean, else 0 (module `ranks`); its mean over images is 0.9 for a calibrated sampler, less where the draws
    are too narrow or biased. `energy_rank`: the rank of the truth, (r + 1/2) / (K + 1), uniform on (0, 1) if
    calibrated.
    """

    dims = (2, 3)
    columns = (Column("coverage_energy", "none", interval="binomial"), Column("energy_rank", "none"))
    uses_draws = True

    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        draws = reconstruction.draws
        if draws is None or draws.shape[1] < 2:
            return not_measured(self, case, NEEDS_DRAWS)
        together = torch.cat([case.truth[:, None], draws], dim=1).double()
        scored = inside(case).expand(case.truth.shape)[:, None]
        apart = ((together - together.mean(dim=1, keepdim=True)) * scored).flatten(2).square().sum(dim=2)
        r, K = rank(apart[:, 0], apart[:, 1:]), draws.shape[1]
        return Measured({"coverage_energy": covered(r, K, STATED["coverage"]), "energy_rank": (r + 0.5) / (K + 1)})


@dataclass(frozen=True)
class Calibration(Metric):
    """Whether the stated deviation tells how large the error is, and where. v is the variance of the error that the
    solver predicts: deviation^2, or deviation^2 (1 + 1/K) where it is that of K draws around their mean.

    `calibration_ratio`: the root mean square error over the root mean square of v^(1/2); 1 for a right size, more where
    the solver is too sure. `calibration_slope`: the least-squares slope of the squared error on v over the pixels, 1
    where the expected squared error is v; 0 where v does not tell where errors are. Few draws estimate v poorly, which
    lowers the slope. `calibration_rank`: Spearman's rank correlation of the absolute error and v. Where an operator
    keeps some rows or sections, only those between them are evaluated.
    """

    dims = (2, 3)
    columns = (
        Column("calibration_ratio", "none"),
        Column("calibration_slope", "none"),
        Column("calibration_rank", "higher"),
    )

    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        from scipy.stats import rankdata

        if reconstruction.deviation is None:
            return not_measured(self, case, _NO_DEVIATION)
        scored = _uncertain(case).flatten(1).cpu().numpy()
        errors = case.unit_size(reconstruction.x - case.truth).flatten(1).cpu().numpy()
        predicted = predictive_deviation(reconstruction.deviation, reconstruction.samples)
        deviations = case.unit_size(predicted).flatten(1).cpu().numpy()
        found: dict[str, list[float]] = {column.name: [] for column in self.columns}
        for error, deviation, kept in zip(errors, deviations, scored, strict=True):
            squared, variance = error[kept] ** 2, deviation[kept] ** 2
            size = variance.mean()
            found["calibration_ratio"].append(math.sqrt(squared.mean() / size) if size > 0 else math.nan)
            centred = variance - size
            spread = (centred**2).mean()
            constant = bool(spread <= (_ROUNDING * size) ** 2)
            slope = math.nan if constant else float((centred * squared).mean() / spread)
            found["calibration_slope"].append(slope)
            rank = (
                math.nan
                if constant or np.ptp(squared) == 0
                else float(np.corrcoef(rankdata(squared), rankdata(variance))[0, 1])
            )
            found["calibration_rank"].append(rank)
        values = {name: torch.tensor(numbers, dtype=torch.float64) for name, numbers in found.items()}
        reason = "the deviation is 0 or the same in all pixels, or there is no error"
        return Measured(values, unmeasured={name: reason for name, v in values.items() if v.isnan().any()})


@dataclass(frozen=True)
class Diversity(Metric):
    """Root mean square over the pixels of the solver's standard deviation, intensities in [0, 1].

    For samplers it is the spread of the samples. Neither a large nor a small value is better: `coverage` measures
    whether it is calibrated.
    """

    dims = (2, 3)
    columns = (Column("diversity", "none"),)
    against_truth = False

    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        if reconstruction.deviation is None:
            return not_measured(self, case, _NO_DEVIATION)
        return Measured({"diversity": mean_inside(case, case.unit_size(reconstruction.deviation).square()).sqrt()})


def _uncertain(case: Case) -> torch.Tensor:
    """The evaluated pixels, and only those between measured rows or sections if there are such, bool [B, C, *S]."""
    scored, operator = inside(case), case.problem.operator
    if operator.positions is not None and not operator.identity:
        missing = between_measured(operator)
        scored = scored & missing if missing.any() else scored
    return scored.expand(case.truth.shape)


def _fraction(covered: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    """The fraction of the scored pixels that are covered, [B] float64."""
    axes = item_axes(covered)
    return (covered & scored).sum(dim=axes).double() / scored.sum(dim=axes)


def predictive_deviation(deviation: torch.Tensor, samples: int | None) -> torch.Tensor:
    """The standard deviation of the truth about x that a solver predicts, float64 [B, C, *S]: its deviation s, or for
    the mean of K draws s sqrt(1 + 1/K), because the mean has an error of its own."""
    return deviation.double() * (1.0 if samples is None else math.sqrt(1 + 1 / samples))


def _nominal(error: torch.Tensor, deviation: torch.Tensor, samples: int | None) -> torch.Tensor:
    """The smallest nominal coverage of an interval around x that contains the truth, [B, C, *S]."""
    from scipy.special import stdtr

    scaled = error.abs() / predictive_deviation(deviation, samples)
    scaled = scaled.nan_to_num(nan=0.0, posinf=math.inf)  # 0/0 is an exact pixel with deviation 0
    if samples is None:
        return torch.erf(scaled / math.sqrt(2))
    return 2 * torch.from_numpy(stdtr(samples - 1, scaled.cpu().numpy())).to(scaled.device) - 1
