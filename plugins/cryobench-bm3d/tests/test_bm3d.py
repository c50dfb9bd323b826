"""`bm3d` gives what the package bm3d gives."""

import bm3d
import numpy as np
import pytest
import torch
from cryobench_bm3d import Bm3d

import cryobench as cb
from cryobench.core import Problem
from cryobench.errors import IncompatibleError
from cryobench.operators.noise import NoNoise
from cryobench.testing import solver_contract

test_contract = solver_contract("bm3d:lc")


def images(count: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth images [count, 1, side, side] in [-1, 1], and the same with noise of standard deviation 0.2."""
    place = torch.arange(side) / side
    waves = [torch.sin(2 * torch.pi * (k + 1) * (place[:, None] + place * (k + 2))) for k in range(count)]
    clean = torch.stack(waves)[:, None]
    return clean, clean + 0.2 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("profile", ["np", "lc", "vn", "high"])
def test_it_is_what_the_package_gives(profile):
    _, noisy = images(1, 40)
    x = cb.solve(f"bm3d:{profile}", "identity", noisy, shape=(40, 40), sigma=0.2)
    given = profile if profile != "lc" else bm3d.BM3DProfileLC()  # which has no name in bm3d.bm3d
    expected = bm3d.bm3d(noisy[0, 0].numpy().astype(np.float64), 0.2, given)
    # the package takes all threads where it is not told otherwise
    np.testing.assert_allclose(x[0, 0], expected, atol=1e-5)


def test_it_removes_noise_of_the_stated_deviation():
    clean, noisy = images(2, 64)
    x = cb.solve("bm3d", "identity", noisy, shape=(64, 64), sigma=0.2)
    left = (x - clean).square().mean((1, 2, 3)).sqrt()
    assert (left < 0.08).all()
    small = cb.solve("bm3d", "identity", noisy, shape=(64, 64), sigma=0.02)
    assert ((small - clean).square().mean((1, 2, 3)).sqrt() > 0.15).all()


def test_exact_images_are_returned():
    _, noisy = images(1, 32)
    assert torch.equal(cb.solve("bm3d", "identity", noisy, shape=(32, 32)), noisy)


def test_windows_of_a_large_image():
    _, noisy = images(1, 96)
    x, whole = (
        cb.solve(spec, "identity", noisy, shape=(96, 96), sigma=0.2)
        for spec in ("tiled:bm3d,tile=64,overlap=32", "bm3d")
    )
    assert (x - whole).square().mean().sqrt() < 0.02


def test_other_operators_and_small_images_are_refused_in_one_line():
    operator = cb.operator("sumpool:4", shape=(32, 32))
    of_pooling = Problem(operator, operator.A(torch.zeros(1, 1, 32, 32)), NoNoise(), torch.zeros(1, 1, 1, 1))
    assert Bm3d().unsupported(of_pooling) == "bm3d removes noise from images; it needs the operator identity"
    with pytest.raises(IncompatibleError, match="needs images of at least 16 x 16 pixels, got 8 x 40"):
        cb.solve("bm3d", "identity", torch.zeros(1, 1, 8, 40), shape=(8, 40), sigma=0.1)
