"""Errors of the pixels that were not measured, for operators that keep some rows or sections of an image.

In interpolation, errors over the whole image mix measured sections, which are right for every solver, with missing
ones. Only pixels between measured ones are scored: those after the last measured section are extrapolated, and their
number depends on the size of the image alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cryobench.core import Case, Column, LinearOperator, Measured, Metric, Reconstruction
from cryobench.metrics.missing import not_measured
from cryobench.metrics.within import inside
from cryobench.numerics.linalg import item_axes

_NO_GRID = "the operator does not keep some of the rows or sections, as decimate and slices do"
_ALL_MEASURED = "every pixel contributes to a measurement"


@dataclass(frozen=True)
class MissingPsnr(Metric):
    """Peak signal-to-noise ratio in dB over the pixels between measured rows or sections, intensities in [0, 1].

    `missing_psnr_middle` is that of the rows or sections farthest from measured ones, the hardest. The curve
    `missing_psnr` is that of each offset, 1 to R - t: the distance from the measured row or section before it. Both
    need an operator that keeps positions along one axis. Pixels after the last measured ones are not scored.
    """

    dims = (2, 3)
    columns = (Column("missing_psnr", "higher", "dB"), Column("missing_psnr_middle", "higher", "dB"))

    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        operator = case.problem.operator
        if operator.positions is None or operator.identity:
            return not_measured(self, case, _NO_GRID)
        missing = between_measured(operator)
        if not missing.any():
            return not_measured(self, case, _ALL_MEASURED)
        squares = case.unit_size(reconstruction.x - case.truth).square()
        scored = inside(case) & missing
        values = {"missing_psnr": _psnr(squares, scored)}
        offsets = _offsets(missing)
        if offsets is None:
            reason = "the operator leaves out pixels along several axes, so they have no offset"
            values["missing_psnr_middle"] = torch.full_like(values["missing_psnr"], torch.nan)
            return Measured(values, unmeasured={"missing_psnr_middle": reason})
        last = int(offsets.max())
        curve = torch.stack([_psnr(squares, scored & (offsets == k)) for k in range(1, last + 1)], dim=1)
        middle = (2 * offsets - (last + 1)).abs() <= 1 - last % 2
        values["missing_psnr_middle"] = _psnr(squares, scored & middle)
        empty = {name: "no pixel of it lies in the evaluated region" for name, v in values.items() if v.isnan().any()}
        return Measured(values, {"missing_psnr": curve}, empty)


def between_measured(operator: LinearOperator) -> torch.Tensor:
    """The pixels that no measurement contains and that lie before the last measured ones along every axis, bool
    [1, 1, *S]."""
    ones = torch.ones((1, *operator.measurement_shape), dtype=operator.dtype, device=operator.device)
    measured = operator.select(slice(0, 1)).A_adjoint(ones) != 0
    between = ~measured
    for axis in range(2, measured.ndim):
        places = torch.arange(measured.shape[axis], device=measured.device)
        between &= _across(places <= _along(measured, axis).nonzero().max(), axis, measured.ndim)
    return between


def _offsets(missing: torch.Tensor) -> torch.Tensor | None:
    """The distance of each missing row or section from the measured one before it, 0 for the measured, [1, 1, *S] with
    one axis longer than 1; None where pixels are missing along several axes."""
    for axis in range(2, missing.ndim):
        lost = _along(missing, axis)
        if torch.equal(_across(lost, axis, missing.ndim).expand_as(missing), missing):
            count, offsets = 0, []
            for each in lost.tolist():
                count = count + 1 if each else 0
                offsets.append(count)
            return _across(torch.tensor(offsets, device=missing.device), axis, missing.ndim)
    return None


def _along(mask: torch.Tensor, axis: int) -> torch.Tensor:
    """Whether each row or section across an axis of a mask has an entry."""
    return mask.any(dim=tuple(i for i in range(mask.ndim) if i != axis))


def _across(values: torch.Tensor, axis: int, ndim: int) -> torch.Tensor:
    """Values along an axis, shaped to broadcast over the others."""
    return values.reshape([-1 if i == axis else 1 for i in range(ndim)])


def _psnr(squares: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    """10 log10(1 / mean) of squares [B, C, *S] over the scored pixels, [B]; NaN where there are none."""
    scored = scored.expand_as(squares)
    mean = torch.where(scored, squares, 0.0).sum(dim=item_axes(squares)) / scored.sum(dim=item_axes(squares))
    return -10 * mean.log10()
