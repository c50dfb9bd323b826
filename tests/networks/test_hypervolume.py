"""The hypervolume and its Hartley slices, against sums over voxels and exact projections."""

import math

import torch

from cryobench.maps.half_maps import projection_of
from cryobench.networks.hypervolume import (
    SHAPES,
    Hypervolume,
    HypervolumeShape,
    Slices,
    hartley_inverse,
    squared_errors,
)
from cryobench.physics.poses import Poses
from cryobench.rng import generator

D = 12


class Exact(torch.nn.Module):
    """H of a map, by its sum over voxels, in place of a network."""

    def __init__(self, volume):
        super().__init__()
        axis = torch.arange(D).double() - D // 2
        z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
        self.r, self.v = torch.stack([x, y, z], dim=-1).reshape(-1, 3), volume.double().flatten()

    def forward(self, k, z):
        phase = 2 * torch.pi * k.double() @ self.r.T
        return (phase.cos() + phase.sin()) @ self.v


def test_the_inverse_of_the_hartley_transform():
    volume = torch.randn((D, D, D), generator=generator("hartley"), dtype=torch.float64)
    axis = torch.fft.fftfreq(D, dtype=torch.float64)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    hartley = Exact(volume)(torch.stack([x, y, z], dim=-1), None)
    assert torch.allclose(hartley_inverse(hartley), volume, atol=1e-10)


def test_slices_are_those_of_exact_projections():
    volume = torch.randn((D, D, D), generator=generator("slices"))
    poses = Poses.uniform(5, seed=1)
    shift = torch.randn((5, 2), generator=generator("shifts"), dtype=torch.float64)
    images = projection_of(D, 1.0, Poses(poses.angles, shift), None).A(volume[None, None])[0]
    slices = Slices.of(images, None, torch.full((D,), 0.25))
    exact = Exact(volume)
    for sign in (1.0, -1.0):
        wrong = squared_errors(exact, slices, poses.matrices.float(), 0 * shift.float(), torch.zeros(5, 1), sign)  # pyright: ignore[reportArgumentType]
        errors = squared_errors(exact, slices, poses.matrices.float(), shift.float(), torch.zeros(5, 1), sign)  # pyright: ignore[reportArgumentType]
        assert errors.max() < 1e-8 * wrong.min()


def test_white_noise_gives_one():
    noise = 0.5 * torch.randn((400, D, D), generator=generator("noise"))
    slices = Slices.of(noise, None, torch.full((D,), 0.25))
    zero = Hypervolume(D, 1, envelope=torch.zeros(1))
    errors = squared_errors(zero, slices, torch.eye(3).expand(400, 3, 3), torch.zeros(400, 2), torch.zeros(400, 1))
    assert abs(float(errors.detach().mean()) - 1) < 0.03


def test_gradients_reach_poses_and_latents():
    decoder = Hypervolume(D, 2)
    slices = Slices.of(torch.randn((3, D, D), generator=generator("grad")), None, torch.ones(D))
    inputs = [torch.eye(3).repeat(3, 1, 1), torch.zeros(3, 2), torch.zeros(3, 2)]
    rotations, shift, z = (value.requires_grad_() for value in inputs)
    squared_errors(decoder, slices, rotations, shift, z).sum().backward()
    assert all(value.grad is not None and value.grad.abs().max() > 0 for value in (rotations, shift, z))


def test_the_map_of_a_latent_is_the_transform_of_the_network():
    shape = HypervolumeShape(16, 1, 4)
    decoder = Hypervolume(D, 2, shape, envelope=torch.linspace(1, 0.1, 7), seed=3)
    latent = torch.tensor([0.3, -0.7])
    volume = decoder.volume(latent)
    k = torch.tensor([[1.0, -2, 3], [0, 0, 1], [-4, 2, 1]]) / D
    with torch.no_grad():
        assert torch.allclose(Exact(volume)(k, None).float(), decoder(k, latent[None]), rtol=1e-3, atol=1e-4)
    again = Hypervolume(D, 2, shape, envelope=torch.linspace(1, 0.1, 7), seed=3)
    assert torch.equal(again.volume(latent), volume)


def test_the_features_are_as_published():
    decoder = Hypervolume(64, 8, SHAPES["published"])
    assert decoder.places.shape == (96, 3)
    assert math.isclose(float(decoder.places.std()), 16, rel_tol=0.1)
    assert len(decoder.hidden) == 8
    assert decoder.hidden[0].weight.shape == (512, 512)
