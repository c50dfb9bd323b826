"""Expectation-maximisation: both steps against sums over all poses, and the likelihood."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cryobench.maps.expectation import expected, maximised, random_map
from cryobench.maps.likelihood import Band, InBand
from cryobench.maps.rotations import grid, random_rotations
from cryobench.numerics.fft import rfftn
from cryobench.numerics.shells import shells
from cryobench.physics.projection import Projector


def smooth_map(n: int, seed: int) -> torch.Tensor:
    power = torch.tensor([1.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01]) * n**3
    return random_map(power, Band.of(n, n / 2 - 1), 0.35, torch.Generator().manual_seed(seed))


def test_probabilities_and_sums_are_those_of_all_poses():
    draws = torch.Generator().manual_seed(0)
    band = Band.of(12, 4.0)
    y = torch.randn((3, len(band)), generator=draws, dtype=torch.complex64)
    inside = InBand(band, y, torch.rand((3, len(band)), generator=draws))
    volumes = torch.stack([smooth_map(band.n, seed) for seed in (1, 2)]) * 0.02
    rotations = grid(0)[::9].float()
    shifts = torch.randn((3, 2, 2), generator=draws)
    found = expected(inside, volumes, rotations, shifts, temperature=2.0)
    slices = [Projector(volume).values(band.k, rotations) for volume in volumes]
    numerator = torch.zeros((2, len(rotations), len(band)), dtype=torch.complex128)
    denominator = torch.zeros((2, len(rotations), len(band)), dtype=torch.float64)
    for i in range(3):
        gains = torch.zeros((2, 2, len(rotations)), dtype=torch.float64)
        for s in range(2):
            phase = torch.exp(-2j * math.pi / 12 * (band.k.double() @ shifts[i, s].double()))
            for k in range(2):
                model = inside.c[i] * phase * slices[k].to(torch.complex128)
                gains[s, k] = (y[i].abs() ** 2 - (y[i] - model).abs() ** 2).sum(dim=1) / 2
        w = (gains / 2).flatten().softmax(dim=0).view_as(gains)
        assert float(found.log_likelihood[i]) == pytest.approx(float(gains.exp().mean().log()), abs=1e-3)
        assert torch.allclose(found.classes[i].double(), w.sum(dim=(0, 2)), atol=1e-4)
        assert torch.allclose(found.shift[i].double(), (w.sum(dim=(1, 2))[:, None] * shifts[i]).sum(dim=0), atol=1e-3)
        for s in range(2):
            phase = torch.exp(2j * math.pi / 12 * (band.k.double() @ shifts[i, s].double()))
            numerator += w[s, :, :, None] * (phase * inside.c[i] * y[i])
        denominator += w.sum(dim=0)[:, :, None] * inside.c[i].double() ** 2
    assert torch.allclose(found.numerator.to(torch.complex128), numerator, atol=1e-3)
    assert torch.allclose(found.denominator.double(), denominator, atol=1e-3)


def test_slices_of_a_map_give_the_map():
    """With many exact slices and a weak prior the maximum is the map that they are slices of."""
    n, band = 16, Band.of(16, 7.0)
    volume = smooth_map(n, 3)
    rotations = random_rotations(600, torch.Generator().manual_seed(1))
    slices = Projector(volume).values(band.k, rotations.float())
    found = maximised(slices, torch.ones_like(slices.real), rotations, band, torch.full((9,), 1e6))
    inside = shells((n,) * 3) <= 6
    one, other = (rfftn(v.double(), 3)[inside] for v in (found, volume))
    correlation = float((one * other.conj()).real.sum() / (one.norm() * other.norm()))
    assert correlation > 0.97
    assert float((one * other.conj()).real.sum() / other.norm() ** 2) == pytest.approx(1, abs=0.1)


def test_a_strong_prior_leaves_nothing():
    band = Band.of(12, 4.0)
    rotations = grid(0)
    n = torch.ones((len(rotations), len(band)), dtype=torch.complex64)
    found = maximised(n, n.real, rotations, band, torch.tensor([1e-12]))
    assert float(found.abs().max()) < 1e-6


def test_random_maps_have_the_stated_power():
    power = torch.tensor([4.0, 4.0, 3.0, 2.0, 1.0, 1.0]) * 1e3
    band = Band.of(24, 5.0)
    spectra = [
        rfftn(random_map(power, band, 0.4, torch.Generator().manual_seed(seed)).double(), 3) for seed in range(30)
    ]
    shell = shells((band.n,) * 3)
    measured = [
        np.mean([float(spectrum[shell == r].abs().square().mean()) for spectrum in spectra]) for r in range(1, 6)
    ]
    np.testing.assert_allclose(measured, power[1:], rtol=0.25)
    assert torch.equal(*(random_map(power, band, 0.4, torch.Generator().manual_seed(5)) for _ in range(2)))
