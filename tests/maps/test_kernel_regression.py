"""Kernel regression of maps over latents: its density, and the choice of bandwidths by the true maps."""

from __future__ import annotations

import pytest
import torch

from cryobench.maps.band import Band
from cryobench.maps.fsc import shell_correlation
from cryobench.maps.inversion import density
from cryobench.maps.kernel_regression import Regression, scattered_density
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


def test_each_shell_has_the_map_that_correlates_best(regression):
    maps, found, consensus = regression
    true = [maps[cell // 2] for cell in range(4)]
    poor = consensus.flip(0).expand(4, -1, -1, -1)
    regressed = found.maps(consensus, true, poor)
    for cell in range(4):
        own = shell_correlation(regressed[cell].double(), true[cell])
        base = shell_correlation(consensus.double(), true[cell])
        assert own[:5].mean() > base[:5].mean() + 0.1
        assert (own > base - 1e-5).all()
    exact = torch.stack(true).float()
    torch.testing.assert_close(found.maps(consensus, true, exact)[0], exact[0], atol=1e-4, rtol=0)
