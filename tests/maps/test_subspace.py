"""The subspace model against dense algebra, its likelihood, and a planted Gaussian model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cryobench.errors import ParameterError
from cryobench.maps.band import Band, resized
from cryobench.maps.half_maps import projection_of
from cryobench.maps.masks import soft_ball
from cryobench.maps.noise import noise_power
from cryobench.maps.particle_images import ParticleImages
from cryobench.maps.particles import Particles
from cryobench.maps.subspace import Normal, Subspace, _of_shells, expected, fitted, principal, turned
from cryobench.numerics.fft import irfftn, rfftn
from cryobench.numerics.shells import shells
from cryobench.physics.ctf import CtfParameters
from cryobench.physics.poses import Poses
from cryobench.rng import generator
from cryobench.solvers.covariance import first_subspace


def smooth(count: int, side: int, width: float, radius: float, key: str) -> torch.Tensor:
    """Random maps with a falling spectrum inside a ball, of norm 1."""
    white = torch.randn((count, side, side, side), generator=generator(key), dtype=torch.float64)
    spectrum = rfftn(white, 3) * torch.exp(-((shells((side,) * 3).double() / width) ** 2))
    maps = irfftn(spectrum, (side,) * 3) * soft_ball(side, radius, 3, dtype=torch.float64)
    return maps / maps.flatten(1).norm(dim=1)[:, None, None, None]


def ctfs(count: int) -> CtfParameters:
    one = torch.ones(count, dtype=torch.float64)
    defocus = torch.linspace(8000, 20000, count, dtype=torch.float64)
    return CtfParameters(defocus, defocus, 0 * one, 300 * one, 2 * one, 0.1 * one, 0 * one, 0 * one)


def simulated(maps: torch.Tensor, z: torch.Tensor, noise: float, *, shift: bool = True) -> ParticleImages:
    """Images of maps[0] + sum_k z_k maps[k] through CTFs, with white noise."""
    side, count = maps.shape[-1], len(z)
    poses = Poses.uniform(count, 0)
    moved = torch.randn((count, 2), generator=generator("shifts"), dtype=torch.float64) * shift
    poses = Poses(poses.angles, moved)
    parts = projection_of(side, 3.0, poses, ctfs(count), dtype=torch.float64).A(maps[:, None])
    images = parts[0] + torch.einsum("nk,knij->nij", z, parts[1:])
    images = images + noise * torch.randn(images.shape, generator=generator("noise"), dtype=torch.float64)
    return ParticleImages(images.float(), Particles(side, poses, ctfs(count), 3.0))


def normal_numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator("numbers", shape), dtype=torch.float64)


@pytest.fixture
def small() -> Band:
    images = simulated(smooth(3, 8, 3, 4, "small"), normal_numbers(7, 2), 0.02)
    return Band.of(images, 8, noise=torch.full((6,), 4e-4), tolerance=1e-10)


def dense(band: Band) -> torch.Tensor:
    """T P of each image as matrices on the voxels, [N, 2 P, b^3], with the weights of the half disc."""
    b = band.side
    unit = torch.eye(b**3, dtype=torch.float64).reshape(-1, b, b, b)
    columns = band.slices(unit) * (band.transfer * band.weights.sqrt())
    return torch.view_as_real(columns.resolve_conj()).flatten(2).double().permute(1, 2, 0)


def reals(band: Band, values: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real((values * band.weights.sqrt()).resolve_conj()).flatten(1).double()


def test_slices_of_a_band_are_those_of_the_images():
    maps = smooth(2, 12, 3, 5, "band")
    images = simulated(maps, torch.ones((5, 1), dtype=torch.float64), 0.0)
    for side in (8, 12):
        band = Band.of(images, side, noise=torch.ones(12), tolerance=1e-10)
        slices = band.transfer * band.in_box(12).slices(maps.sum(0)[None])[0]
        assert (slices - band.values).abs().max() < 1e-5 * band.values.abs().max()


def test_a_map_in_another_box_has_the_same_spectrum():
    v = smooth(1, 12, 3, 5, "box")
    small, large = (torch.fft.fftn(torch.fft.ifftshift(w[0])) for w in (resized(v, 8), resized(v, 16)))
    whole = torch.fft.fftn(torch.fft.ifftshift(v[0]))
    for k in ((0, 0, 0), (1, -2, 3), (-3, 3, -1)):
        torch.testing.assert_close(small[k], whole[k])
        torch.testing.assert_close(large[k], whole[k])


def test_white_noise_has_variance_one_in_a_band():
    noise = 3 * torch.randn((200, 16, 16), generator=generator("white"))
    images = ParticleImages(noise, Particles(16, Poses.unknown(200), None, None))
    band = Band.of(images, 12, noise=noise_power(noise))
    assert abs(float(band.values.abs().square().mean()) - 1) < 0.05


def test_boxes_that_do_not_fit_are_refused():
    images = simulated(smooth(2, 12, 3, 5, "band"), torch.ones((2, 1), dtype=torch.float64), 0.1)
    for side in (7, 6, 14):
        with pytest.raises(ParameterError, match=f"a box of {side} voxels does not fit images of 12"):
            Band.of(images, side)


def test_the_posterior_of_latents_is_that_of_dense_algebra(small):
    U = smooth(2, 8, 3, 4, "other")
    A = dense(small) @ U.flatten(1).T
    r = reals(small, small.values)
    latents, likelihood = expected(small, small.values, U)
    total = 0.0
    for number, (a, y) in enumerate(zip(A, r, strict=True)):
        C = torch.eye(len(y), dtype=torch.float64) + a @ a.T
        total -= 0.5 * float(y @ torch.linalg.solve(C, y) + torch.linalg.slogdet(C)[1])
        wanted = a.T @ torch.linalg.solve(C, y)
        torch.testing.assert_close(latents.mean[number], wanted, rtol=1e-4, atol=1e-5)
        covariance = torch.eye(2, dtype=torch.float64) - a.T @ torch.linalg.solve(C, a)
        torch.testing.assert_close(latents.covariance[number], covariance, rtol=1e-4, atol=1e-5)
    assert abs(likelihood / total - 1) < 1e-5


def test_the_next_components_solve_the_dense_normal_equations(small):
    latents, _ = expected(small, small.values, smooth(2, 8, 3, 4, "other"))
    prior = torch.rand((2, 4), generator=generator("prior"), dtype=torch.float64) * 1e-2 + 1e-3
    found, _ = Normal(small, small.values, latents).solve(prior, torch.zeros((2, 8, 8, 8), dtype=torch.float64), 300)
    A, r, E = dense(small), reals(small, small.values), latents.moments
    gram = A.transpose(1, 2) @ A
    system = torch.einsum("ikl,ivw->kvlw", E, gram)
    unit = torch.eye(512, dtype=torch.float64).reshape(-1, 8, 8, 8)
    L = _of_shells(8**3 / prior, 8)
    for k in (0, 1):
        system[k, :, k] += irfftn(L[k] * rfftn(unit, 3), (8,) * 3).flatten(1).T
    right = torch.einsum("ik,ipv,ip->kv", latents.mean, A, r)
    wanted = torch.linalg.solve(system.reshape(1024, 1024), right.flatten()).reshape(2, 8, 8, 8)
    inside = shells((8,) * 3) <= 4
    wanted = irfftn(torch.where(inside, rfftn(wanted, 3), 0.0), (8,) * 3)
    assert (found - wanted).norm() < 0.01 * wanted.norm()


def test_no_step_lowers_the_likelihood_times_a_fixed_prior():
    images = simulated(smooth(3, 12, 3, 5, "monotone"), normal_numbers(60, 2), 0.05)
    band = Band.of(images, 12, noise=torch.full((12,), 0.0025))
    start = Subspace(0.1 * smooth(2, 12, 3, 5, "begin"), torch.full((2, 6), 3.0, dtype=torch.float64))
    values, components = [], start.components
    L = _of_shells(1 / start.power, 12)

    def watch(_: int, now: Subspace, likelihood: float) -> None:
        nonlocal components
        squares = torch.fft.fftn(components, dim=(1, 2, 3)).abs().square()
        values.append(likelihood - 0.5 * float((squares / start.power[0, 0]).sum()))
        components = now.components

    assert L.unique().numel() == 1
    fitted(band, band.values, start, iterations=8, steps=12, fixed_prior=True, watch=watch)
    assert (np.diff(values) > -1e-6 * abs(values[0])).all()
    assert values[-1] > values[0] + 100


@pytest.mark.slow
def test_a_planted_subspace_is_found():
    """A mean and two components, the latents of 1,000 images; principal angles below 10 degrees."""
    maps = smooth(3, 24, 2.5, 7, "planted") * torch.tensor([20.0, 6.0, 4.0]).reshape(3, 1, 1, 1)
    z = normal_numbers(1000, 2)
    images = simulated(maps, z, 0.7, shift=False)
    band = Band.of(images, 16, noise=torch.full((24,), 0.7**2))
    mean = resized(maps[:1], 16)
    residuals = band.values - band.transfer * band.in_box(24).slices(maps[:1])[0]
    subspace, _ = fitted(band, residuals, first_subspace(mean[0], 2, 0), iterations=18)
    axes, R = principal(subspace.components)
    true = torch.linalg.qr(resized(maps[1:], 16).flatten(1).T)[0]
    cosines = torch.linalg.svdvals(true.T @ axes.flatten(1).T)
    angles = torch.rad2deg(torch.arccos(cosines.clamp(max=1)))
    assert angles.max() < 10
    latents, _ = expected(band, residuals, subspace.components)
    found = turned(latents, R).mean
    for k in (0, 1):
        fit = torch.linalg.lstsq(found, z[:, k : k + 1]).solution
        assert float(torch.corrcoef(torch.stack([(found @ fit)[:, 0], z[:, k]]))[0, 1]) > 0.95
