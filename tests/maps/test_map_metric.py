"""`map`: maps of simulated particles, against definitions written out here, and what deceives it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from cryobench.core import Imaging, Reconstruction, Structure
from cryobench.errors import ParameterError
from cryobench.maps.metric import Map
from cryobench.physics.poses import Poses
from cryobench.sources.simulate import Simulate

COUNT, SIDE = 240, 32
RECIPE = Simulate("3mht", snr=None, size=SIDE, count=COUNT)


def measured(recipe: Simulate, images: np.ndarray | None = None, table=None, volumes=None):
    """The result for the images of a recipe, or for others with their poses, given in chunks."""
    stack = recipe.open()
    imaging = Imaging(stack.shape, (stack.pixel_size(0),) * len(stack), stack.table if table is None else table,
                      stack.through_ctf)  # fmt: skip
    volume = torch.from_numpy(stack.volume(0)[0])
    gathering = Map().gather(imaging, Structure(volume, stack.particle_radius(0)))
    pixels = stack.read_block(range(len(stack))) if images is None else images
    for chunk in torch.from_numpy(pixels)[:, None].double().split(100):
        gathering.add(chunk, Reconstruction(chunk, volumes=volumes or {}))
    return gathering.measure()


def correlation(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """FSC of masked cubes for shells 1 to n / 2, from all coefficients of the whole spectrum."""
    n = len(a)
    x, y = (np.fft.fftn(mask * (v - (mask * v).sum() / mask.sum())) for v in (a, b))
    k = np.fft.fftfreq(n, 1 / n)
    shell = np.floor(np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2) + 0.5)

    def sums(values: np.ndarray) -> np.ndarray:
        return np.array([values[shell == r].sum() for r in range(1, n // 2 + 1)])

    return sums((x * y.conj()).real) / np.sqrt(sums(np.abs(x) ** 2) * sums(np.abs(y) ** 2))


@pytest.fixture(scope="module")
def exact():
    return measured(RECIPE)


def test_images_without_noise_give_the_structure(exact):
    pixel = RECIPE.open().pixel_size(0)
    assert exact.values["map_truth"] < 2.3 * pixel
    assert exact.values["map_halves"] < 2.6 * pixel
    assert exact.values["map_fsc"] > 0.9
    assert exact.values["map_power"] == pytest.approx(1, abs=0.1)
    assert exact.values["map_false"] < 0.1
    assert exact.values["map_missing"] < 0.1
    assert not exact.unmeasured


def test_numbers_follow_from_the_maps_by_their_definitions(exact):
    maps = {name: volume.numpy() for name, volume in exact.volumes.items()}
    curve = correlation(maps["map"], maps["structure"], maps["mask"])
    np.testing.assert_allclose(exact.curves["map_truth"], curve, atol=1e-9)
    assert exact.values["map_fsc"] == pytest.approx(curve.mean())
    inside = maps["mask"] >= 0.5
    own, true = maps["map"][inside], maps["structure"][inside]
    slope, offset = np.polyfit(true, own, 1)
    level = true.mean() + 2 * true.std()
    above, found = true > level, (own - offset) / slope > level
    assert exact.values["map_false"] == pytest.approx((found & ~above).sum() / above.sum())
    assert exact.values["map_missing"] == pytest.approx((above & ~found).sum() / above.sum())


def test_particles_through_the_ctf_and_of_inverted_contrast_give_the_same_map():
    inverted = measured(dataclasses.replace(RECIPE, invert=True))
    without = measured(dataclasses.replace(RECIPE, ctf=False))
    for found in (inverted, without):
        assert found.values["map_fsc"] > 0.9
        assert found.values["map_power"] == pytest.approx(1, abs=0.1)


def test_resolution_of_halves_agrees_with_that_against_the_structure():
    """Of unbiased images, here the particles themselves, to 10% in 1/Å."""
    found = measured(dataclasses.replace(RECIPE, size=48, snr=0.05, count=400))
    assert found.values["map_halves"] == pytest.approx(found.values["map_truth"], rel=0.1)
    assert found.values["map_truth"] > 9  # limited by noise: twice the pixels are 5.3 Å


def test_noise_alone_has_no_map():
    empty = dataclasses.replace(RECIPE, snr=0.1, empty=True)
    found, particles = measured(empty), measured(dataclasses.replace(empty, empty=False))
    assert found.values["map_fsc"] < 0.25
    assert abs(found.values["map_power"]) < 0.15 * particles.values["map_power"]
    box = SIDE * RECIPE.open().pixel_size(0)
    assert found.values["map_halves"] > box / 6


def test_what_is_added_to_every_image_deceives_the_halves_and_is_seen_on_noise_alone():
    empty = dataclasses.replace(RECIPE, snr=0.1, empty=True)
    images = empty.open().read_block(range(COUNT))
    axis = np.arange(SIDE) - SIDE // 2
    ring = np.exp(-((np.hypot(axis[:, None], axis) - 6) ** 2) / 2).astype(np.float32)
    biased = measured(empty, images + 3 * images.std() * ring)
    plain = measured(empty, images)
    assert biased.values["map_halves"] < 0.5 * plain.values["map_halves"]
    assert biased.values["map_power"] > 20 * abs(plain.values["map_power"])


def test_maps_of_a_joint_solver_are_taken_as_they_are(exact):
    own = {"full": exact.volumes["structure"], "half1": exact.volumes["half1"], "half2": exact.volumes["half2"]}
    found = measured(RECIPE, volumes=own)
    assert found.values["map_fsc"] == pytest.approx(1)
    assert found.values["map_false"] == 0
    assert found.values["map_halves"] == exact.values["map_halves"]


def test_without_poses_it_says_why():
    found = measured(RECIPE, table=RECIPE.open().table.drop(columns="rlnAngleTilt"))
    assert all(np.isnan(value) for value in found.values.values())
    assert set(found.unmeasured) == set(found.values)
    assert "known poses" in found.unmeasured["map_truth"]


def test_without_a_structure_only_the_halves_are_measured():
    poses = Poses.uniform(8, 0).to_table()
    gathering = Map().gather(Imaging((16, 16), (None,) * 8, poses), Structure())
    images = torch.randn((8, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gathering.add(images, Reconstruction(images))
    found = gathering.measure()
    assert 2 <= found.values["map_halves"] <= 16  # in pixels
    assert "not known" in found.unmeasured["map_truth"]
    assert np.isnan(found.values["map_truth"])


def test_a_contour_that_is_not_finite_is_refused():
    with pytest.raises(ParameterError, match="contour must be a finite number"):
        Map(float("nan"))


def test_a_background_changes_nothing_of_what_is_compared(exact):
    recipe = dataclasses.replace(RECIPE, snr=0.5)
    images = recipe.open().read_block(range(COUNT))
    plain, raised = (measured(recipe, images + add * images.std()) for add in (0, 1))
    for name in ("map_power", "map_fsc", "map_missing"):
        assert raised.values[name] == pytest.approx(plain.values[name], abs=0.05)


def test_shifts_in_pixels_are_those_in_angstrom():
    """RELION 3.0's columns, with the pixel size of its detector and magnification."""
    table = RECIPE.open().table
    pixel = RECIPE.open().pixel_size(0)
    old = table.drop(columns=["rlnOriginXAngst", "rlnOriginYAngst"]).assign(
        rlnOriginX=table["rlnOriginXAngst"] / pixel,
        rlnOriginY=table["rlnOriginYAngst"] / pixel,
        rlnDetectorPixelSize=pixel,
        rlnMagnification=10000.0,
    )
    assert measured(RECIPE, table=old).values["map_fsc"] == pytest.approx(measured(RECIPE).values["map_fsc"], abs=1e-3)


def test_images_of_several_structures_have_no_map():
    table = RECIPE.open().table
    mixed = table.assign(rlnClassNumber=np.arange(COUNT) % 2 + 1)
    found = measured(RECIPE, table=mixed)
    assert "particles of one structure, and the images show 2" in found.unmeasured["map_halves"]
