"""Calibration of the standard deviation of each pixel, for solvers that estimate one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from cryobench.core import Case, Column, Measured, Metric, Reconstruction
from cryobench.metrics.missing import not_measured
from cryobench.metrics.within import mean_inside

LEVELS = tuple(number / 20 for number in range(1, 20))
"""Nominal coverages of the central intervals that are evaluated."""
NOMINAL = 0.9
_NO_DEVIATION = "the solver states no standard deviation; samplers do with samples=2 or more"


@dataclass(frozen=True)
class Coverage(Metric):
    """How often the truth lies in the central intervals of N(x, deviation^2), pixel by pixel.

    `coverage`: the fraction of pixels with |truth - x| <= 1.645 deviation, which is 0.9 for a calibrated solver, more
    if the deviation is too large and less if it is too small. `coverage_error`: the mean of |observed - nominal| over
    the levels 0.05, 0.10 to 0.95 (the calibration error of Kuleshov, Fenner and Ermon 2018, ICML, with absolute values
    and central intervals): 0 for a calibrated solver, about 0.5 if all or none of the pixels are covered at every
    level. The curve `coverage` is the fraction at each of these levels. A deviation of 0 covers only exact pixels.
    """

    dims = (2, 3)
    columns = (Column("coverage", "none"), Column("coverage_error", "lower"))

    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        if reconstruction.deviation is None:
            return not_measured(self, case, _NO_DEVIATION)
        deviations = (reconstruction.x.double() - case.truth.double()).abs() / reconstruction.deviation.double()
        # the smallest nominal coverage whose interval contains the truth; 0/0 is an exact pixel with deviation 0
        needed = torch.erf(deviations.nan_to_num(nan=0.0, posinf=math.inf) / math.sqrt(2))
        curve = torch.stack([mean_inside(case, (needed <= level).double()) for level in LEVELS], dim=1)
        error = (curve - curve.new_tensor(LEVELS)).abs().mean(dim=1)
        return Measured({"coverage": curve[:, LEVELS.index(NOMINAL)], "coverage_error": error}, {"coverage": curve})


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
