"""Correlations between half maps: against NumPy coefficient by coefficient, torch-fourier-shell-correlation, and their
expectation for known signal and noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_fourier_shell_correlation import fsc as their_fsc

from cryobench.errors import ParameterError
from cryobench.maps.fsc import half_map_fsc, randomised, shell_correlation
from cryobench.maps.masks import soft_ball


def white(side, seed):
    return torch.randn((side,) * 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def radius_of(side):
    """|k| in cycles per box of every coefficient of `fftn`."""
    k = np.fft.fftfreq(side) * side
    return np.sqrt(sum(axis**2 for axis in np.meshgrid(k, k, k, indexing="ij")))


def filtered(volume, gain):
    """A volume times a function of |k| in cycles per box."""
    spectrum = np.fft.fftn(volume.numpy()) * gain(radius_of(len(volume)))
    return torch.from_numpy(np.fft.ifftn(spectrum).real)


def by_coefficient(a, b, mask):
    """The curve by its definition."""
    a, b = (mask * (x - (mask * x).sum() / mask.sum()) for x in (a, b))
    A, B = np.fft.fftn(a), np.fft.fftn(b)
    shell = np.round(radius_of(len(a)))
    curve = []
    for r in range(1, len(a) // 2 + 1):
        x, y = A[shell == r], B[shell == r]
        curve.append((x * y.conj()).sum().real / np.sqrt((abs(x) ** 2).sum() * (abs(y) ** 2).sum()))
    return curve


@pytest.mark.parametrize("side", [16, 15])
@pytest.mark.parametrize("masked", [False, True])
def test_the_curve_is_its_definition(side, masked):
    a, b = white(side, 0) + 5, white(side, 0) + white(side, 1)
    mask = soft_ball(side, side / 4, 3.0, dtype=torch.float64)
    curve = shell_correlation(a, b, mask if masked else None)
    wanted = by_coefficient(a.numpy(), b.numpy(), mask.numpy() if masked else np.ones(a.shape))
    assert curve.dtype == torch.float64
    np.testing.assert_allclose(curve, wanted, atol=1e-12)


def test_the_curve_is_that_of_torch_fourier_shell_correlation():
    # their shells share coefficients between neighbours: the curves of smooth correlations agree
    truth = filtered(white(32, 0), lambda k: np.exp(-((k / 6) ** 2)))
    a, b = (truth + 0.3 * truth.std() * white(32, seed) for seed in (1, 2))
    ours, theirs = shell_correlation(a, b), their_fsc(a.float(), b.float())[1:]
    assert ours[2] > 0.95
    assert ours[-1] < 0.2
    np.testing.assert_allclose(ours[3:], theirs[3:], atol=0.05)


def test_halves_of_known_signal_to_noise_correlate_as_expected():
    side = 32
    ratio = np.exp(-np.arange(17) / 4) * 8  # of the power of signal to that of noise, by shell
    signal = filtered(white(side, 0), lambda k: np.sqrt(ratio[np.minimum(np.round(k), 16).astype(int)]))
    curves = [shell_correlation(signal + white(side, 2 * i + 1), signal + white(side, 2 * i + 2)) for i in range(8)]
    expected = ratio[1:] / (1 + ratio[1:])
    np.testing.assert_allclose(torch.stack(curves).mean(0)[2:], expected[2:], atol=0.07)
    fsc = half_map_fsc(signal + white(side, 1), signal + white(side, 2), mask=None, pixel_size=2.0)
    crossing = 4 * np.log(8 / (0.143 / (1 - 0.143)))  # in cycles per box of 64 Å
    assert 1 / fsc.resolution() == pytest.approx(crossing / 64, abs=1.5 / 64)
    assert fsc.corrected is fsc.unmasked


@pytest.mark.parametrize("side", [16, 15])
def test_random_phases_keep_amplitudes_and_low_frequencies(side):
    volume = white(side, 0) + 1
    changed = randomised(volume, 5, 3)
    before, after = np.fft.fftn(volume.numpy()), np.fft.fftn(changed.numpy())
    np.testing.assert_allclose(abs(after), abs(before), atol=1e-10)  # only if the spectrum is Hermitian
    low = np.round(radius_of(side)) < 5
    np.testing.assert_allclose(after[low], before[low], atol=1e-10)
    turn = (after / before)[~low]
    assert abs(turn.mean()) < 0.05
    assert torch.equal(changed, randomised(volume, 5, 3))
    assert not torch.allclose(changed, randomised(volume, 5, 4))
    assert randomised(volume.float(), 5, 3).dtype == torch.float32


def test_a_tight_mask_makes_noise_correlate_and_the_correction_removes_it():
    side = 32
    signal = filtered(white(side, 99), lambda k: 300 * (k < 5.5))  # nothing is common to both beyond shell 5
    mask = soft_ball(side, 6.0, 1.0, dtype=torch.float64)
    pairs = [[signal + white(side, 2 * i + j) for j in (0, 1)] for i in range(6)]
    curves = [half_map_fsc(a, b, mask=mask, pixel_size=None, seed=i) for i, (a, b) in enumerate(pairs)]
    assert {curve.first_random for curve in curves} == {6}
    beyond = slice(9, None)
    assert torch.stack([curve.unmasked for curve in curves])[:, beyond].mean().abs() < 0.02
    assert torch.stack([curve.masked for curve in curves])[:, beyond].mean() > 0.9
    assert torch.stack([curve.corrected for curve in curves])[:, beyond].mean() < 0.1
    # two shells after the first are not corrected: 32 / 8, against the 32 / 5.5 of the signal
    assert {curve.resolution(curve="masked") for curve in curves} == {2.0}
    assert min(curve.resolution() for curve in curves) > 4


def test_halves_of_noise_alone_are_not_resolved_under_a_mask():
    side = 32
    # the noise of reconstructions is smooth; under a tight mask it correlates with itself over few coefficients
    pairs = [[filtered(white(side, 2 * i + j), lambda k: np.exp(-k / 3)) for j in (0, 1)] for i in range(8)]
    mask = soft_ball(side, 4.0, 2.0, dtype=torch.float64)
    curves = [half_map_fsc(a, b, mask=mask, pixel_size=1.0, seed=i) for i, (a, b) in enumerate(pairs)]
    corrected = torch.stack([curve.corrected for curve in curves])
    inflated = torch.stack([curve.masked for curve in curves])
    assert inflated[:, 4:].abs().mean() > 0.1
    assert corrected[:, 4:].mean() < 0.1


def test_the_correction_is_the_formula_two_shells_after_the_fall_below_four_fifths():
    side = 32
    signal = filtered(white(side, 0), lambda k: 3 * np.exp(-((k / 9) ** 2)))
    halves = [signal + white(side, seed) for seed in (1, 2)]
    mask = soft_ball(side, 9.0, 3.0)
    fsc = half_map_fsc(*halves, mask=mask, pixel_size=3.0)
    unmasked, masked, noise, corrected = (
        getattr(fsc, name).numpy() for name in ("unmasked", "masked", "randomised", "corrected")
    )
    first = int(np.argmax(unmasked < 0.8)) + 1
    assert first == fsc.first_random
    assert 3 < first < int(np.argmax(unmasked < 0.7)) + 1
    assert noise[first + 2 :].mean() < 0.1  # the phases of the two halves differ
    np.testing.assert_allclose(masked, by_coefficient(*(half.numpy() for half in halves), mask.double().numpy()))
    np.testing.assert_allclose(corrected[: first + 1], masked[: first + 1])
    formula = np.where(noise > masked, 0, (masked - noise) / (1 - noise))
    np.testing.assert_allclose(corrected[first + 1 :], formula[first + 1 :])
    np.testing.assert_allclose(fsc.frequency, np.arange(1, 17) / 96)
    below = int(np.argmax(corrected < 0.143))
    shell = below + (corrected[below - 1] - 0.143) / (corrected[below - 1] - corrected[below])
    assert fsc.resolution() == pytest.approx(96 / shell)
    assert fsc.resolution(0.5) > fsc.resolution() > fsc.resolution(0.05, "masked")


def test_equal_halves_are_resolved_to_the_nyquist_frequency():
    half = white(16, 0)
    fsc = half_map_fsc(half, half, mask=soft_ball(16, 5, 2), pixel_size=1.5)
    assert fsc.resolution() == 3.0
    np.testing.assert_allclose(fsc.corrected, 1.0)


@pytest.mark.parametrize(
    ("a", "b", "mask", "message"),
    [
        ((8, 8, 8), (8, 8, 10), None, "8 x 8 x 8 and 8 x 8 x 10"),
        ((8, 8, 10), (8, 8, 10), None, "cubes, got 8 x 8 x 10"),
        ((8, 8, 8), (8, 8, 8), (9, 9, 9), "8 x 8 x 8 and 9 x 9 x 9"),
    ],
)
def test_maps_of_other_shapes_are_refused(a, b, mask, message):
    with pytest.raises(ParameterError, match=message):
        half_map_fsc(torch.ones(a), torch.ones(b), mask=None if mask is None else torch.ones(mask), pixel_size=None)
