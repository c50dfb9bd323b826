"""A diffusion prior of images on the planes of volumes, and `hqs` with it."""

from __future__ import annotations

import math

import pytest
import torch
from networks import pipeline, unet

from cryobench.core import Problem, build_operator
from cryobench.errors import IncompatibleError
from cryobench.operators.noise import NoNoise
from cryobench.operators.subsampling import Slices
from cryobench.priors.diffusion import Diffusion
from cryobench.priors.planes import Planes
from cryobench.rng import Rng
from cryobench.solvers.hqs import Hqs
from cryobench.testing.slices import CentralSlices

SHAPE = (8, 16, 24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(pipeline(tmp_path_factory.mktemp("prior"), unet(sample_size=16)))


def volumes(n):
    return torch.rand((n, 1, *SHAPE), generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_every_plane_is_an_image_of_its_own(folder):
    flat, deep = Diffusion(folder, noise=0.0).load(), Planes(folder, noise=0.0).load()
    x, sigma = volumes(2), torch.tensor([0.2, 0.7])
    with torch.no_grad():
        got = deep.denoise(x, sigma.reshape(2, 1, 1, 1, 1))
        for i in range(2):
            for z in range(SHAPE[0]):
                torch.testing.assert_close(got[i, :, z], flat.denoise(x[i : i + 1, :, z], sigma[i].item())[0])


def test_hqs_takes_the_planes_across_z_y_and_x_in_turn(folder):
    truth, steps = volumes(1), 4
    A = build_operator(Slices(4), SHAPE, seed=0)
    problem = Problem(A, A.A(truth), NoNoise(), torch.zeros(1, 1, 1, 1, 1))
    solver = Hqs(prior=Planes(folder, noise=0.0), steps=steps, turns=False)
    assert solver.dims == (3,)
    assert Hqs(prior=Diffusion(folder)).dims == (2,)
    got = solver.solve(problem, rng=Rng(0, ["a"])).x
    flat = Diffusion(folder, noise=0.0).load()
    x = truth[:, :, ::4].mean() + torch.zeros_like(truth)
    x[:, :, ::4] = truth[:, :, ::4]
    levels = solver.levels(flat.prediction)
    with torch.no_grad():
        for k in range(steps):
            planes = x[0, 0].movedim(k % 3, 0)
            found = torch.stack([flat.denoise(plane[None, None], levels[k])[0, 0] for plane in planes])
            x = found.movedim(0, k % 3)[None, None].clone()
            x[:, :, ::4] = truth[:, :, ::4]
    torch.testing.assert_close(got, x, rtol=1e-4, atol=1e-4)
    assert not math.isclose(got.std().item(), 0)


def test_planes_that_the_network_cannot_halve_are_refused(folder):
    with pytest.raises(IncompatibleError, match="takes images whose sides are multiples of"):
        Planes(folder).check((7, 16, 16))
    Planes(folder).check(SHAPE)


def test_measurements_of_another_number_of_axes_are_refused(folder):
    shape = (16, 16, 16)
    A = build_operator(CentralSlices(), shape, seed=0)
    problem = Problem(A, A.A(torch.zeros(1, 1, *shape)), NoNoise(), torch.zeros(1, 1, 1, 1))
    reason = Hqs(prior=Planes(folder)).unsupported(problem)
    assert reason == "hqs needs measurements with as many axes as the image"
