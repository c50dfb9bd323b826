"""Agreement with the truth, image by image.

All metrics except `measurement_mse` are computed with the data range mapped to [0, 1] (`Case.unit_range`), without
clipping, and `--within circle` restricts them to the pixels inside the circle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from cryobench.core import Case, Column, Measured, Metric, Reconstruction
from cryobench.metrics.missing import not_measured
from cryobench.metrics.within import inside, mean_inside
from cryobench.numerics.linalg import item_axes, one_channel


@dataclass(frozen=True)
class Mse(Metric):
    """Mean squared error over the pixels, intensities in [0, 1].

        MSE = 1/N sum_p (x_p - t_p)^2

    t: the truth.
    """

    dims = (2, 3)
    columns = (Column("mse", "lower"),)

    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        return Measured({"mse": _squared_error(case, reconstruction)})


@dataclass(frozen=True)
class Mae(Metric):
    """Mean absolute error over the pixels, intensities in [0, 1].

        MAE = 1/N sum_p |x_p - t_p|

    t: the truth.
    """

    dims = (2, 3)
    columns = (Column("mae", "lower"),)

    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        return Measured({"mae": mean_inside(case, _error(case, reconstruction).abs())})


@dataclass(frozen=True)
class Psnr(Metric):
    """Peak signal-to-noise ratio in dB, intensities in [0, 1]; infinite for an exact image.

        PSNR = 10 log10(1 / MSE)

    MSE: that of `mse`.
    """

    dims = (2, 3)
    columns = (Column("psnr", "higher", "dB"),)

    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        return Measured({"psnr": -10 * _squared_error(case, reconstruction).log10()})


@dataclass(frozen=True)
class L2(Metric):
    """Euclidean norm of the error image, intensities in [0, 1].

        ||x - t||

    t: the truth.
    """

    dims = (2, 3)
    columns = (Column("l2", "lower"),)

    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        squares = torch.where(inside(case), _error(case, reconstruction).square(), 0.0)
        return Measured({"l2": squares.sum(dim=item_axes(squares)).sqrt()})


@dataclass(frozen=True)
class Ssim(Metric):
    """Structural similarity (Wang et al. 2004) as scikit-image computes it by default (uniform window
    of 7 pixels a side, K1 = 0.01, K2 = 0.03, sample covariance), intensities in [0, 1]: the mean over the pixels whose
    window lies in the image. NaN for images with a side of less than 7 pixels."""

    dims = (2, 3)
    columns = (Column("ssim", "higher"),)

    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        if min(case.truth.shape[2:]) < WINDOW:
            return not_measured(self, case, f"its window is {WINDOW} pixels wide, and the images are smaller")
        return Measured({"ssim": ssim(case, case.unit_range(case.truth), case.unit_range(reconstruction.x))})


@dataclass(frozen=True)
class MeasurementMse(Metric):
    """Mean squared residual over the measurements, in the units of y.

        1/M ||A x - y||^2    for M measurements

    Needs no truth.
    """

    dims = (2, 3)
    columns = (Column("measurement_mse", "lower"),)
    against_truth = False

    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        residual = case.problem.operator.A(reconstruction.x) - case.problem.y
        return Measured({"measurement_mse": residual.double().square().mean(dim=item_axes(residual))})


WINDOW = 7
"""Side of the window of `ssim`, pixels."""


def ssim(case: Case, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The structural similarity of images [B, C, *S] with intensities in [0, 1], over the evaluated pixels, [B]."""
    from skimage.metrics import structural_similarity

    images, others = (one_channel(x)[:, 0].cpu().numpy() for x in (first, second))
    maps = [structural_similarity(a, b, data_range=1.0, full=True)[1] for a, b in zip(images, others, strict=True)]
    middle = (slice(WINDOW // 2, -(WINDOW // 2)),) * (case.truth.ndim - 2)
    kept = inside(case)[:, 0].cpu().numpy()
    kept = np.broadcast_to(kept, (len(maps), *kept.shape[1:]))
    values = [whole[middle][mask[middle]].mean() for whole, mask in zip(maps, kept, strict=True)]
    return torch.tensor(values, dtype=torch.float64)


def _error(case: Case, reconstruction: Reconstruction) -> torch.Tensor:
    return case.unit_range(reconstruction.x) - case.unit_range(case.truth)


def _squared_error(case: Case, reconstruction: Reconstruction) -> torch.Tensor:
    return mean_inside(case, _error(case, reconstruction).square())
