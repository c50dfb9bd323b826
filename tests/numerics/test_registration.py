"""Shifts and flows that are known, with noise of up to three times the deviation of the image."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import fourier_shift, map_coordinates

from cryobench.numerics.registration import (
    brightness,
    common,
    correlation,
    details,
    flow_between,
    found_shift,
    similarity,
    tvl1,
    warped,
)
from cryobench.sources.tissue import smooth_noise, volume

N, AROUND = 144, 40
TISSUE = volume((8, N + 2 * AROUND, N + 2 * AROUND), 5)[4].astype(np.float64)
SECOND = TISSUE[AROUND:-AROUND, AROUND:-AROUND]


def first(displacement, noise, seed=0):
    """An image of which pixel p shows what p + displacement of `SECOND` does, without and with noise."""
    places = np.mgrid[:N, :N] + AROUND + np.reshape(displacement, (2, *(np.shape(displacement)[1:] or (1, 1))))
    exact = map_coordinates(TISSUE, places, order=3)
    return exact, exact + noise * exact.std() * np.random.default_rng(seed).normal(size=exact.shape)


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.35, -0.6), (-7.45, 12.2), (31.3, 24.75)])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_shifts_are_found_within_a_fifth_of_a_pixel(shift, noise):
    found = found_shift(first(shift, noise)[1], SECOND)
    np.testing.assert_allclose(found, shift, atol=0.2 if noise else 0.07)


def test_shifts_are_found_in_noise_of_three_deviations_and_under_a_gradient():
    errors = [found_shift(first((5.3, -9.6), 3.0, seed)[1], SECOND) - (5.3, -9.6) for seed in range(4)]
    assert np.sqrt(np.mean(np.square(errors))) < 0.2
    tilted = first((5.3, -9.6), 0.5)[1] + 10 * SECOND.std() * np.linspace(-1, 1, N)[:, None]
    np.testing.assert_allclose(found_shift(tilted, SECOND), (5.3, -9.6), atol=0.2)


def test_a_shift_in_fourier_space_is_found_with_its_sign():
    """`scipy.ndimage.fourier_shift` moves an image by +d: pixel p shows what p - d did."""
    periodic = np.random.default_rng(1).normal(size=(64, 80))
    periodic = np.fft.ifft2(np.fft.fft2(periodic) * np.exp(-((np.hypot(*np.meshgrid(
        np.fft.fftfreq(64), np.fft.fftfreq(80), indexing="ij")) / 0.12) ** 2))).real  # fmt: skip
    moved = np.fft.ifft2(fourier_shift(np.fft.fft2(periodic), (3.25, -1.5))).real
    np.testing.assert_allclose(found_shift(moved, periodic), (-3.25, 1.5), atol=0.05)


def test_images_of_different_sizes_are_compared_from_their_first_pixel():
    exact, _ = first((6.0, 3.0), 0.0)
    np.testing.assert_allclose(found_shift(exact[:120], SECOND[:, :130]), (6, 3), atol=0.05)


@pytest.mark.parametrize("reach", [0, 3])
@pytest.mark.parametrize("shift", [(2.0, -3.0), (0.4, -0.4), (-5.7, 6.2), (-0.0, 0.0)])
def test_the_common_rectangle_is_all_that_has_its_surroundings_in_both(shift, reach):
    sides = (20, 30), (24, 26)
    where = common(*sides, np.array(shift), reach)
    for axis in range(2):
        p = np.arange(sides[0][axis])
        inside = (p + shift[axis] - reach >= 0) & (p + shift[axis] + reach <= sides[1][axis] - 1)
        assert list(range(*where[axis].indices(sides[0][axis]))) == list(p[inside])
    assert common((8, 8), (8, 8), np.array([9.0, 0.0])) is None


def test_warping_by_the_known_displacement_gives_the_first_image():
    flow = 2 * np.stack([smooth_noise((N, N), 30.0, ("test", axis)) for axis in range(2)])
    shift = np.array([4.4, -3.3])
    where = common((N, N), (N, N), shift, 12)
    exact, _ = first(shift[:, None, None] + flow, 0.0)
    bent = warped(SECOND, where, shift[:, None, None] + flow[:, *where])
    assert np.sqrt(np.mean((bent - exact[where]) ** 2)) < 0.01 * exact.std()
    whole = common((N, N), (N, N), np.array([3.0, -2.0]))
    np.testing.assert_allclose(warped(SECOND, whole, np.array([3.0, -2.0])), SECOND[3:, : N - 2], atol=1e-12)


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_a_flow_reduces_the_error_of_a_warp_and_only_then_makes_details_more_alike(noise):
    inner = slice(8, -8), slice(8, -8)
    flow = 2 * np.stack([smooth_noise((N, N), 30.0, ("test", axis)) for axis in range(2)])
    for known, helps in ((flow, True), (0 * flow, False)):
        exact, noisy = first(known, noise)
        found = flow_between(noisy, SECOND, tvl1, 8)
        assert np.abs(found).max() <= 8
        bent = warped(SECOND, (slice(0, N), slice(0, N)), found)
        before, after = (np.sqrt(np.mean((image - exact)[inner] ** 2)) for image in (SECOND, bent))
        finer = correlation(details(noisy)[inner], details(bent)[inner]) - \
            correlation(details(noisy)[inner], details(SECOND)[inner])  # fmt: skip
        if helps:
            assert after < 0.5 * before
            assert finer > 0.05
        else:
            assert finer <= 1e-12


def test_similarity_tells_other_places_from_noise():
    other = volume((8, N, N), 17)[4].astype(np.float64)
    _, noisy = first((0, 0), 3.0)
    assert similarity(noisy, SECOND) > 0.28
    assert abs(similarity(other, SECOND)) < 0.15
    assert similarity(SECOND + 5, 3 * SECOND) == pytest.approx(1)
    assert similarity(np.ones((9, 9)), SECOND[:9, :9]) == 0


def test_brightness_and_correlation_against_numpy():
    a, b = np.random.default_rng(2).normal(size=(2, 12, 9)) + 3
    b += a
    assert correlation(a, b) == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1])
    factor, offset = np.polyfit(b.ravel(), a.ravel(), 1)
    assert brightness(a, b) == pytest.approx((offset, factor))
    assert brightness(a, np.ones_like(b)) == pytest.approx((a.mean(), 0))
