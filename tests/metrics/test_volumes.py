"""Metrics of volumes against numpy, scikit-image and torch-fourier-shell-correlation."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.metrics
import torch
from cases import case_of, measure
from torch_fourier_shell_correlation.fsc import fourier_correlation

from cryobench.core import build_operator, check_dims
from cryobench.errors import IncompatibleError
from cryobench.metrics.determined import NullError, RangeError
from cryobench.metrics.fidelity import L2, Mae, Mse, Psnr, Ssim
from cryobench.metrics.perceptual import Lpips
from cryobench.metrics.spectral import Frc, Phase, Ssnr
from cryobench.metrics.within import inside, soft_mask
from cryobench.testing.slices import CentralSlices

SHAPES = [(16, 16, 16), (15, 15, 15), (12, 16, 14)]


def volumes(count, shape, seed=0):
    """White noise of a spectrum that falls off, in [-1, 1], float64 [count, 1, *shape]."""
    white = torch.randn((count, 1, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    axes = (2, 3, 4)
    k = torch.meshgrid(*[torch.fft.fftfreq(n, 1 / min(shape), dtype=torch.float64) for n in shape], indexing="ij")
    radius = sum(axis.square() for axis in k).sqrt()
    x = torch.fft.ifftn(torch.fft.fftn(white, dim=axes) / (1 + radius), dim=axes).real
    low, high = x.amin(dim=axes, keepdim=True), x.amax(dim=axes, keepdim=True)
    return 2 * (x - low) / (high - low) - 1


def noisy(truth, strength=0.3):
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(9), dtype=truth.dtype)
    return truth + strength * truth.std() * noise


def by_shell(truth, x):
    """The three curves by their definitions, coefficient by coefficient over the whole spectrum."""
    n = min(truth.shape)
    T, X = np.fft.fftn(truth), np.fft.fftn(x)
    grids = np.meshgrid(*[np.fft.fftfreq(side) * n for side in truth.shape], indexing="ij")
    radius = np.sqrt(sum(grid**2 for grid in grids))
    curves = {"frc": [], "ssnr": [], "phase": []}
    for r in range(1, n // 2 + 1):
        t, e = (spectrum[np.floor(radius + 0.5) == r] for spectrum in (T, X))
        curves["frc"].append((t * e.conj()).sum().real / np.sqrt((abs(t) ** 2).sum() * (abs(e) ** 2).sum()))
        curves["ssnr"].append(10 * np.log10((abs(t) ** 2).sum() / (abs(e - t) ** 2).sum()))
        curves["phase"].append((abs(t) * np.degrees(abs(np.angle(e / t)))).sum() / abs(t).sum())
    return curves


@pytest.mark.parametrize("shape", SHAPES)
def test_the_curves_over_shells_are_their_definitions(shape):
    truth = volumes(2, shape)
    x = noisy(truth)
    for metric, name in ((Frc(), "frc"), (Ssnr(), "ssnr"), (Phase(), "phase")):
        curve = measure(metric, case_of(truth), x).curves[name]
        for i in range(2):
            np.testing.assert_allclose(curve[i], by_shell(truth[i, 0].numpy(), x[i, 0].numpy())[name], rtol=1e-9)


def test_the_shell_correlation_is_that_of_torch_fourier_shell_correlation():
    # it shares a coefficient between the two shells beside it: coefficients on a shell belong to that one alone
    n = 16
    grids = torch.meshgrid(*[torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)] * 3, indexing="ij")
    radius = sum(grid.square() for grid in grids).sqrt()
    on_a_shell = (radius - radius.round()).abs() < 1e-9
    pair = torch.fft.fftn(volumes(2, (n, n, n))[:, 0], dim=(1, 2, 3)) * on_a_shell
    theirs = fourier_correlation(pair[0], pair[1], (n, n, n), fft_mask=on_a_shell, rfft=False)
    truth, x = torch.fft.ifftn(pair, dim=(1, 2, 3)).real[:, None].split(1)
    ours = measure(Frc(), case_of(truth), x).curves["frc"][0]
    assert ours.std() > 0.1
    np.testing.assert_allclose(ours, theirs[1:], atol=1e-6)


def test_the_resolution_of_a_low_passed_volume_is_its_cutoff():
    n, pixel_size, cut = 32, 2.0, 7
    truth = volumes(2, (n, n, n))
    grids = torch.meshgrid(*[torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)] * 3, indexing="ij")
    kept = sum(grid.square() for grid in grids).sqrt() <= cut + 0.5
    x = torch.fft.ifftn(torch.fft.fftn(truth, dim=(2, 3, 4)) * kept, dim=(2, 3, 4)).real
    read = measure(Frc(), case_of(truth, pixel_size=pixel_size), x).values
    assert (1 / read["frc"]).tolist() == pytest.approx([(cut + 0.5) / (n * pixel_size)] * 2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("radius", [None, 5.5])
def test_pixel_metrics_in_a_ball_are_those_of_numpy_and_scikit_image(shape, radius):
    truth = volumes(2, shape)
    x = noisy(truth)
    case = case_of(truth, within=None if radius is None else [radius] * 2)
    distance = np.sqrt(sum(axis**2 for axis in np.ogrid[tuple(slice(-(n // 2), n - n // 2) for n in shape)]))
    ball = distance <= (np.inf if radius is None else radius)
    np.testing.assert_array_equal(inside(case)[0, 0].expand(shape).numpy(), ball)
    a, b = ((images[:, 0].numpy() + 1) / 2 for images in (truth, x))
    error = (b - a)[:, ball]
    maps = [skimage.metrics.structural_similarity(*pair, data_range=1, full=True)[1] for pair in zip(a, b, strict=True)]
    middle = (slice(3, -3),) * 3
    wanted = {
        Mse(): (error**2).mean(axis=1),
        Mae(): np.abs(error).mean(axis=1),
        Psnr(): -10 * np.log10((error**2).mean(axis=1)),
        L2(): np.sqrt((error**2).sum(axis=1)),
        Ssim(): [whole[middle][ball[middle]].mean() for whole in maps],
    }
    for metric, values in wanted.items():
        (name,) = (column.name for column in metric.columns)
        np.testing.assert_allclose(measure(metric, case, x).values[name], values, rtol=1e-10)
    if radius is None:
        whole = [skimage.metrics.structural_similarity(*pair, data_range=1) for pair in zip(a, b, strict=True)]
        np.testing.assert_allclose(wanted[Ssim()], whole, rtol=1e-10)


def test_the_edge_of_a_ball_is_a_raised_cosine():
    mask = soft_mask(case_of(volumes(1, (24, 24, 24)), within=[6.0]))
    assert mask is not None
    line = mask[0, 0, 12, 12, 12:]
    wanted = [1 if r <= 6 else (1 + np.cos(np.pi * min(1, (r - 6) / 5))) / 2 for r in range(12)]
    np.testing.assert_allclose(line, wanted, atol=1e-12)


def test_range_and_null_errors_equal_those_of_the_dense_projection():
    truth = volumes(2, (6, 6, 6))
    operator = build_operator(CentralSlices(), (6, 6, 6), seed=0, dtype=torch.float64)
    x, case = noisy(truth), case_of(truth, operator=operator)
    D = operator.A(torch.eye(216, dtype=torch.float64).reshape(-1, 1, 6, 6, 6)).flatten(1).mT
    error = (x - truth).flatten(1).mT / 2
    inside_range = torch.linalg.pinv(D) @ D @ error
    for metric, name, part in ((RangeError(), "range_error", inside_range),
                               (NullError(), "null_error", error - inside_range)):  # fmt: skip
        torch.testing.assert_close(measure(metric, case, x).values[name], part.square().mean(dim=0).sqrt(),
                                   rtol=1e-5, atol=1e-8)  # fmt: skip


def test_lpips_refuses_volumes_in_one_line():
    with pytest.raises(IncompatibleError, match=r"metric lpips supports images \(2-D\)"):
        check_dims("metric", Lpips(), (32, 32, 32))
