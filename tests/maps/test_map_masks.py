"""Soft masks of maps: against distances computed voxel by voxel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from cryobench.errors import ParameterError
from cryobench.maps.masks import low_passed, mask_of, soft_ball


@pytest.mark.parametrize("side", [16, 15])
def test_a_ball_has_a_cosine_edge_around_its_radius(side):
    ball = soft_ball(side, 4.0, 3.0, dtype=torch.float64)
    distance = np.linalg.norm(np.indices((side, side, side)) - side // 2, axis=0)
    wanted = 0.5 + 0.5 * np.cos(np.pi * np.clip((distance - 4) / 3, 0, 1))
    np.testing.assert_allclose(ball, wanted, atol=1e-12)


def test_a_ball_without_an_edge_is_ones_and_zeros():
    ball = soft_ball(9, 2.0, 0.0)
    assert ball.dtype == torch.float32
    assert ball.unique().tolist() == [0, 1]
    assert ball.sum() == 33  # lattice points within 2 of the origin


def test_the_mask_of_a_map_is_dilated_and_soft():
    volume = torch.zeros((20, 20, 20), dtype=torch.float64)
    volume[8:11, 9:12, 10] = 1
    volume[3, 10, 10] = 0.4
    mask = mask_of(volume, threshold=0.5, extend_pixels=2, edge_pixels=3)
    seeds = np.argwhere(volume.numpy() >= 0.5)
    distance = cKDTree(seeds).query(np.indices((20, 20, 20)).reshape(3, -1).T)[0].reshape(20, 20, 20)
    wanted = 0.5 + 0.5 * np.cos(np.pi * np.clip((distance - 2) / 3, 0, 1))
    np.testing.assert_allclose(mask, wanted, atol=1e-12)


def test_a_mask_without_a_threshold_covers_the_particle_and_not_the_noise():
    particle = soft_ball(32, 7.0, 2.0, dtype=torch.float64)
    noise = torch.randn(particle.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noisy = particle + noise  # no single voxel tells
    mask = mask_of(noisy, low_pass_pixels=6.0, extend_pixels=1, edge_pixels=3)
    assert mask[particle == 1].mean() > 0.99
    assert mask[soft_ball(32, 12, 0) == 0].mean() < 0.03


def test_a_low_pass_halves_the_amplitude_at_its_resolution():
    n = 24
    wave = torch.cos(2 * torch.pi * 4 * torch.arange(n, dtype=torch.float64) / n).expand(n, n, n)
    assert (low_passed(wave, 6.0) - wave / 2).abs().max() < 1e-12
    blob = torch.from_numpy(gaussian_filter(np.pad([[[1.0]]], 12), 1.5, mode="wrap"))
    # exp(-2 pi^2 s^2 k^2) = 2^-(k r)^2
    s = 6.0 * np.sqrt(np.log(2) / (2 * np.pi**2))
    wanted = gaussian_filter(blob.numpy(), s, mode="wrap", truncate=8)
    np.testing.assert_allclose(low_passed(blob, 6.0), wanted, atol=1e-5)


@pytest.mark.parametrize("threshold", [2.0, -1.0])
def test_a_threshold_outside_the_map_is_an_error(threshold):
    volume = soft_ball(8, 2.0, 1.0)
    with pytest.raises(ParameterError, match="give one between 0 and 1"):
        mask_of(volume, threshold=threshold)
