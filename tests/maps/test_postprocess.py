"""Filters of a map: against their formulas, and the B-factor and local resolution of maps made to have them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cryobench.errors import ParameterError
from cryobench.maps.fsc import half_map_fsc
from cryobench.maps.local import local_resolution
from cryobench.maps.masks import soft_ball
from cryobench.maps.postprocess import guinier, postprocess


def radius_of(side):
    """|k| in cycles per pixel of every coefficient of `fftn`."""
    k = np.fft.fftfreq(side)
    return np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k[None, None, :] ** 2)


def made(side, gain, seed):
    """White noise times a function of |k| in cycles per pixel, float64."""
    white = np.random.default_rng(seed).normal(size=(side,) * 3)
    return torch.from_numpy(np.fft.ifftn(np.fft.fftn(white) * gain(radius_of(side))).real)


@pytest.mark.parametrize("b_factor", [0.0, -90.0])
def test_the_map_is_the_mean_weighted_sharpened_and_cut(b_factor):
    side, pixel = 32, 2.0
    signal = made(side, lambda k: 6 * np.exp(-((k / 0.15) ** 2)), 0)
    halves = [signal + made(side, np.ones_like, seed) for seed in (1, 2)]
    fsc = half_map_fsc(*halves, mask=soft_ball(side, 10, 4), pixel_size=pixel)
    found = postprocess(*halves, fsc, b_factor=b_factor)
    assert (found.b_factor, found.reason) == (b_factor, None)
    ratio = np.fft.fftn(found.map.numpy()) / np.fft.fftn((sum(halves) / 2).numpy())
    assert np.abs(ratio.imag).max() < 1e-9
    k = radius_of(side)
    shell = np.round(k * side).astype(int)
    last = side * pixel / fsc.resolution()
    assert 6 < last < 15
    for r in range(1, int(last) - 1):
        weight = np.sqrt(2 * float(fsc.corrected[r - 1]) / (1 + float(fsc.corrected[r - 1])))
        sharper = np.exp(-b_factor / 4 * (k[shell == r] / pixel) ** 2)
        np.testing.assert_allclose(ratio[shell == r].real, weight * sharper, rtol=1e-8)
    assert np.abs(ratio[k * side >= last + 1]).max() < 1e-10
    edge = (k * side > last - 1) & (k * side < last + 1)
    cosine = 0.5 + 0.5 * np.cos(np.pi * (k[edge] * side - last + 1) / 2)
    signal_there = np.append(fsc.corrected.clamp_min(0).numpy(), 0)[shell[edge] - 1]
    weight = np.sqrt(2 * signal_there / (1 + signal_there)) * np.exp(-b_factor / 4 * (k[edge] / pixel) ** 2)
    np.testing.assert_allclose(ratio[edge].real, weight * cosine, atol=1e-9)


@pytest.mark.parametrize("b_factor", [40.0, 150.0])
def test_the_b_factor_of_a_map_of_flat_amplitudes_is_found(b_factor):
    side, pixel = 48, 1.5
    signal = made(side, lambda k: np.exp(-b_factor / 4 * (k / pixel) ** 2), 0)
    noise = [1e-3 * made(side, np.ones_like, seed) for seed in (1, 2)]
    halves = [signal + part for part in noise]
    fsc = half_map_fsc(*halves, mask=None, pixel_size=pixel)
    found, reason = guinier(sum(halves) / 2, fsc)
    assert reason is None
    assert found == pytest.approx(-b_factor, abs=5)
    assert postprocess(*halves, fsc).b_factor == found


def test_the_filtered_map_is_closer_to_the_truth():
    side = 32
    signal = made(side, lambda k: 6 * np.exp(-((k / 0.1) ** 2)), 0)
    halves = [signal + made(side, np.ones_like, seed) for seed in (1, 2)]
    fsc = half_map_fsc(*halves, mask=None, pixel_size=None)
    filtered = postprocess(*halves, fsc, b_factor=0.0).map

    def similar(volume):
        return np.corrcoef(volume.flatten(), signal.flatten())[0, 1]

    assert similar(filtered) > similar(halves[0] + halves[1]) + 0.02


@pytest.mark.parametrize(
    ("pixel_size", "reason"),
    [(None, "not sharpened: the pixel size is not known"), (6.0, "fewer than 3 shells beyond 10 Å")],
)
def test_a_map_is_not_sharpened_where_no_b_factor_can_be_fitted(pixel_size, reason):
    halves = [made(24, lambda k: np.exp(-k), 0) + 0.01 * made(24, np.ones_like, seed) for seed in (1, 2)]
    fsc = half_map_fsc(*halves, mask=None, pixel_size=pixel_size)
    found = postprocess(*halves, fsc)
    assert found.b_factor == 0
    assert reason in found.reason


def test_local_resolution_is_that_of_each_place():
    side, pixel = 64, 2.0
    x = np.arange(side) - side // 2
    halves_of_the_box = [
        torch.from_numpy(x[None, None, :] < 0).double(),
        torch.from_numpy(x[None, None, :] >= 0).double(),
    ]
    coarse, fine = (made(side, lambda k, cut=cut: 2.0 * (k < cut), seed) for seed, cut in enumerate((2 / 14, 2 / 6)))
    signal = coarse * 2 * halves_of_the_box[0] + fine * halves_of_the_box[1]
    a, b = (signal + made(side, np.ones_like, seed) for seed in (2, 3))
    mask = torch.zeros(a.shape)
    mask[20:44, 20:44] = 1
    local = local_resolution(a, b, mask, radius_pixels=10.0, pixel_size=pixel)
    assert local.shape == a.shape
    left, right = local[20:44, 20:44, :16], local[20:44, 20:44, 49:]
    # a ball of 31 voxels resolves frequencies to one of its shells, 1 / 62 Å
    assert 1 / left.median() == pytest.approx(1 / 14, abs=1.5 / 62)
    assert 1 / right.median() == pytest.approx(1 / 6, abs=1.5 / 62)
    in_pixels = local_resolution(a, b, mask, radius_pixels=10.0, pixel_size=None)
    np.testing.assert_allclose(in_pixels * 2, local, rtol=1e-6)


def test_local_resolution_of_a_uniform_map_is_that_of_the_map():
    side = 48
    signal = made(side, lambda k: 3 * np.exp(-((k / 0.15) ** 2)), 0)
    a, b = (signal + made(side, np.ones_like, seed) for seed in (1, 2))
    mask = soft_ball(side, 14, 3)
    local = local_resolution(a, b, mask, radius_pixels=11.0, pixel_size=1.0)
    whole = half_map_fsc(a, b, mask=None, pixel_size=1.0).resolution()
    assert local[mask > 0.5].median() == pytest.approx(whole, rel=0.1)


@pytest.mark.parametrize("radius", [1.0, 12.0])
def test_balls_that_do_not_fit_are_refused(radius):
    a, b = torch.randn(2, 20, 20, 20)
    with pytest.raises(ParameterError, match="20 x 20 x 20 voxels; pad it, or leave it out"):
        local_resolution(a, b, torch.ones(a.shape), radius_pixels=radius, pixel_size=None)
