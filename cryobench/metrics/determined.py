"""The error, split into the component that the measurements determine and the one that depends on the prior.

    e = x - truth = A^+ A e + (1 - A^+ A) e

The first component is 0 if the measurements are exact and A x = y. The second does not affect the measurements: it
depends only on the prior of the method and includes hallucinations that are consistent with the measurements.
(Schwab, Antholzer and Haltmeier 2019, Inverse Problems 35:025008; Wang, Yu and Zhang 2023, arXiv:2212.00490.)
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch

from cryobench.core import Case, Column, LinearOperator, Measured, Metric, Reconstruction
from cryobench.metrics.within import mean_inside


@dataclass(frozen=True)
class RangeError(Metric):
    """Root mean square over the pixels of the measured error component; intensities in [0, 1].

        A^+ A (x - t)

    t: the truth. Over the whole image the squares of `range_error` and `null_error` sum to `mse`.
    """

    dims = (2, 3)
    columns = (Column("range_error", "lower"),)

    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        determined, _ = _parts(case, reconstruction)
        return Measured({"range_error": mean_inside(case, determined.square()).sqrt()})


@dataclass(frozen=True)
class NullError(Metric):
    """Root mean square over the pixels of the unmeasured error component; intensities in [0, 1].

        (I - A^+ A) (x - t)

    t: the truth.
    """

    dims = (2, 3)
    columns = (Column("null_error", "lower"),)

    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        _, undetermined = _parts(case, reconstruction)
        return Measured({"null_error": mean_inside(case, undetermined.square()).sqrt()})


_last: tuple[weakref.ref[LinearOperator], torch.Tensor, torch.Tensor] | None = None
"""The operator, the error e and A^+ A e of the last call, because both metrics use them for the same error."""


def _determined(operator: LinearOperator, error: torch.Tensor) -> torch.Tensor:
    """A^+ A e."""
    global _last
    if _last is None or _last[0]() is not operator or not torch.equal(_last[1], error):
        _last = weakref.ref(operator), error, operator.A_dagger_A(error)
    return _last[2]


def _parts(case: Case, reconstruction: Reconstruction) -> tuple[torch.Tensor, torch.Tensor]:
    """A^+ A e and e - A^+ A e of the whole error image e, intensities in [0, 1], float64 [B, C, *S]."""
    error = reconstruction.x - case.truth
    determined = _determined(case.problem.operator, error)
    return case.unit_size(determined), case.unit_size(error.double() - determined.double())
