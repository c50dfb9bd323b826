"""Metrics of interpolated sections: which pixels are scored, resolution by axis, and roughness."""

from __future__ import annotations

import math

import numpy as np
import piq
import pytest
import torch
from cases import case_of, images, measure
from scipy.ndimage import gaussian_filter1d

from cryobench.core import build_operator
from cryobench.metrics.cones import FscAxes
from cryobench.metrics.missing_sections import MissingPsnr
from cryobench.metrics.perceptual import Fsim
from cryobench.metrics.texture import PowerRatio, SectionRatio
from cryobench.operators.blur import Blur
from cryobench.operators.composed import Composed
from cryobench.operators.fourier import Fourier
from cryobench.operators.subsampling import Bin, Decimate, Slices


def volumes(n, *shape, seed=0):
    return torch.rand((n, 1, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def case(recipe, truth, **options):
    return case_of(truth, operator=build_operator(recipe, tuple(truth.shape[2:]), seed=0, dtype=truth.dtype), **options)


def psnr(error):
    """Of errors on [-1, 1], per image."""
    return [-10 * math.log10(np.mean((e / 2) ** 2)) for e in error.numpy()]


@pytest.mark.parametrize(("recipe", "shape", "by_offset", "middle"), [
    (Slices(4), (11, 6, 5), [[1, 5], [2, 6], [3, 7]], [2, 6]),
    (Slices(4, 2), (12, 6, 5), [[2, 6], [3, 7]], [2, 6, 3, 7]),
    (Decimate(3, 0), (8, 7), [[1, 4], [2, 5]], [1, 2, 4, 5]),
])  # fmt: skip
def test_only_sections_between_measured_ones_are_scored(recipe, shape, by_offset, middle):
    truth = volumes(2, *shape)
    error = 0.1 * volumes(2, *shape, seed=1) * torch.arange(1, shape[0] + 1).reshape(-1, *[1] * (len(shape) - 1))
    found = measure(MissingPsnr(), case(recipe, truth), truth + error)
    scored = sorted(z for each in by_offset for z in each)
    assert found.values["missing_psnr"].tolist() == pytest.approx(psnr(error[:, 0, scored]))
    assert found.values["missing_psnr_middle"].tolist() == pytest.approx(psnr(error[:, 0, middle]))
    curve = found.curves["missing_psnr"]
    assert curve.shape == (2, len(by_offset))
    for k, places in enumerate(by_offset):
        assert curve[:, k].tolist() == pytest.approx(psnr(error[:, 0, places]))


def test_pixels_missing_along_both_axes_have_no_offset():
    truth, error = volumes(1, 6, 9), 0.1 * volumes(1, 6, 9, seed=1)
    found = measure(MissingPsnr(), case(Decimate(3), truth), truth + error)
    kept = [(y, x) for y in range(4) for x in range(7) if y % 3 or x % 3]
    assert found.values["missing_psnr"].tolist() == pytest.approx(psnr(error[:, 0, *zip(*kept, strict=True)]))
    assert found.values["missing_psnr_middle"].isnan().all()
    assert "several axes" in found.unmeasured["missing_psnr_middle"]
    assert not found.curves


@pytest.mark.parametrize(("recipe", "reason"), [
    (Bin(2), "every pixel contributes to a measurement"),
    (Composed(Decimate(2), Blur(1.0)), "every pixel contributes to a measurement"),
    (Fourier(0.5), "as decimate and slices do"),
])  # fmt: skip
def test_where_no_section_is_missing_there_is_a_reason(recipe, reason):
    truth = volumes(2, 8, 8)
    found = measure(MissingPsnr(), case(recipe, truth), truth)
    assert found.values["missing_psnr"].isnan().all()
    assert reason in found.unmeasured["missing_psnr"]


def test_the_evaluated_circle_is_obeyed():
    truth, error = volumes(1, 9, 9), 0.1 * volumes(1, 9, 9, seed=1)
    found = measure(MissingPsnr(), case(Decimate(4, 0), truth, within=[3.0]), truth + error)
    y, x = np.mgrid[:9, :9]
    scored = (y % 4 != 0) & (np.hypot(y - 4, x - 4) <= 3)
    assert found.values["missing_psnr"].item() == pytest.approx(psnr(error[:, 0, torch.from_numpy(scored)])[0])


def test_resolution_by_cone_sees_along_which_axis_a_volume_is_blurred():
    truth = volumes(1, 32, 40, 36)
    same = measure(FscAxes(), case_of(truth), truth)
    assert [same.values[f"fsc_{axis}"].item() for axis in "zyx"] == [2, 2, 2]
    assert same.values["fsc_ratio"].item() == 1
    noise = 3 * volumes(1, 32, 40, 36, seed=1)
    for axis, name in enumerate("zyx"):
        # beyond 0.25 cycles per voxel along the axis, the truth is replaced by noise
        k = [torch.fft.fftfreq(n).double().abs() for n in (32, 40, 36)][axis]
        high = (k > 0.25).reshape([-1 if i == axis else 1 for i in range(3)])
        mixed = torch.where(high, torch.fft.fftn(noise, dim=(2, 3, 4)), torch.fft.fftn(truth, dim=(2, 3, 4)))
        found = measure(FscAxes(), case_of(truth), torch.fft.ifftn(mixed, dim=(2, 3, 4)).real).values
        assert found[f"fsc_{name}"].item() == pytest.approx(4, abs=0.7)
        assert all(found[f"fsc_{other}"].item() < 2.5 for other in "zyx" if other != name)
        assert (found["fsc_ratio"].item() > 1.3) == (name == "z")


def test_the_power_ratio_is_that_of_the_filter():
    truth = images(2, (40, 32))
    axes = torch.fft.fftfreq(40).double()[:, None], torch.fft.rfftfreq(32).double()
    ring = (32 * torch.hypot(*axes)).round()
    fine = (ring >= 8) & (ring <= 16)
    spectrum = torch.fft.rfft2(truth)
    halved = torch.fft.irfft2(spectrum * torch.where(fine, 0.5, 1.0), s=(40, 32))
    assert measure(PowerRatio(), case_of(truth), halved).values["power_ratio"].tolist() == pytest.approx([0.25] * 2)
    coarse = torch.fft.irfft2(spectrum * torch.where(fine, 1.0, 0.5), s=(40, 32))
    assert measure(PowerRatio(), case_of(truth), coarse).values["power_ratio"].tolist() == pytest.approx([1] * 2)
    flat = measure(PowerRatio(), case_of(torch.zeros(1, 1, 8, 8).double()), truth[:1, :, :8, :8])
    assert "no power" in flat.unmeasured["power_ratio"]


def test_the_section_ratio_is_that_of_differences():
    truth = volumes(2, 9, 6, 5)
    smooth = torch.from_numpy(gaussian_filter1d(truth.numpy(), 1.0, axis=2))
    found = measure(SectionRatio(), case_of(truth), smooth).values["section_ratio"]
    wanted = np.sqrt([np.square(np.diff(s[0], axis=0)).sum() / np.square(np.diff(t[0], axis=0)).sum()
                      for s, t in zip(smooth.numpy(), truth.numpy(), strict=True)])  # fmt: skip
    assert found.tolist() == pytest.approx(wanted.tolist())
    assert measure(SectionRatio(), case_of(truth), truth.flip(3)).values["section_ratio"].tolist() == pytest.approx(
        [1, 1]
    )
    constant = measure(SectionRatio(), case_of(torch.zeros_like(truth)), truth)
    assert "the same in all sections" in constant.unmeasured["section_ratio"]


def test_fsim_is_that_of_piq_and_for_volumes_the_mean_over_sections():
    truth = images(2, (32, 40))
    x = truth + 0.2 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = measure(Fsim(), case_of(truth), x).values["fsim"]
    a, b = ((v / 2 + 0.5).clamp(0, 1) for v in (x, truth))
    wanted = piq.fsim(a, b, data_range=1.0, chromatic=False, reduction="none")
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    stacked = measure(Fsim(), case_of(truth.swapaxes(0, 1)[None]), x.swapaxes(0, 1)[None]).values["fsim"]
    torch.testing.assert_close(stacked, found.mean(dim=0, keepdim=True))
    assert 0.5 < found.max() < measure(Fsim(), case_of(truth), truth).values["fsim"].min() == 1
    for given, reason in ((case_of(truth, within=[9, 9]), "part of an image"), (case_of(truth[..., :9]), "16 pixels")):
        missing = measure(Fsim(), given, given.truth)
        assert missing.values["fsim"].isnan().all()
        assert reason in missing.unmeasured["fsim"]
