"""Errors without a truth, against the true errors, which the tests know."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from cases import case_of, images, low_passed, ring_radius
from torch_fourier_shell_correlation import fsc

from cryobench.core import Case, Reconstruction, Scale
from cryobench.metrics.halves import FrcHalves, FrcOther, MseOther, PsnrOther, SsnrOther
from cryobench.numerics.linalg import item_axes

SIDE = 512
COUNTS = Scale(torch.tensor([100.0]).double(), torch.tensor([10.0]).double())
"""Images of 100 counts per pixel with a deviation of about 10."""


def noisy(clean: torch.Tensor, level: float, seed: int) -> torch.Tensor:
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed), dtype=clean.dtype)
    return clean + level * noise


def halves(
    n: int = 1, side: int = SIDE, *, ratio: float = 1.0, level: float = 1.0, fall: float = 1.5
) -> tuple[Case, torch.Tensor]:
    """A case of two halves, the second `ratio` times as noisy, and the clean images, of deviation about 0.35."""
    clean = 2 * images(n, (side, side), seed=1, fall=fall)
    clean -= clean.mean(dim=(1, 2, 3), keepdim=True)
    a, b = noisy(clean, level, 2), noisy(clean, ratio * level, 3)
    case = dataclasses.replace(case_of(a, pixel_size=1.5), other=b, data_range=(-1.0, 1.0))
    return dataclasses.replace(case, problem=dataclasses.replace(case.problem, scale=COUNTS)), clean


def wiener(x: torch.Tensor, clean: torch.Tensor, level: float = 1.0) -> torch.Tensor:
    """The linear filter S / (S + N) with the radial power of the clean image, by bins of whole frequencies."""
    spectrum, n = torch.fft.rfft2(clean, norm="ortho"), x.shape[-1]
    bins = ring_radius((n, n)).round().long().flatten()
    power = spectrum.abs().square().mean(dim=(0, 1)).flatten()
    counts = torch.bincount(bins).double()
    radial = torch.zeros_like(counts).index_add_(0, bins, power) / counts.clamp_min(1)
    gain = (radial / (radial + level**2))[bins].reshape(spectrum.shape[-2:])
    return torch.fft.irfft2(torch.fft.rfft2(x) * gain, s=(n, n))


SOLVERS = {
    "raw": lambda x, clean: x,
    "low-passed": lambda x, clean: low_passed(x, 40),
    "too smooth": lambda x, clean: low_passed(x, 2),
    "wiener": wiener,
    "shrunk": lambda x, clean: 0.5 * x,
}


def true_mse(case: Case, x: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    return case.unit_size(case.unit_size((x - clean).square())).mean(dim=item_axes(x))


@pytest.mark.parametrize("ratio", [1.0, 3.0])
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_error_is_that_to_the_clean_image_within_its_standard_error(solver, ratio):
    case, clean = halves(ratio=ratio)
    x = SOLVERS[solver](case.truth, clean)
    found = MseOther().measure(case, Reconstruction(x))
    expected = true_mse(case, x, clean)
    assert not found.unmeasured
    assert ((found.values["mse_other"] - expected).abs() < 3 * found.values["mse_other_se"]).all()
    if ratio == 3 and solver == "raw":  # the usual estimate assumes equal noise and is far off
        usual = (x - case.other).square() - (case.truth - case.other).square() / 2
        assert (case.unit_size(case.unit_size(usual)).mean(dim=item_axes(x)) / expected > 4).all()
    assert torch.allclose(
        PsnrOther().measure(case, Reconstruction(x)).values["psnr_other"], -10 * found.values["mse_other"].log10()
    )


def test_the_expectation_and_the_standard_error_over_many_draws():
    """400 draws of both halves: the mean of the estimates, and their spread beside the stated standard error."""
    n = 400
    clean = images(1, (64, 64), seed=5).expand(n, -1, -1, -1)
    a, b = noisy(clean, 0.3, 6), noisy(clean, 0.3, 7)
    case = dataclasses.replace(case_of(a), other=b)
    x = low_passed(a, 8)
    found = MseOther().measure(case, Reconstruction(x)).values
    difference = found["mse_other"] - true_mse(case, x, clean)
    assert abs(float(difference.mean())) < 3 * float(difference.std()) / math.sqrt(n)
    # the stated standard error includes the variation of the error itself between blocks, so it is not below the spread
    assert 0.8 < float(found["mse_other_se"].mean() / difference.std()) < 2


def test_the_standard_error_is_that_of_a_bootstrap_of_blocks():
    case, _ = halves(1, 96)
    case = dataclasses.replace(case, within=[40.0])
    x = 0.5 * case.truth
    stated = float(MseOther().measure(case, Reconstruction(x)).values["mse_other_se"])
    values = case.unit_size(case.unit_size(x.square() - 2 * x * case.other + case.truth * case.other))
    axis = torch.arange(96).double() - 48
    kept = (torch.hypot(axis[:, None], axis) <= 40).expand(1, 1, -1, -1)
    blocks = [[t[..., i : i + 12, j : j + 12] for i in range(0, 96, 12) for j in range(0, 96, 12)]
              for t in (values * kept, kept)]  # fmt: skip
    sums, pixels = (torch.stack([block.double().sum() for block in part]) for part in blocks)
    sums, pixels = sums[pixels > 0], pixels[pixels > 0]
    draws = torch.randint(len(sums), (20_000, len(sums)), generator=torch.Generator().manual_seed(0))
    resampled = sums[draws].sum(1) / pixels[draws].sum(1)
    assert stated == pytest.approx(float(resampled.std()), rel=0.05)


@pytest.mark.parametrize("ratio", [1.0, 3.0])
def test_the_mean_of_both_reconstructed_halves(ratio):
    case, clean = halves(ratio=ratio)
    parts = wiener(case.truth, clean), wiener(case.other, clean)
    mean = Reconstruction((parts[0] + parts[1]) / 2, halves=parts)
    found = MseOther().measure(case, mean).values
    expected = true_mse(case, mean.x, clean)
    assert ((found["mse_other"] - expected).abs() < 3 * found["mse_other_se"]).all()
    middle = ((case.truth + case.other) / 2).mean(dim=(1, 2, 3), keepdim=True)
    a, b, f, g = (each - middle for each in (case.truth, case.other, *parts))
    first, second = f * f - 2 * f * b + a * b, g * g - 2 * g * a + a * b
    both = (first + second + 2 * (f * g - f * b - g * a + a * b)) / 4
    assert torch.allclose(found["mse_other"], case.unit_size(case.unit_size(both)).mean(dim=(1, 2, 3)))


@pytest.mark.parametrize("ratio", [1.0, 3.0])
@pytest.mark.parametrize("solver", ["raw", "low-passed", "wiener"])
def test_the_ring_correlation_is_that_with_the_clean_image(solver, ratio):
    case, clean = halves(ratio=ratio, level=0.25, fall=0.5)
    x = SOLVERS[solver](case.truth, clean)
    found = FrcOther().measure(case, Reconstruction(x))
    expected = fsc(x[0, 0], clean[0, 0])[1:]
    bands = [curve[16:].reshape(-1, 16).mean(dim=1) for curve in (found.curves["frc_other"][0], expected)]
    high = bands[1] > 0.5
    assert high.sum() > (5 if solver != "low-passed" else 0)
    assert (bands[0] - bands[1]).abs()[high].max() < 0.06
    if solver != "low-passed":
        resolution = 1.5 / ((16 + 16 * high.sum()) / SIDE)
        assert torch.allclose(found.values["frc_other"], resolution.double(), rtol=0.15)


def test_a_ring_that_is_empty_in_the_reconstruction_has_no_correlation():
    case, _ = halves(level=0.25, fall=0.5)
    x = low_passed(case.truth, 40) + 1e-9 * case.truth
    curve = FrcOther().measure(case, Reconstruction(x)).curves["frc_other"][0].nan_to_num(0.0)
    assert (curve[:38] > 0.5).all()
    assert (curve[41:] == 0).all()


def test_the_correlation_of_two_denoised_halves_exceeds_that_with_the_clean_image():
    """A solver that adds the same pattern to both halves: they agree with each other and not with the clean image."""
    case, _ = halves(level=3.0)
    pattern = images(1, (SIDE, SIDE), seed=9, fall=0.0)
    parts = tuple(0.01 * half + pattern for half in (case.truth, case.other))
    answer = Reconstruction((parts[0] + parts[1]) / 2, halves=parts)
    assert (FrcHalves().measure(case, answer).values["frc_halves"] > 0.9).all()
    assert (FrcOther().measure(case, answer).values["frc_other_area"] < 0.2).all()
    alone = FrcHalves().measure(case, Reconstruction(parts[0]))
    assert alone.values["frc_halves"].isnan().all()
    assert "--halves average" in alone.unmeasured["frc_halves"]


def test_the_signal_to_noise_ratio_is_that_of_clean_image_and_error():
    case, clean = halves(level=0.2)
    x = wiener(case.truth, clean, 0.2)
    found = SsnrOther().measure(case, Reconstruction(x))
    ratio = clean.square().mean(dim=(1, 2, 3)) / (x - clean).square().mean(dim=(1, 2, 3))
    assert torch.allclose(found.values["ssnr_other"], 10 * ratio.log10(), atol=0.3)
    number = ring_radius((SIDE, SIDE)).round()
    powers = [torch.fft.rfft2(image).abs().square()[0, 0] for image in (clean, x - clean)]
    rings = range(60, 100)
    true = [10 * float((powers[0][number == ring].sum() / powers[1][number == ring].sum()).log10()) for ring in rings]
    curve = found.curves["ssnr_other"][0, [ring - 1 for ring in rings]]
    assert not curve.isnan().any()
    assert float(curve.mean()) == pytest.approx(sum(true) / len(true), abs=0.5)


@pytest.mark.parametrize("metric", [MseOther, PsnrOther, SsnrOther, FrcOther])
def test_what_cannot_be_measured_is_nan_with_the_reason(metric):
    case, clean = halves(1)

    def reason(case: Case, x: torch.Tensor) -> str:
        found = metric().measure(case, Reconstruction(x))
        assert all(found.values[column.name].isnan().all() for column in metric.columns)
        return found.unmeasured[metric.columns[0].name]

    assert "no second image" in reason(dataclasses.replace(case, other=None), case.truth)
    # another exposure: 100 + 10 b becomes 1.5 times that
    assert "1.5 times" in reason(dataclasses.replace(case, other=5 + 1.5 * case.other), case.truth)
    without_mean = dataclasses.replace(case, problem=dataclasses.replace(case.problem, scale=Scale(
        torch.zeros(1).double(), torch.ones(1).double())))  # fmt: skip
    weak = noisy(0.5 * clean, 1.0, 3)
    assert "the signal in the other half" in reason(dataclasses.replace(without_mean, other=weak), case.truth)
    if metric is not FrcOther:
        nothing = noisy(torch.zeros_like(clean), 1.0, 4)
        blank = dataclasses.replace(without_mean, truth=nothing, other=-0.01 * nothing)
        assert "not positive" in reason(blank, torch.zeros_like(clean))


def test_equally_scaled_halves_of_unequal_noise_are_measured():
    case, _ = halves(ratio=3.0)
    without_mean = dataclasses.replace(case, problem=dataclasses.replace(case.problem, scale=Scale(
        torch.zeros(1).double(), torch.ones(1).double())))  # fmt: skip
    assert not MseOther().measure(without_mean, Reconstruction(case.truth)).unmeasured
