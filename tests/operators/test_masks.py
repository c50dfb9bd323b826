"""Masks depend on the seed, are nested, and keep the stated fraction."""

from __future__ import annotations

import math

import pytest
import torch

from cryobench.operators.masks import (
    Checkerboard,
    FourierRadial,
    FourierRing,
    RandomBinary,
    RandomFourier,
    RandomGaussian,
    Superres,
    mirror,
)

PIXEL = [RandomBinary(), RandomGaussian(), Checkerboard()]
FOURIER = [RandomFourier(), FourierRing(), FourierRadial()]
HERMITIAN = [RandomFourier(hermitian=True), FourierRing(hermitian=True), FourierRadial(hermitian=True)]


@pytest.mark.parametrize("mask", PIXEL, ids=repr)
def test_pixel_masks_follow_the_seed_and_are_nested(mask):
    masks = mask.draw(6, (20, 12), seed=1)
    assert masks.shape == (6, 20, 12)
    assert masks.dtype == torch.float32
    torch.manual_seed(123)  # the global state must not matter
    assert torch.equal(mask.draw(9, (20, 12), seed=1)[:6], masks)
    assert not torch.equal(mask.draw(6, (20, 12), seed=2), masks)
    assert not torch.equal(masks[0], masks[1])


@pytest.mark.parametrize("mask", FOURIER + HERMITIAN, ids=repr)
def test_fourier_masks_follow_the_seed(mask):
    first = mask.draw(0.4, (32, 32), seed=1)
    assert first.dtype == torch.bool
    assert torch.equal(mask.draw(0.4, (32, 32), seed=1), first)
    assert not torch.equal(mask.draw(0.4, (32, 32), seed=2), first)


def test_masks_leave_the_global_random_state_alone():
    before = torch.random.get_rng_state()
    for mask in PIXEL:
        mask.draw(2, (8, 8), 0)
    for mask in FOURIER:
        mask.draw(0.5, (8, 8), 0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_pixel_masks_have_the_statistics_they_state():
    binary = RandomBinary(0.3).draw(16, (64, 64), 0)
    assert set(binary.unique().tolist()) == {0.0, 1.0}
    assert binary.mean() == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / binary.numel()))
    gaussian = RandomGaussian().draw(16, (64, 64), 0)
    assert gaussian.mean() == pytest.approx(0, abs=4 / math.sqrt(gaussian.numel()))
    assert gaussian.var() == pytest.approx(1, abs=4 * math.sqrt(2 / gaussian.numel()))
    assert torch.equal(Superres().draw(2, (4, 6), 0), torch.ones(2, 4, 6))


def test_checkerboard_tiles_are_whole():
    mask = Checkerboard(tile=3).draw(1, (10, 8), 0)[0]
    for top in range(0, 10, 3):
        for left in range(0, 8, 3):
            assert len(mask[top : top + 3, left : left + 3].unique()) == 1
    assert len(mask.unique()) == 2


@pytest.mark.parametrize("mask", FOURIER + HERMITIAN, ids=repr)
@pytest.mark.parametrize("rho", [0.1, 0.5, 1.0])
def test_fourier_masks_keep_the_fraction_they_state(mask, rho):
    kept = mask.draw(rho, (128, 128), seed=0).float().mean().item()
    # spokes through the centre of a square grid differ a little in area
    assert kept == pytest.approx(rho, abs=0.03 if rho < 1 else 0)


@pytest.mark.parametrize("mask", HERMITIAN, ids=repr)
@pytest.mark.parametrize("shape", [(32, 32), (15, 12)])
def test_hermitian_masks_are_their_own_mirror_image(mask, shape):
    drawn = mask.draw(0.3, shape, 0)
    assert torch.equal(drawn, mirror(drawn))


def test_the_mirror_takes_k_to_minus_k():
    for shape in [(6, 8), (5, 7), (4, 5)]:
        spectrum = torch.fft.fftshift(torch.fft.fft2(torch.randn(shape, dtype=torch.float64)))
        # the spectrum of a real image is Hermitian
        torch.testing.assert_close(mirror(spectrum), spectrum.conj())
        assert mirror(spectrum)[shape[0] // 2, shape[1] // 2] == spectrum[shape[0] // 2, shape[1] // 2]


def test_rings_are_rings_and_favour_the_centre():
    shape = (128, 128)
    y, x = torch.meshgrid(torch.arange(128) - 64, torch.arange(128) - 64, indexing="ij")
    squared = y**2 + x**2
    masks = [FourierRing().draw(0.25, shape, seed) for seed in range(40)]
    for mask in masks[:3]:
        assert not (set(squared[mask].tolist()) & set(squared[~mask].tolist()))
    kept = torch.stack(masks).float().mean(0)
    inner, outer = kept[squared < 32**2].mean(), kept[squared > 60**2].mean()
    assert inner > 4 * outer
    # by the formula of sampling with replacement, the first draw falls in band b with probability w_b
    assert kept[64, 64] > 0.5


def test_spokes_have_equal_probability():
    kept = torch.stack([FourierRadial().draw(0.5, (64, 64), seed) for seed in range(200)]).float().mean(0)
    assert kept[kept.isfinite()].sub(0.5).abs().max() < 5 * math.sqrt(0.25 / 200)
