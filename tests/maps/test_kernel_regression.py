"""Kernel regression of maps over latents: its density, its choices and its model."""

from __future__ import annotations

import pytest
import torch

from cryobench.errors import DataError
from cryobench.maps.band import Band
from cryobench.maps.fsc import shell_correlation
from cryobench.maps.inversion import density
from cryobench.maps.kernel_regression import (
    PlaceVolumes,
    Regression,
    cells_of,
    choose_by_halves,
    choose_by_truth,
    scattered_density,
)
from cryobench.maps.masks import soft_ball
from cryobench.maps.particle_images import ParticleImages
from cryobench.maps.particles import Particles
from cryobench.numerics.fft import irfftn, rfftn
from cryobench.numerics.shells import shells
from cryobench.operators.project import ProjectionOperator
from cryobench.physics.poses import Poses
from cryobench.rng import generator

SIDE = 16


def smooth(count: int, key: str) -> torch.Tensor:
    """Random maps inside a ball, of norm 1."""
    white = torch.randn((count, SIDE, SIDE, SIDE), generator=generator(key), dtype=torch.float64)
    spectrum = rfftn(white, 3) * torch.exp(-((shells((SIDE,) * 3).double() / 5) ** 2))
    maps = irfftn(spectrum, (SIDE,) * 3) * soft_ball(SIDE, 5, 3, dtype=torch.float64)
    return maps / maps.flatten(1).norm(dim=1)[:, None, None, None]


def simulated(maps: torch.Tensor, classes: torch.Tensor, noise: float) -> ParticleImages:
    count = len(classes)
    poses = Poses.uniform(count, 0)
    zero = torch.zeros((count, 2), dtype=torch.float64)
    operator = ProjectionOperator(SIDE, poses.matrices, zero, dtype=torch.float64, device="cpu")
    images = operator.A(maps[:, None])[classes, torch.arange(count)]
    images = images + noise * torch.randn(images.shape, generator=generator("noise"), dtype=torch.float64)
    return ParticleImages(images.float(), Particles(SIDE, Poses(poses.angles, zero), None, 2.0))


def test_the_scattered_density_is_near_that_of_the_kernel():
    images = simulated(smooth(1, "one"), torch.zeros(150, dtype=torch.long), 0.1)
    band = Band.of(images, SIDE, noise=torch.ones(SIDE))
    exact, found = density(band.kernels(torch.ones(1, 150))[0]), scattered_density(band).double()
    assert (found - exact).norm() < 0.15 * exact.norm()
    assert float(found.sum() / exact.sum()) == pytest.approx(1, abs=0.02)


@pytest.fixture(scope="module")
def regression() -> tuple[torch.Tensor, Regression, torch.Tensor]:
    """Two unlike maps, 400 images in 2 places each: the maps, the regression, and the map of all."""
    maps = smooth(2, "two")
    places = torch.tensor([0.0, 0.1, 3.0, 3.1], dtype=torch.float64)[:, None]
    cells = torch.arange(400) % 4
    images = simulated(maps, cells // 2, 0.05)
    found = Regression(images.images, images.particles, cells, torch.arange(400) // 4 % 2, torch.cdist(places, places))
    return maps, found, found._full(len(found.weights) - 1)[0]


@pytest.mark.parametrize("choice", ["halves", "truth"])
def test_unlike_maps_are_told_apart(regression, choice):
    maps, found, consensus = regression
    choose = choose_by_halves if choice == "halves" else choose_by_truth(lambda cell: maps[cell // 2])
    regressed = found.maps(consensus, choose)
    for cell in range(4):
        own = shell_correlation(regressed[cell].double(), maps[cell // 2])
        base = shell_correlation(consensus.double(), maps[cell // 2])
        assert own[:5].mean() > base[:5].mean() + 0.1
        if choice == "truth":
            assert (own > base - 0.02).all()


def test_particles_of_one_map_have_the_consensus():
    """Latents without meaning: cross-validation takes all particles in the shells with signal."""
    maps = smooth(1, "alone")
    cells = torch.arange(400) % 4
    images = simulated(maps, torch.zeros(400, dtype=torch.long), 0.3)
    places = torch.arange(4, dtype=torch.float64)[:, None]
    found = Regression(images.images, images.particles, cells, torch.arange(400) // 4 % 2, torch.cdist(places, places))
    consensus = found._full(len(found.weights) - 1)[0]
    regressed = found.maps(consensus, choose_by_halves)
    for volume in regressed:
        own, base = (shell_correlation(each.double(), maps[0]).mean() for each in (volume, consensus))
        assert own > base - 0.02


def test_the_map_of_a_place_is_its_own_and_a_model_is_that_of_its_arrays():
    latents = torch.randn((200, 2), generator=generator("latents"), dtype=torch.float64)
    cells = cells_of(latents, torch.diag(torch.tensor([1.0, 0.25])))
    assert len(cells.places) == 3
    first = latents[cells.of == 0].mean(dim=0)
    torch.testing.assert_close(cells.places[0], first)
    model = PlaceVolumes(torch.rand(3, 4, 4, 4), cells.places, cells.metric)
    torch.testing.assert_close(model.volumes(cells.places), model.maps, atol=1e-4, rtol=0)
    again = PlaceVolumes.of(model.arrays())
    torch.testing.assert_close(again.volumes(latents[:5]), model.volumes(latents[:5]))
    torch.testing.assert_close(model.weights(latents).sum(1), torch.ones(200))
    with pytest.raises(DataError, match="expected maps, places and metric"):
        PlaceVolumes.of({"maps": model.maps})
