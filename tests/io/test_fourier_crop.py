"""Resampling in Fourier space: exact within the band of both grids, SciPy's convention beyond."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import resample

from cryobench.errors import DataError
from cryobench.io.fourier_crop import fourier_resize, square_crop


def noise(N: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(N, N)).astype(np.float32)


def band_limited(side: int, band: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random real waves of fewer than `band` cycles per image: on `side` pixels, and as a function of the grid."""
    rng = np.random.default_rng(seed)
    frequencies = rng.integers(-band + 1, band, size=(30, 2))
    waves = np.column_stack([frequencies, rng.normal(size=30), rng.uniform(0, 2 * np.pi, size=30)])
    return sample(waves, side), waves


def sample(waves: np.ndarray, side: int) -> np.ndarray:
    y, x = np.mgrid[:side, :side] / side
    return sum(a * np.cos(2 * np.pi * (ky * y + kx * x) + phase) for ky, kx, a, phase in waves)


@pytest.mark.parametrize(("N", "n"), [(32, 16), (33, 16), (32, 15), (33, 15), (40, 12), (16, 16), (20, 19), (9, 1)])
def test_cropping_samples_a_band_limited_image_exactly(N, n):
    image, waves = band_limited(N, max(1, (n + 1) // 2))
    np.testing.assert_allclose(fourier_resize(image, n), sample(waves, n), atol=1e-5)


@pytest.mark.parametrize(("N", "n"), [(32, 16), (33, 16), (32, 15), (33, 15), (16, 16)])
def test_cropping_keeps_the_mean_is_linear_and_removes_higher_frequencies(N, n):
    a, b = noise(N, 1).astype(np.float64) + 3, noise(N, 2).astype(np.float64)
    assert fourier_resize(a, n).mean() == pytest.approx(a.mean(), abs=1e-5)
    np.testing.assert_allclose(fourier_resize(a - 2 * b, n), fourier_resize(a, n) - 2 * fourier_resize(b, n), atol=1e-4)
    if n < N:
        wave = sample(np.array([[n // 2 + 1, 1, 1.0, 0.3]]), N)
        np.testing.assert_allclose(fourier_resize(wave, n), 0, atol=1e-6)


@pytest.mark.parametrize(("N", "n"), [(16, 32), (16, 33), (15, 32), (15, 33), (1, 9), (2, 3), (19, 20)])
def test_padding_samples_a_band_limited_image_exactly_and_keeps_the_mean(N, n):
    image, waves = band_limited(N, max(1, (N + 1) // 2))
    np.testing.assert_allclose(fourier_resize(image, n), sample(waves, n), atol=1e-5)
    assert fourier_resize(noise(N) + 3, n).mean() == pytest.approx((noise(N) + 3).mean(), abs=1e-5)


@given(st.integers(1, 24), st.integers(1, 40), st.integers(0, 2**31))
def test_resizing_equals_scipys_resampling_along_both_axes(N, n, seed):
    image = noise(N, seed)
    expected = resample(resample(image.astype(np.float64), n, axis=0), n, axis=1)
    resized = fourier_resize(image, n)
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, expected, atol=2e-5)


@given(st.integers(1, 24), st.integers(0, 20), st.integers(0, 2**31))
def test_cropping_undoes_padding(N, more, seed):
    image = noise(N, seed)
    np.testing.assert_allclose(fourier_resize(fourier_resize(image, N + more), N), image, atol=2e-6)


def test_padding_to_a_multiple_interpolates_the_pixels():
    image = noise(12)
    np.testing.assert_allclose(fourier_resize(image, 36)[::3, ::3], image, atol=2e-6)


@pytest.mark.parametrize(("shape", "n"), [((4, 5), 3), ((4, 4), 0), ((0, 0), 3)])
def test_invalid_sizes_are_refused(shape, n):
    with pytest.raises(DataError, match="cannot resample"):
        fourier_resize(np.zeros(shape), n)


@pytest.mark.parametrize("n", [4, 5, 8, 9, 12])
def test_volumes_are_resampled_as_scipy_does_along_every_axis(n):
    volume = np.random.default_rng(0).normal(size=(8, 8, 8))
    wanted = volume
    for axis in range(3):
        wanted = resample(wanted, n, axis=axis)
    np.testing.assert_allclose(fourier_resize(volume, n), wanted, atol=1e-6)


def test_the_middle_cube_is_cut_and_other_shapes_are_refused():
    volume = np.arange(4 * 6 * 5).reshape(4, 6, 5)
    np.testing.assert_array_equal(square_crop(volume), volume[:, 1:5, 0:4])
    with pytest.raises(DataError, match="cannot resample 4 x 4 x 5 to 2 pixels a side; expected a square or a cube"):
        fourier_resize(np.zeros((4, 4, 5)), 2)
