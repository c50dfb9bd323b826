"""Noise has the stated level, is keyed by image, and is confined to measured coefficients."""

from __future__ import annotations

import pytest
import torch

from cryobench.core import MINMAX, build_operator
from cryobench.errors import ParameterError
from cryobench.operators.fourier import Fourier
from cryobench.operators.identity import Identity
from cryobench.operators.masks import RandomGaussian
from cryobench.operators.noise import Gaussian, NoNoise, Poisson
from cryobench.operators.sumpool import SumPool
from cryobench.rng import Rng

CPU = torch.device("cpu")
IDS = ["0", "1", "2"]


def measured(recipe, shape=(64, 64)):
    operator = build_operator(recipe, shape, seed=0, dtype=torch.float64, device=CPU)
    x = torch.rand((3, 1, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    return operator, operator.A(x), x


def test_no_noise_is_exact():
    operator, y, _ = measured(SumPool(4))
    noisy = NoNoise().apply(y, operator, MINMAX, Rng(0, IDS))
    assert torch.equal(noisy.y, y)
    assert not noisy.sigma.any()


def test_gaussian_noise_has_the_stated_deviation():
    operator, y, _ = measured(SumPool(4))
    noisy = Gaussian(sigma=0.3).apply(y, operator, MINMAX, Rng(0, IDS))
    assert torch.equal(noisy.sigma, torch.full((3, 1, 1, 1), 0.3, dtype=torch.float64))
    assert (noisy.y - y).std() == pytest.approx(0.3, rel=0.05)


def test_relative_noise_ignores_the_offset_of_the_image():
    operator, y, x = measured(SumPool(4))
    shifted = operator.A(x + 5)
    sigma = Gaussian(rel=0.05).apply(y, operator, MINMAX, Rng(0, IDS)).sigma
    torch.testing.assert_close(Gaussian(rel=0.05).apply(shifted, operator, MINMAX, Rng(0, IDS)).sigma, sigma)
    # white images: the RMS of the structure is that of A times the image about its mean, here within sampling error
    structure = operator.A(x - x.mean(dim=(2, 3), keepdim=True)).square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    torch.testing.assert_close(sigma, 0.05 * structure, rtol=0.02, atol=0)


def test_noise_does_not_depend_on_the_batch():
    operator, y, _ = measured(SumPool(4))
    for noise in (Gaussian(0.1), Gaussian(rel=0.1), Poisson(20.0)):
        whole = noise.apply(y, operator, MINMAX, Rng(0, IDS)).y
        assert torch.equal(noise.apply(y[2:], operator, MINMAX, Rng(0, IDS[2:])).y, whole[2:])
        assert not torch.equal(noise.apply(y, operator, MINMAX, Rng(1, IDS)).y, whole)


def test_fourier_noise_is_confined_to_measured_coefficients():
    operator, y, _ = measured(Fourier(0.3))
    noisy = Gaussian(0.1).apply(y, operator, MINMAX, Rng(0, IDS))
    noise = noisy.y - y
    assert noise.std() == pytest.approx(noisy.sigma[0].item(), rel=0.03)
    torch.testing.assert_close(operator.A(operator.A_dagger(noise)), noise)
    spectrum = torch.fft.fft2(noise)
    assert spectrum[:, operator.eigenvalues[0] == 0].abs().max() < 1e-12
    # white of deviation 0.1 on the measured part: energy in proportion to the rank
    assert noise.square().mean() == pytest.approx(0.01 * operator.rank / 64**2, rel=0.05)


def test_poisson_noise_has_the_mean_and_variance_of_counts():
    operator, y, x = measured(SumPool(4, 8))
    dose = 50.0
    draws = torch.cat(
        [Poisson(dose).apply(y, operator, MINMAX, Rng(seed, IDS)).y[:, None] for seed in range(200)], dim=1
    )
    rate = dose * operator.A((x + 1) / 2)
    torch.testing.assert_close(draws.mean(1), y, rtol=0, atol=6 * float((4 * rate / dose**2 / 200).max()) ** 0.5)
    wanted = (4 * rate / dose**2).mean()
    assert draws.var(1).mean() == pytest.approx(wanted.item(), rel=0.02)
    sigma = Poisson(dose).apply(y, operator, MINMAX, Rng(0, IDS)).sigma
    assert sigma.square().mean() == pytest.approx(wanted.item(), rel=0.05)


def test_poisson_noise_needs_nonnegative_weights():
    assert Poisson(10.0).unsupported(measured(SumPool(4))[0], MINMAX) is None
    assert Poisson(10.0).unsupported(measured(Identity())[0], MINMAX) is None
    for recipe in (SumPool(4, mask=RandomGaussian()), Fourier(0.5)):
        assert "non-negative" in Poisson(10.0).unsupported(measured(recipe)[0], MINMAX)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Gaussian(-1.0),
        lambda: Gaussian(rel=-0.1),
        lambda: Gaussian(float("nan")),
        lambda: Gaussian(),
        lambda: Gaussian(1.0, 1.0),
        lambda: Poisson(0.0),
        lambda: Poisson(-3.0),
    ],
)
def test_invalid_levels_are_refused(make):
    with pytest.raises(ParameterError):
        make()
