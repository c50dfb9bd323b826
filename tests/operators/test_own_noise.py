"""The noise that images already have, estimated from two halves."""

from __future__ import annotations

import pytest
import torch

from cryobench.core import MINMAX, Imaging, build_operator
from cryobench.errors import Unsupported
from cryobench.operators.identity import Identity
from cryobench.operators.noise import Own
from cryobench.operators.sumpool import SumPool
from cryobench.rng import Rng

SHAPE = (128, 128)


def halves(level: tuple[float, float], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two images [2, 1, 128, 128] of one specimen whose deviation is far above that of the noise, with an offset."""
    draw = torch.Generator().manual_seed(seed)
    specimen = 5 * torch.randn((2, 1, *SHAPE), generator=draw) + 40
    return tuple([specimen + sigma * torch.randn(specimen.shape, generator=draw) for sigma in level])


def build(recipe):
    return build_operator(recipe, Imaging(SHAPE, (), None), seed=0, dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize("level", [(1.0, 1.0), (1.0, 3.0), (3.0, 1.0)])
def test_the_deviation_is_that_of_the_first_half_and_y_is_unchanged(level):
    a, b = halves(level)
    operator = build(Identity())
    noisy = Own().apply_to_halves(operator.A(a), operator.A(b), operator, MINMAX, Rng(0, ["0", "1"]))
    assert torch.equal(noisy.y, operator.A(a))
    assert noisy.sigma.shape == (2, 1, 1, 1)
    # <n_a (s + n_a - n_b)> varies by about sqrt((25 + 1 + 9) / 16384) = 0.05
    assert torch.allclose(noisy.sigma.square(), torch.tensor(level[0] ** 2), atol=0.5)


def test_behind_an_operator_it_is_the_deviation_of_the_measurements():
    a, b = halves((2.0, 2.0))
    operator = build(SumPool(2))
    noisy = Own().apply_to_halves(operator.A(a), operator.A(b), operator, MINMAX, Rng(0, ["0", "1"]))
    exact = (operator.A(a) - operator.A(b)).std(dim=(1, 2, 3)) / 2**0.5
    assert torch.allclose(noisy.sigma.flatten(), exact, rtol=0.1)


def test_without_a_second_half_or_without_noise_the_reason_is_given():
    a, _ = halves((1.0, 1.0))
    operator = build(Identity())
    for other, reason in ((None, "the data have none"), (a, "not positive")):
        with pytest.raises(Unsupported, match=reason):
            Own().apply_to_halves(a, other, operator, MINMAX, Rng(0, ["0", "1"]))
    with pytest.raises(Unsupported, match="the data have none"):
        Own().apply(a, operator, MINMAX, Rng(0, ["0", "1"]))
