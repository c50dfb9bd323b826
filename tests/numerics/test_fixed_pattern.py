"""The pattern of a detector in both halves of micrographs: found where there is one, and only there."""

from __future__ import annotations

import pytest
import torch

from cryobench.numerics.fixed_pattern import fixed_pattern

SIDE = 256


def counts(n: int, gain: torch.Tensor, seed: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Two halves of n micrographs: smooth specimens, 100 counts a pixel, times the error of the gain."""
    draw = torch.Generator().manual_seed(seed)
    spectra = torch.fft.rfft2(torch.randn((n, SIDE, SIDE), generator=draw))
    frequency = torch.hypot(torch.fft.fftfreq(SIDE)[:, None], torch.fft.rfftfreq(SIDE))
    specimen = torch.fft.irfft2(spectra * torch.exp(-40 * frequency), s=(SIDE, SIDE))
    mean = 100 * (1 + 0.1 * specimen / specimen.std())
    return tuple([torch.poisson(each, generator=draw) * gain for each in mean] for _ in range(2))


@pytest.mark.parametrize("seed", range(5))
def test_clean_halves_have_no_pattern_in_common(seed):
    found = fixed_pattern(*counts(4, torch.ones(SIDE, SIDE), seed))
    assert not found.found
    assert abs(found.correlation) < 4 * found.error


def test_the_standard_error_is_the_spread_over_data_sets():
    found = [fixed_pattern(*counts(2, torch.ones(SIDE, SIDE), seed)) for seed in range(30)]
    values = torch.tensor([each.correlation for each in found])
    assert float(values.std()) == pytest.approx(sum(each.error for each in found) / 30, rel=0.4)


def test_an_error_of_the_gain_is_found_with_its_correlation():
    """A gain error of 2% at 100 counts has the variance 4 of 104: a correlation of 0.038."""
    gain = 1 + 0.02 * torch.randn((SIDE, SIDE), generator=torch.Generator().manual_seed(9))
    found = fixed_pattern(*counts(4, gain, 0))
    assert found.found
    assert found.correlation == pytest.approx(100 * 0.02**2 / (1 + 100 * 0.02**2), rel=0.25)


def test_hot_pixels_are_found():
    gain = torch.ones(SIDE, SIDE)
    gain.view(-1)[torch.randperm(SIDE**2, generator=torch.Generator().manual_seed(1))[:300]] = 1.5
    found = fixed_pattern(*counts(3, gain, 0))
    assert found.found
    assert 0 < found.share < 1


def test_constant_halves_have_no_correlation():
    flat = [torch.ones(64, 64)] * 2
    assert not fixed_pattern(flat, flat).found
