"""Draws of `hqs` against dense linear algebra and the exact posterior of a field."""

from __future__ import annotations

import pytest
import torch

import cryobench as cb
from cryobench.core import Problem, build_operator, kept_draws, meters
from cryobench.core.scale import Scale
from cryobench.errors import ParameterError
from cryobench.operators.noise import Gaussian, NoNoise
from cryobench.posteriors.exact import exact_posterior
from cryobench.posteriors.reduced import matrix
from cryobench.priors.known import GaussianField
from cryobench.registry import installed
from cryobench.rng import Rng, generator
from cryobench.solvers.curvature import Curvature
from cryobench.solvers.hqs import Hqs

PRIOR = GaussianField(corner=0.1)
PLAIN = Scale(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
S = 0.02


def measured(text: str, sigma: float, side: int = 8, images: int = 2) -> Problem:
    operator = build_operator(installed().make("operators", text), (side, side), seed=0, dtype=torch.float64)
    x = PRIOR.distribution((side, side)).sample(generator("truth"), images)
    noise = Gaussian(sigma) if sigma else NoNoise()
    noisy = noise.apply(operator.A(x), operator, PLAIN, rng(images))
    return Problem(operator, noisy.y, noise, noisy.sigma, PLAIN)


def rng(images: int) -> Rng:
    return Rng(0, [str(i) for i in range(images)])


def white(side: int = 8, images: int = 2) -> torch.Tensor:
    return torch.randn((images, 1, side, side), generator=generator("white"), dtype=torch.float64)


def dense_draw(text: str, sigma: float, n: torch.Tensor) -> torch.Tensor:
    """P^(-1/2) n by the eigenvalues of P = A^T A / sigma^2 + (C + s^2)^-1, where y is exact on the null space of A,
    which may be that of 0 alone."""
    problem, known = measured(text, sigma), PRIOR.distribution((8, 8))
    A, one = matrix(problem.operator), torch.eye(64, dtype=torch.float64)
    C = known.covariance(one.reshape(64, 1, 8, 8)).reshape(64, 64)
    P = torch.linalg.inv(C + S**2 * one)
    least = 1e-6 * float(torch.linalg.eigvalsh(P)[-1])
    if sigma:
        P = P + A.mT @ A / sigma**2
    else:
        null = one - torch.linalg.pinv(A, rtol=1e-10) @ A
        P = null @ P @ null
    values, vectors = torch.linalg.eigh((P + P.mT) / 2)
    root = torch.where(values > least, values.clamp_min(1e-300).rsqrt(), 0.0)
    return (n.flatten(1) @ (vectors * root) @ vectors.mT).reshape(n.shape)


CASES = [
    ("sumpool:4,count=4", 0.0),
    ("sumpool:4,count=4", 0.05),
    ("blur:0.6", 0.05),
    ("identity", 0.0),
    ("blur:0.6", 0.0),
]


@pytest.mark.parametrize(("text", "sigma"), CASES)
def test_a_draw_is_the_inverse_root_of_the_precision_by_dense_linear_algebra(text, sigma):
    problem, n = measured(text, sigma), white()
    found = Curvature(problem, PRIOR.load(), torch.zeros_like(n), S).draw(n, 60)
    assert torch.allclose(found, dense_draw(text, sigma, n), atol=1e-7)


def test_exact_and_noisy_images_in_one_batch_are_those_alone():
    noisy, exact, n = measured("sumpool:4,count=4", 0.05), measured("sumpool:4,count=4", 0.0), white()
    y = torch.stack([noisy.y[0], exact.y[1]])
    both = Problem(noisy.operator, y, noisy.noise, torch.stack([noisy.sigma[0], exact.sigma[1]]), PLAIN)
    found = Curvature(both, PRIOR.load(), torch.zeros_like(n), S).draw(n, 30)
    alone = [Curvature(p, PRIOR.load(), torch.zeros_like(n), S).draw(n, 30) for p in (noisy, exact)]
    assert torch.allclose(found, torch.stack([alone[0][0], alone[1][1]]), atol=1e-10)


@pytest.mark.parametrize(
    ("text", "sigma"), [("sumpool:4,count=4", 0.05), ("sumpool:4,count=4", 0.0), ("fourier:0.5", 0.05)]
)
def test_the_deviation_is_that_of_the_exact_posterior_of_a_field(text, sigma):
    """Of K draws it has a relative error of (2 K)^(-1/2); more where it is too wide by s^2 in the covariance."""
    K, problem = 64, measured(text, sigma, 16)
    with kept_draws.keeping(), meters.counting() as tally:
        found = Hqs(prior=PRIOR, samples=K).solve(problem, rng=rng(2))
    assert tally.images[meters.NETWORK] == 2 * (14 + 1 + 40 * K)
    assert torch.equal(found.x, Hqs(prior=PRIOR).solve(problem, rng=rng(2)).x)
    exact = exact_posterior(problem, PRIOR, rng(2)).deviation
    assert exact is not None
    assert found.deviation is not None
    assert found.draws is not None
    off = (found.deviation / exact - 1)[exact > 0.01]
    assert float(off.square().mean().sqrt()) == pytest.approx((2 * K) ** -0.5, rel=0.3)
    assert float((found.deviation.square().sum() / exact.square().sum()).sqrt()) == pytest.approx(1, abs=0.03)
    deviation = (found.draws - found.x[:, None]).square().mean(dim=1).sqrt()
    assert torch.allclose(deviation, found.deviation, atol=1e-12)


@pytest.mark.parametrize("operator", ["identity", "blur:0.6"])
def test_exact_measurements_of_an_injective_operator_leave_no_deviation(operator):
    """In float32, where the part of a vector in the null space is rounding."""
    problem = measured(operator, 0.0)
    built = build_operator(installed().make("operators", operator), (8, 8), seed=0)
    single = Problem(built, problem.y.float(), problem.noise, problem.sigma.float(), PLAIN)
    with kept_draws.keeping():
        found = Hqs(prior=PRIOR, samples=3, products=5).solve(single, rng=rng(2))
    assert found.deviation is not None
    assert found.draws is not None
    assert not found.deviation.any()
    assert torch.equal(found.draws, found.x[:, None].expand_as(found.draws))


def test_draws_are_refused_for_volumes_and_for_none():
    with pytest.raises(ParameterError, match="samples must be at least 1, got 0"):
        Hqs(samples=0)
    (record,) = cb.run("hqs:samples=2,prior=planes", "bin:2", data="tissue:3,depth=16,size=16", floor=False)
    assert (record.status, record.reason) == ("skipped", "hqs has draws of images only; give samples=1 for volumes")
