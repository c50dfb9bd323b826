"""The packaged demo images: what they are, and that the committed script makes them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from cryobench.errors import SelectionError
from cryobench.sources import demo
from cryobench.sources.demo import Demo

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stack():
    return Demo().open()


@pytest.fixture(scope="module")
def make_demo():
    spec = importlib.util.spec_from_file_location("make_demo", ROOT / "tools" / "make_demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_image_is_finite_float32_and_spans_its_range(stack):
    assert (len(stack), stack.shape, stack.label) == (24, (128, 128), "demo")
    for index in range(len(stack)):
        image = stack.read(index)
        assert image.shape == stack.shape
        assert image.dtype == np.float32
        assert (image.min(), image.max()) == (0, 255)
        assert stack.pixel_size(index) == 3.0


def test_images_differ_and_reading_gives_a_copy(stack):
    assert len({stack.read(index).tobytes() for index in range(len(stack))}) == len(stack)
    stack.read(0)[:] = 0
    assert stack.read(0).max() == 255


def test_particles_are_dark_on_a_light_background(stack):
    y, x = np.mgrid[:128, :128] - 64
    inside, outside = np.hypot(x, y) < 25, np.hypot(x, y) > 50
    for index in range(len(stack)):
        image = stack.read(index)
        assert image[inside].mean() < image[outside].mean()


def test_ctf_has_a_row_per_image(stack):
    assert len(stack.table) == len(stack)
    assert stack.table["rlnDefocusU"].between(7_000, 26_000).all()
    assert (stack.table["rlnVoltage"] == 300).all()


def test_an_image_beyond_the_end_is_refused(stack):
    with pytest.raises(SelectionError, match="image 24 of demo does not exist"):
        stack.read(24)


def test_it_is_small_enough_to_package():
    assert demo._ARRAYS.stat().st_size < 450_000


def test_the_script_makes_the_packaged_images(make_demo, stack):
    made = make_demo.make()["images"].astype(int)
    packaged = np.stack([stack.read(index) for index in range(len(stack))]).astype(int)
    assert np.abs(made - packaged).max() <= 1  # a sum in another order may round the other way


def test_a_blob_projects_to_its_gaussian(make_demo):
    # The line integral through one blob at (2, -1) pixels from the middle.
    image = make_demo.project(np.array([[2.0, -1.0, 7.0]]) * make_demo.PIXEL_SIZE, 16)
    assert np.unravel_index(image.argmax(), image.shape) == (7, 10)
    fall = np.exp(-(make_demo.PIXEL_SIZE**2) / (2 * make_demo.BLOB_SIGMA**2))
    np.testing.assert_allclose([image[7, 10], image[7, 11], image[6, 10]], [1, fall, fall])


def test_rotations_are_rotations_and_uniform(make_demo):
    rng = np.random.default_rng(0)
    turns = np.stack([make_demo.rotation(rng) for _ in range(4000)])
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), np.broadcast_to(np.eye(3), turns.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(turns), 1)
    np.testing.assert_allclose(turns.mean(axis=0), 0, atol=0.04)
    np.testing.assert_allclose((turns**2).mean(axis=0), 1 / 3, atol=0.02)


def test_the_ctf_is_amplitude_contrast_at_zero_and_darkens_protein(make_demo):
    half = make_demo.ctf(256, 15_000.0, 15_000.0, 0.0)
    assert half[0, 0] == pytest.approx(-0.1)
    assert (half[0, :5] < 0).all()
    # First zero, neglecting Cs and amplitude contrast, at k = 1 / sqrt(lambda dz), 300 kV electrons being 0.0197 Å.
    first_zero = np.argmax(half[0] > 0) / (256 * make_demo.PIXEL_SIZE)
    assert first_zero == pytest.approx(1 / np.sqrt(0.0197 * 15_000), rel=0.05)
