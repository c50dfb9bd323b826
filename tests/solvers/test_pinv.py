"""The floor: least norm about the implied mean, and the figures it reaches on the real particle."""

from __future__ import annotations

import math

import pytest
import torch

from cryobench.core import Problem, build_operator, mean_intensity
from cryobench.io.scaling import minmax
from cryobench.operators.fourier import Fourier
from cryobench.operators.masks import RandomGaussian
from cryobench.operators.noise import NoNoise
from cryobench.operators.sumpool import SumPool
from cryobench.rng import Rng
from cryobench.solvers.pinv import Pinv
from cryobench.sources.demo import Demo

CPU = torch.device("cpu")


def problem(recipe, x: torch.Tensor) -> Problem:
    operator = build_operator(recipe, tuple(x.shape[2:]), seed=0, dtype=x.dtype, device=CPU)
    return Problem(operator, operator.A(x), NoNoise(), x.new_zeros((len(x), 1, 1, 1)))


def floor(recipe, x: torch.Tensor) -> torch.Tensor:
    return Pinv().solve(problem(recipe, x), rng=Rng(0, [str(i) for i in range(len(x))])).x


def psnr(x: torch.Tensor, truth: torch.Tensor) -> float:
    return -10 * math.log10(((x.double() - truth.double()) / 2).square().mean().item())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "dtype", "low", "high"),
    [
        (SumPool(32, 1024), torch.float32, 85, math.inf),
        (SumPool(32, 1024), torch.float64, 200, math.inf),
        (SumPool(2, 4), torch.float32, 25.5, 27.0),
        (SumPool(2, 2), torch.float32, 21.5, 22.5),
        (SumPool(2, 1), torch.float32, 19.8, 20.8),
    ],
    ids=repr,
)
def test_the_floor_on_the_real_particle(particle, recipe, dtype, low, high):
    x = particle.to(dtype)
    assert low < psnr(floor(recipe, x), x) < high


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 85), (torch.float64, 200)])
def test_the_floor_is_exact_with_full_column_rank(dtype, least):
    """As many masks as pixels in a block, on a packaged image: what the real particle shows, on any machine."""
    image = Demo().open().read(0)
    x = torch.from_numpy(minmax(image, "demo").apply(image))[None, None].to(dtype)
    assert psnr(floor(SumPool(16, 256), x), x) > least


@pytest.mark.parametrize("recipe", [SumPool(4, 3), SumPool(4, 3, RandomGaussian()), Fourier(0.4)], ids=repr)
def test_it_agrees_with_y_and_is_nearest_to_the_implied_constant(recipe):
    x = torch.rand((2, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    given = problem(recipe, x)
    answer = floor(recipe, x)
    torch.testing.assert_close(given.operator.A(answer), given.y)
    # no null-space part in x - c: what was not measured is not invented
    away = answer - mean_intensity(given.operator, given.y)
    torch.testing.assert_close(given.operator.A_dagger(given.operator.A(away)), away)


def test_the_implied_mean_of_constant_images_is_exact_and_zero_where_there_is_none():
    constant = torch.tensor([0.3, -0.7], dtype=torch.float64).reshape(2, 1, 1, 1).expand(2, 1, 16, 16)
    for recipe in (SumPool(4, 3), SumPool(8, 2, RandomGaussian())):
        given = problem(recipe, constant)
        torch.testing.assert_close(mean_intensity(given.operator, given.y).flatten(), constant[:, 0, 0, 0])
    # a Fourier mask without the zero frequency does not see constants
    from cryobench.operators.fourier import FourierOperator

    mask = torch.ones(16, 16)
    mask[8, 8] = 0
    operator = FourierOperator(mask, nominal_compression=1.0, dtype=torch.float64, device=CPU)
    operator.A_dagger(operator.A(constant))
    wave = torch.randn((1, 1, 16, 16), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert mean_intensity(operator, operator.A(wave)).abs().item() < 1e-6
