"""Rings of Fourier space: against numpy coefficient by coefficient, torch-fourier-shell-correlation, closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cases import alone, case_of, images, low_passed, measure, ring_radius
from hypothesis import given
from hypothesis import strategies as st
from torch_fourier_shell_correlation import fourier_ring_correlation
from torch_fourier_shell_correlation.fsc import fourier_correlation

from cryobench.core import Metric
from cryobench.metrics.rings import crossing, ring_frequencies
from cryobench.metrics.spectral import Frc, Phase, Ssnr

METRICS: list[Metric] = [Frc(), Ssnr(), Phase()]
SHAPES = [(16, 16), (15, 15), (16, 24), (21, 14)]


def distorted(truth: torch.Tensor, strength: float = 0.3) -> torch.Tensor:
    """Images with white noise."""
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(9), dtype=truth.dtype)
    return truth + strength * truth.std() * noise


def by_coefficient(truth: np.ndarray, x: np.ndarray) -> dict[str, list[float]]:
    """The three curves of images [H, W] by their definitions, over the whole spectrum."""
    H, W = truth.shape
    n = min(H, W)
    T, X = np.fft.fft2(truth), np.fft.fft2(x)
    ky, kx = np.meshgrid(np.fft.fftfreq(H) * n, np.fft.fftfreq(W) * n, indexing="ij")
    curves: dict[str, list[float]] = {"frc": [], "ssnr": [], "phase": []}
    for r in range(1, n // 2 + 1):
        ring = np.floor(np.hypot(ky, kx) + 0.5) == r
        t, e = T[ring], X[ring]
        curves["frc"].append((t * e.conj()).sum().real / np.sqrt((abs(t) ** 2).sum() * (abs(e) ** 2).sum()))
        curves["ssnr"].append(10 * np.log10((abs(t) ** 2).sum() / (abs(e - t) ** 2).sum()))
        turn = np.degrees(abs(np.angle(e / t)))
        curves["phase"].append((abs(t) * turn).sum() / abs(t).sum())
    return curves


@pytest.mark.parametrize("shape", SHAPES)
def test_the_curves_are_their_definitions(shape):
    truth = images(2, shape)
    x = distorted(truth)
    for metric, name in zip(METRICS, ("frc", "ssnr", "phase"), strict=True):
        curve = measure(metric, case_of(truth), x).curves[name]
        assert curve.shape == (2, len(ring_frequencies(shape)))
        for i in range(2):
            np.testing.assert_allclose(curve[i], by_coefficient(truth[i, 0].numpy(), x[i, 0].numpy())[name], rtol=1e-9)


def test_the_scalars_follow_from_the_curves():
    truth = images(3, (32, 32))
    x = distorted(truth)
    frc, ssnr, phase = (measure(metric, case_of(truth, pixel_size=1.5), x) for metric in METRICS)
    torch.testing.assert_close(frc.values["frc_area"], frc.curves["frc"].mean(dim=1))
    torch.testing.assert_close(frc.values["frc"], 1.5 * frc.values["frc_pixels"])
    torch.testing.assert_close(phase.values["phase"], phase.curves["phase"].mean(dim=1))
    ratio = 10 ** (ssnr.curves["ssnr"] / 10)
    mean = (ratio / (1 + ratio)).mean(dim=1)
    torch.testing.assert_close(10 ** (ssnr.values["ssnr"] / 10), mean / (1 - mean))


# ------------------------------------------------------------------------------------- an independent implementation


def test_against_torch_fourier_shell_correlation_where_both_have_the_same_rings():
    # it shares a coefficient between the two rings that it lies between: coefficients on a ring are its alone
    n = 32
    radius = torch.hypot(*torch.meshgrid(*[torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)] * 2, indexing="ij"))
    on_a_ring = (radius - radius.round()).abs() < 1e-9
    pair = torch.fft.fft2(torch.cat([images(1, (n, n)), images(1, (n, n), seed=1)])[:, 0]) * on_a_ring
    theirs = fourier_correlation(pair[0], pair[1], (n, n), fft_mask=on_a_ring, rfft=False)
    truth, x = torch.fft.ifft2(pair).real[:, None].split(1)
    ours = measure(Frc(), case_of(truth), x).curves["frc"][0]
    assert ours.std() > 0.1
    np.testing.assert_allclose(ours, theirs[1:], atol=1e-6)


def test_against_torch_fourier_shell_correlation_on_ordinary_images():
    truth = images(4, (64, 64), fall=1.5)
    x = distorted(truth, 0.2)
    ours = measure(Frc(), case_of(truth), x)
    theirs = fourier_ring_correlation(truth[:, 0], x[:, 0])[:, 1:].double()
    # shared rings average over neighbours, so that they agree but for the spread from ring to ring
    assert (ours.curves["frc"] - theirs).abs().mean() < 0.03
    frequency = crossing(theirs, 0.5, (64, 64))
    assert (1 / ours.values["frc_pixels"] - frequency).abs().max() <= 1.5 / 64


# ----------------------------------------------------------------------------------------------- known answers


@pytest.mark.parametrize("shape", SHAPES)
def test_the_truth_itself(shape):
    truth = images(2, shape).float()
    frc, ssnr, phase = (measure(metric, case_of(truth, pixel_size=1.25), truth.clone()) for metric in METRICS)
    assert frc.values["frc_pixels"].tolist() == frc.values["frc_seventh"].div(1.25).tolist() == [2, 2]
    assert frc.values["frc"].tolist() == [2.5, 2.5]
    assert frc.values["frc_area"].tolist() == pytest.approx([1, 1], abs=1e-12)
    assert ssnr.values["ssnr"].tolist() == [math.inf] * 2
    assert phase.values["phase"].tolist() == pytest.approx([0, 0], abs=1e-6)


def test_noise_that_is_independent_of_the_truth():
    truth, x = images(8, (64, 64), fall=0), images(8, (64, 64), seed=5, fall=0)
    x = (x - x.mean()) * truth.std() / x.std()
    frc, ssnr, phase = (measure(metric, case_of(truth), x).values for metric in METRICS)
    assert frc["frc_area"].mean().item() == pytest.approx(0, abs=0.05)
    assert frc["frc_pixels"].min() > 64 / 3  # chance alone fills no more than the first rings
    assert ssnr["ssnr"].mean().item() == pytest.approx(-10 * math.log10(2), abs=0.1)  # the error is truth and noise
    assert phase["phase"].mean().item() == pytest.approx(90, abs=1.5)


def test_a_constant_image():
    truth = images(2, (32, 32))
    frc, ssnr, phase = (measure(metric, case_of(truth), torch.full_like(truth, 0.3)).values for metric in METRICS)
    assert frc["frc_area"].tolist() == [0, 0]
    assert frc["frc_pixels"].tolist() == [32, 32]  # no better than the side of the box
    assert ssnr["ssnr"].tolist() == pytest.approx([0, 0], abs=1e-9)
    assert phase["phase"].tolist() == pytest.approx([90, 90])


@pytest.mark.parametrize(("n", "pixel_size"), [(128, 1.5), (128, 2.62), (96, 4.0), (101, 3.3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_image_low_passed_at_12_angstrom_has_a_resolution_of_12_angstrom(n, pixel_size, dtype):
    truth = images(3, (n, n)).to(dtype)
    x = low_passed(truth.double(), n * pixel_size / 12).to(dtype)
    read = measure(Frc(), case_of(truth, pixel_size=pixel_size), x).values
    ring = 1 / (n * pixel_size)
    for name in ("frc", "frc_seventh"):
        assert (1 / read[name] - 1 / 12).abs().max() <= ring


@pytest.mark.parametrize("shape", [(32, 32), (31, 31), (32, 48)])
def test_a_low_pass_between_two_rings_has_closed_forms(shape):
    truth, cut, rings = images(2, shape), 6, min(shape) // 2
    frc, ssnr, phase = (measure(metric, case_of(truth), low_passed(truth, cut + 0.5)) for metric in METRICS)
    assert frc.values["frc_area"].tolist() == pytest.approx([cut / rings] * 2)
    assert (1 / frc.values["frc_pixels"]).tolist() == pytest.approx([(cut + 0.5) / min(shape)] * 2)
    share = (cut + (rings - cut) / 2) / rings  # all of the signal inside, half of truth and error outside
    assert ssnr.values["ssnr"].tolist() == pytest.approx([10 * math.log10(share / (1 - share))] * 2)
    assert phase.values["phase"].tolist() == pytest.approx([90 * (rings - cut) / rings] * 2)


def test_a_shift_turns_phases_by_its_closed_form():
    n, shift = 32, 1
    truth = images(2, (n, n))
    x = truth.roll(shift, dims=3)
    turn = 2 * math.pi * shift * torch.fft.rfftfreq(n, dtype=torch.float64).expand(n, -1)
    amplitude = torch.fft.rfft2(truth)[:, 0].abs()
    twice = torch.full((n // 2 + 1,), 2.0, dtype=torch.float64).index_fill(0, torch.tensor([0, n // 2]), 1.0)
    number = (ring_radius((n, n)) + 0.5).floor()
    rings = torch.stack([(number == r) * twice for r in range(1, n // 2 + 1)])
    phase = torch.einsum("rhw,bhw->br", rings, amplitude * turn) / torch.einsum("rhw,bhw->br", rings, amplitude)
    power = torch.einsum("rhw,bhw->br", rings, amplitude**2)
    frc = torch.einsum("rhw,bhw->br", rings, amplitude**2 * turn.cos()) / power
    torch.testing.assert_close(measure(Phase(), case_of(truth), x).curves["phase"], phase.rad2deg())
    torch.testing.assert_close(measure(Frc(), case_of(truth), x).curves["frc"], frc)
    # |cos| of the angle to the shift is 2/pi on average: 360 s f 2/pi degrees where amplitudes are even
    even = torch.fft.irfft2(torch.polar(torch.ones(n, n // 2 + 1), torch.fft.rfft2(truth.float()).angle()), s=(n, n))
    curve = measure(Phase(), case_of(even), even.roll(shift, dims=3)).curves["phase"]
    wanted = 360 * shift * ring_frequencies((n, n)) * 2 / math.pi
    torch.testing.assert_close(curve[:, 3:], wanted.expand(2, -1)[:, 3:], rtol=0.05, atol=0)  # where rings are full


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_a_change_of_contrast_affects_only_the_ssnr(factor):
    truth = images(2, (32, 32))
    x = distorted(truth)
    case = case_of(truth)
    for metric in (Frc(), Phase()):
        scaled, plain = (measure(metric, case, image) for image in (factor * x + 0.7, x))
        for name, curve in plain.curves.items():
            torch.testing.assert_close(scaled.curves[name], curve)
    ssnr = measure(Ssnr(), case, factor * truth).values["ssnr"]
    assert ssnr.tolist() == pytest.approx([-20 * math.log10(abs(factor - 1))] * 2)
    torch.testing.assert_close(measure(Frc(), case, -x).curves["frc"], -measure(Frc(), case, x).curves["frc"])


# --------------------------------------------------------------------------------------------------- what is empty


def test_rings_that_are_empty_in_both_count_as_zero():
    truth = low_passed(images(2, (32, 32)), 6.5).float()  # float32 leaves rounding beyond
    frc, ssnr, phase = (measure(metric, case_of(truth), truth.clone()) for metric in METRICS)
    assert frc.curves["frc"][:, 6:].tolist() == [[0] * 10] * 2
    assert (32 / frc.values["frc_pixels"]).tolist() == pytest.approx([6.5] * 2)
    assert ssnr.values["ssnr"].tolist() == [math.inf] * 2
    assert phase.values["phase"].tolist() == pytest.approx([0, 0], abs=1e-6)
    for name, measured in (("ssnr", ssnr), ("phase", phase)):
        assert measured.curves[name][:, 6:].isnan().all()
        assert not measured.unmeasured


def test_signal_in_rings_that_are_empty_in_the_truth_lowers_the_ssnr():
    whole = images(2, (32, 32))
    truth = low_passed(whole, 6.5)
    value = measure(Ssnr(), case_of(truth), whole).values["ssnr"]
    assert value.tolist() == pytest.approx([10 * math.log10(6 / 10)] * 2, abs=1e-5)  # 6 exact rings, 10 of error alone


def test_a_truth_without_signal_has_no_number_and_a_reason():
    truth = torch.full((2, 1, 16, 16), 0.25)
    for metric, name in ((Ssnr(), "ssnr"), (Phase(), "phase")):
        measured = measure(metric, case_of(truth), truth.clone())
        assert measured.values[name].isnan().all()
        assert measured.unmeasured == {name: "the truth is constant where it is measured"}


def test_without_a_pixel_size_there_is_no_resolution_in_angstrom():
    truth = images(2, (32, 32))
    measured = measure(Frc(), case_of(truth), distorted(truth))
    assert measured.values["frc"].isnan().all()
    assert measured.values["frc_seventh"].isnan().all()
    assert set(measured.unmeasured) == {"frc", "frc_seventh"}
    assert "frc_pixels" in measured.unmeasured["frc"]
    assert measured.values["frc_pixels"].isfinite().all()
    assert not measure(Frc(), case_of(truth, pixel_size=1.0), distorted(truth)).unmeasured


# ------------------------------------------------------------------------------------------------------- crossings


@pytest.mark.parametrize(
    ("curve", "frequency"),
    [
        ([1.0, 1.0, 1.0, 1.0], 0.5),
        ([1.0, 0.9, 0.5, 0.5], 0.5),  # on the threshold is not below
        ([0.4, 0.4, 0.4, 1.0], 1 / 8),
        ([0.4, 0.3, 1.0, 0.0], 3.5 / 8),  # the two innermost rings do not end it alone,
        ([1.0, 0.0, 1.0, 1.0], 0.5),
        ([1.0, 0.0, 0.0, 1.0], 1.5 / 8),  # but with the third
        ([0.0, 1.0, 0.0, 1.0], 1 / 8),
        ([1.0, 0.75, 0.25, 0.0], 2.5 / 8),
        ([1.0, 0.6, 0.1, 0.9], 2.2 / 8),  # the first time, even if it rises again
        ([0.5, 0.0, 0.0, 0.0], 1 / 8),
        ([1.0, 1.0, 1.0, -1.0], 3.25 / 8),
    ],
)
def test_crossings(curve, frequency):
    assert crossing(torch.tensor([curve], dtype=torch.float64), 0.5, (8, 8)).item() == pytest.approx(frequency)


@given(st.lists(st.floats(-1, 1), min_size=8, max_size=8), st.floats(0.01, 0.99))
def test_a_crossing_lies_between_the_box_and_nyquist_and_falls_with_the_threshold(values, threshold):
    curve = torch.tensor([values], dtype=torch.float64)
    found = crossing(curve, threshold, (16, 16)).item()
    assert 1 / 16 <= found <= 1 / 2
    assert crossing(curve, threshold / 2, (16, 16)).item() >= found - 1e-12


# --------------------------------------------------------------------------------------------------------- circles


def test_pixels_beyond_the_soft_edge_do_not_matter():
    truth = images(2, (64, 64))
    x = distorted(truth)
    y = torch.arange(64) - 32
    beyond = (y[:, None] ** 2 + y**2).sqrt() >= 20 + 5
    other = torch.where(beyond, 5.0, x)
    case = case_of(truth, within=[20, 20])
    for metric in METRICS:
        for name, value in measure(metric, case, x).values.items():
            torch.testing.assert_close(measure(metric, case, other).values[name], value, equal_nan=True)
            if name in ("frc_area", "ssnr", "phase"):
                assert not torch.allclose(measure(metric, case_of(truth), x).values[name], value)


def test_a_circle_around_the_whole_image_is_the_whole_image():
    truth = images(2, (32, 32))
    x = distorted(truth)
    for metric in METRICS:
        whole, circle = (measure(metric, case_of(truth, within=w), x).values for w in (None, [46.0, 46.0]))
        torch.testing.assert_close(circle, whole, equal_nan=True)


def test_a_common_background_does_not_count_as_agreement():
    # two noises on one offset: the edge of the circle must not make them alike
    truth, x = images(32, (64, 64), fall=0) + 3, images(32, (64, 64), seed=3, fall=0) + 3
    curve = measure(Frc(), case_of(truth, within=[20] * 32), x).curves["frc"]
    assert curve.mean(dim=0).abs().max() < 0.3


@pytest.mark.parametrize("within", [None, [9.0, 12.0, 14.0]])
def test_results_do_not_depend_on_the_batch(within):
    truth = images(3, (32, 32))
    x = distorted(truth)
    case = case_of(truth, pixel_size=2.0, within=within)
    for metric in METRICS:
        many, one = measure(metric, case, x), measure(metric, alone(case, 1), x[1:2])
        for name, value in one.values.items():
            torch.testing.assert_close(value, many.values[name][1:2], rtol=1e-9, atol=1e-9)
        for name, curve in one.curves.items():
            torch.testing.assert_close(curve, many.curves[name][1:2], rtol=1e-9, atol=1e-9)


def test_float32_images_are_summed_in_float64():
    truth = images(2, (32, 32)).float()
    x = distorted(truth)
    for metric in METRICS:
        single = measure(metric, case_of(truth, pixel_size=1.0), x)
        double = measure(metric, case_of(truth.double(), pixel_size=1.0), x.double())
        torch.testing.assert_close(single.values, double.values)
        assert all(value.dtype == torch.float64 for value in single.values.values())
