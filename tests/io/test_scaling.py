"""Intensity scales: each has its statistics and an inverse, and refuses images that cannot be scaled."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryobench.errors import DataError, ParameterError
from cryobench.io.scaling import NORMALISATIONS, Scaling, apply_each, minmax, minmax_each, scaling_of


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def background(image: np.ndarray, radius: float) -> np.ndarray:
    """The pixels outside the circle or ball, found one by one."""
    middle = [n // 2 for n in image.shape]
    outside = [image[at] for at in np.ndindex(image.shape) if math.dist(at, middle) > radius]
    return np.array(outside, np.float64)


@given(st.integers(0, 2**31), st.floats(1e-6, 1e6), st.floats(-1e3, 1e3))
def test_minmax_maps_to_minus_one_and_one_and_has_an_inverse(seed, scale, offset):
    image = (noise(5, 7, seed=seed) * scale + offset * scale).astype(np.float32)
    scaling = minmax(image, "x")
    scaled = scaling.apply(image)
    assert scaled.dtype == np.float32
    assert (scaled.min(), scaled.max()) == (-1, 1)
    np.testing.assert_allclose(scaling.undo(scaled), image, rtol=2e-7, atol=2e-7 * float(np.ptp(image)))


@pytest.mark.parametrize("shape", [(6, 5, 7), (3, 4, 5, 6)])
def test_images_scaled_together_are_those_scaled_one_by_one(shape):
    images = noise(*shape) * np.float32(1e3)
    each = minmax_each(images, str)
    assert each == [minmax(image, "x") for image in images]
    expected = np.stack([one.apply(image) for one, image in zip(each, images, strict=True)])
    np.testing.assert_array_equal(apply_each(each, images), expected)


@pytest.mark.parametrize("value", [3.5, np.nan, np.inf])
def test_the_first_image_that_cannot_be_scaled_is_named(value):
    images = noise(4, 3, 3)
    images[2], images[3] = value, np.nan
    with pytest.raises(DataError, match=r"^image 2 .*leave this image out"):
        minmax_each(images, lambda place: f"image {place}")


def test_minmax_of_the_widest_range():
    image = np.array([[-3e38, 0, 3e38]], np.float32)
    np.testing.assert_array_equal(minmax(image, "x").apply(image), [[-1, 0, 1]])


@pytest.mark.parametrize("value", [0.0, 3.5, np.nan, np.inf])
def test_minmax_refuses_constant_and_infinite_images(value):
    with pytest.raises(DataError, match=r"^image 3 of a\.mrcs .*leave this image out"):
        minmax(np.full((4, 4), value, np.float32), "image 3 of a.mrcs")


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("name", NORMALISATIONS)
@given(st.integers(0, 2**31), st.floats(1e-6, 1e6), st.floats(0, 1e3))
def test_every_scaling_can_be_undone_to_the_rounding_of_float32(name, invert, seed, scale, offset):
    image = ((np.abs(noise(9, 12, seed=seed)) + offset) * scale).astype(np.float32)
    scaling = scaling_of(name, image, "x", invert=invert)
    scaled = scaling.apply(image)
    assert scaled.dtype == np.float32
    again = scaling.undo(scaled)
    assert again.dtype == np.float32
    # half a unit in the last place of the scaled image, in the units of the file, and another of the result
    rounding = 2**-24 * (np.abs(scaled.max() - scaled.min()) + np.abs(scaled)) * abs(scaling.factor)
    assert (np.abs(again - image.astype(np.float64)) <= rounding + 2**-24 * np.abs(image) * 1.01).all()


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_inversion_is_a_change_of_sign_after_scaling(name):
    image = np.abs(noise(16, 16))
    plain, inverted = (scaling_of(name, image, "x", invert=invert).apply(image) for invert in (False, True))
    np.testing.assert_array_equal(inverted, -plain)


def test_none_keeps_every_bit():
    image = noise(4, 5, 6) * 1e-30
    np.testing.assert_array_equal(scaling_of("none", image, "x").apply(image), image)


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_volumes_are_scaled_as_images_are(name):
    volume = np.abs(noise(12, 13, 14)) + 1
    scaling = scaling_of(name, volume, "x")
    scaled = scaling.apply(volume)
    assert scaled.shape == volume.shape
    np.testing.assert_allclose(scaling.undo(scaled), volume, rtol=1e-6)


def test_meanstd_has_mean_0_and_deviation_1():
    image = noise(32, 33) * 250 + 4000
    scaled = scaling_of("meanstd", image, "x").apply(image).astype(np.float64)
    assert scaled.mean() == pytest.approx(0, abs=1e-6)
    assert scaled.std() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("shape", [(16, 16), (17, 17), (16, 20), (15, 24), (16, 17, 18)])
@pytest.mark.parametrize("radius", [None, 0.5, 3, 5.5, 8])
def test_relion_has_a_background_of_mean_0_and_deviation_1(shape, radius):
    image = noise(*shape) * 12 + 90
    image[tuple(n // 2 for n in shape)] += 1000  # a particle, which must not count
    scaling = scaling_of("relion", image, "x", radius=radius)
    outside = background(image, 3 / 8 * min(shape) if radius is None else radius)
    assert scaling.offset == pytest.approx(outside.mean(), rel=1e-12)
    assert scaling.factor == pytest.approx(outside.std(), rel=1e-12)


def test_the_default_radius_of_relion_is_three_eighths_of_the_box():
    image = noise(64, 64)
    assert scaling_of("relion", image, "x") == scaling_of("relion", image, "x", radius=24)
    assert scaling_of("relion", image, "x") != scaling_of("relion", image, "x", radius=23.9)


def test_p95_maps_the_95th_percentile_of_the_positive_pixels_to_one():
    image = np.abs(noise(20, 20))
    image[:10] = 0
    positive = np.sort(image[image > 0].astype(np.float64))
    place = 0.95 * (len(positive) - 1)
    low = int(place)
    percentile = positive[low] + (place - low) * (positive[low + 1] - positive[low])
    scaling = scaling_of("p95", image, "x")
    assert scaling == Scaling(0.0, pytest.approx(percentile, rel=1e-12))
    assert (scaling.apply(image)[:10] == 0).all()


@pytest.mark.parametrize("name", NORMALISATIONS)
@pytest.mark.parametrize("value", [0.0, 3.5, np.nan, np.inf])
def test_images_that_are_empty_constant_or_not_finite_are_refused(name, value):
    image = np.full((4, 4), value, np.float32)
    if name == "none" and np.isfinite(value):
        assert scaling_of(name, image, "x") == Scaling(0.0, 1.0)
    else:
        with pytest.raises(DataError, match=r"^image 3 of a\.mrcs .*leave this image out"):
            scaling_of(name, image, "image 3 of a.mrcs")
    with pytest.raises(DataError, match="no pixels"):
        scaling_of(name, np.zeros((0, 4), np.float32), "x")


@pytest.mark.parametrize(
    ("name", "radius", "said"),
    [
        ("max", None, "unknown normalisation 'max'; known are minmax, none, meanstd, relion, p95"),
        ("minmax", 3, "minmax takes no radius, got 3"),
        ("relion", 0, "radius is 0 pixels"),
        ("relion", -1, "radius is -1 pixels"),
        ("relion", np.nan, "radius is nan pixels"),
        ("relion", 11.4, "leaves no background in 16 x 16"),
    ],
)
def test_invalid_requests_are_refused(name, radius, said):
    with pytest.raises(ParameterError) as caught:
        scaling_of(name, noise(16, 16), "x", radius=radius)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_that_do_not_suit_a_normalisation_are_refused():
    with pytest.raises(DataError, match=r"^x has negative pixels, down to -2; p95 expects none: use meanstd"):
        scaling_of("p95", np.array([[-2, 3], [0, 1]], np.float32), "x")
    framed = np.ones((16, 16), np.float32)
    framed[6:10, 6:10] = 2
    with pytest.raises(DataError, match=r"^x has a constant background, 1; use another"):
        scaling_of("relion", framed, "x")
