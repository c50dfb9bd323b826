"""Whether a solver knows how uncertain it is: for those that state a standard deviation of every pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from cryobench.core import Case, Column, Measured, Metric, Reconstruction
from cryobench.metrics.missing import not_measured
from cryobench.metrics.within import mean_inside

LEVELS = tuple(number / 20 for number in range(1, 20))
"""Nominal coverages of the central intervals that are looked at."""
NOMINAL = 0.9
_NO_DEVIATION = "the solver states no standard deviation; samplers do with samples=2 or more"


@dataclass(frozen=True)
class Coverage(Metric):
    """How often the truth lies where the solver says: in the central intervals of N(x, deviation^2), pixel by pixel.

    `coverage`: the fraction of pixels with |truth - x| <= 1.645 deviation, which is 0.9 for a solver that is right
    about itself, more for a timid one and less for a bold one. `coverage_error`: over the levels 0.05, 0.10 to 0.95 the
    mean of |observed - nominal| (the calibration error of Kuleshov, Fenner and Ermon 2018, ICML, with absolute values
    and central intervals): 0 is calibrated; near 0.5 all or none of the pixels are covered at every level. The curve
    `coverage` has the fraction at each of these levels. A deviation of 0 covers what is exact and nothing else.
    """

    dims = (2, 3)
    columns = (Column("coverage", "none"), Column("coverage_error", "lower"))

    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        if reconstruction.deviation is None:
            return not_measured(self, case, _NO_DEVIATION)
        deviations = (reconstruction.x.double() - case.truth.double()).abs() / reconstruction.deviation.double()
        # the least nominal coverage whose interval reaches the truth; 0/0 is an exact pixel of which the solver is sure
        needed = torch.erf(deviations.nan_to_num(nan=0.0, posinf=math.inf) / math.sqrt(2))
        curve = torch.stack([mean_inside(case, (needed <= level).double()) for level in LEVELS], dim=1)
        error = (curve - curve.new_tensor(LEVELS)).abs().mean(dim=1)
        return Measured({"coverage": curve[:, LEVELS.index(NOMINAL)], "coverage_error": error}, {"coverage": curve})


@dataclass(frozen=True)
class Diversity(Metric):
    """Root mean square over the pixels of the deviation that the solver states, intensities in [0, 1].

    How far its samples lie apart, where it draws them. Neither much nor little of it is good in itself: `coverage` says
    whether it is the right amount.
    """

    dims = (2, 3)
    columns = (Column("diversity", "none"),)
    against_truth = False

    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        if reconstruction.deviation is None:
            return not_measured(self, case, _NO_DEVIATION)
        return Measured({"diversity": mean_inside(case, case.unit_size(reconstruction.deviation).square()).sqrt()})
