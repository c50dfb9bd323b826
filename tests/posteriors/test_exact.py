"""Exact posteriors against dense brute force, quadrature and each other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cryobench.core import Problem, build_operator
from cryobench.core.scale import Scale
from cryobench.errors import IncompatibleError
from cryobench.operators.noise import Gaussian, NoNoise, Poisson
from cryobench.posteriors.exact import exact_posterior, log_posterior, posterior_score
from cryobench.posteriors.gaussian import IteratedPosterior, dense_field
from cryobench.posteriors.gibbs import Chains, diagnostics
from cryobench.posteriors.reduced import matrix
from cryobench.priors.known import GaussianField, GaussianMixture, SparseBlocks
from cryobench.registry import installed
from cryobench.rng import Rng, generator
from cryobench.solvers.exact import Exact

IDENTITY = Scale(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
IDS = ["0", "1"]
OPERATORS = ["sumpool:4,count=4", "fourier:0.5", "blur:0.6", "bin:2"]


def problem_of(
    prior, text: str, sigma: float, side: int = 16, images: int = 2, seed: int = 0
) -> tuple[Problem, torch.Tensor]:
    shape = (side, side)
    operator = build_operator(installed().make("operators", text), shape, seed=0, dtype=torch.float64)
    x = prior.distribution(shape).sample(generator("truth", seed), images)
    rng = Rng(seed, [str(i) for i in range(images)])
    noise = Gaussian(sigma) if sigma else NoNoise()
    noisy = noise.apply(operator.A(x), operator, IDENTITY, rng)
    return Problem(operator, noisy.y, noise, noisy.sigma, IDENTITY), x


def brute_force(problem: Problem, m: torch.Tensor, C: torch.Tensor, power: float) -> tuple[torch.Tensor, ...]:
    """Mean [B, N], covariance and log evidence [B] by the pseudo-inverse of A C A^T + P A A^+."""
    A = matrix(problem.operator)
    on_range = A @ torch.linalg.pinv(A, rtol=1e-10)
    G = A @ C @ A.mT + power * on_range
    inverse = torch.linalg.pinv((G + G.mT) / 2, rtol=1e-11, hermitian=True)
    apart = (problem.y.flatten(1) @ on_range.mT) - A @ m
    K = C @ A.mT @ inverse
    values = torch.linalg.eigvalsh((G + G.mT) / 2)
    size = values[values > 1e-9 * values.max()].log().sum()
    return m + apart @ K.mT, C - K @ A @ C, -((apart @ inverse * apart).sum(1) + size) / 2


def power_of(problem: Problem) -> float:
    from cryobench.operators.noise import noise_power

    return float(noise_power(problem).flatten()[0])


@pytest.mark.parametrize("sigma", [0.0, 0.05])
@pytest.mark.parametrize("text", OPERATORS)
def test_a_field_against_brute_force_at_16_x_16(text, sigma):
    problem, _ = problem_of(GaussianField(), text, sigma)
    known = GaussianField().distribution((16, 16))
    C = known.covariance(torch.eye(256, dtype=torch.float64).reshape(256, 1, 16, 16)).reshape(256, 256)
    mean, covariance, _ = brute_force(problem, torch.zeros(256, dtype=C.dtype), C, power_of(problem))
    found = exact_posterior(problem, GaussianField(), Rng(0, IDS))
    tolerance = 1e-8
    assert torch.allclose(found.mean.flatten(1), mean, atol=tolerance)
    assert found.deviation is not None
    assert torch.allclose(found.deviation.flatten(1).square(), covariance.diagonal().expand(2, -1), atol=1e-8)
    dense = dense_field(problem, known)
    assert torch.allclose(dense.mean.flatten(1), mean, atol=tolerance)
    if sigma or text != "blur:0.6":
        iterated = IteratedPosterior(problem, known)
        assert torch.allclose(iterated.mean.flatten(1), mean, atol=1e-7)


@pytest.mark.parametrize("text", OPERATORS)
def test_a_mixture_against_brute_force_at_16_x_16(text):
    prior = GaussianMixture(3, 4)
    problem, _ = problem_of(prior, text, 0.3)
    known = prior.distribution((16, 16))
    found = exact_posterior(problem, prior, Rng(0, IDS))
    parts = [brute_force(problem, known.means[k], known.covariance(k), power_of(problem)) for k in range(3)]
    weights = (known.weights.log() + torch.stack([part[2] for part in parts], dim=1)).softmax(dim=1)
    assert torch.allclose(found.weights, weights, atol=1e-8)
    mean = sum(weights[:, k, None] * parts[k][0] for k in range(3))
    assert torch.allclose(found.mean.flatten(1), mean, atol=1e-8)
    second = sum(weights[:, k, None] * (parts[k][1].diagonal() + parts[k][0].square()) for k in range(3))
    assert torch.allclose(found.deviation.flatten(1).square(), second - mean.square(), atol=1e-8)


@pytest.mark.parametrize("prior", [GaussianField(), GaussianMixture(3, 4)], ids=["field", "mixture"])
@pytest.mark.parametrize(("text", "sigma"), [("sumpool:4,count=4", 0.05), ("fourier:0.5", 0.0)])
def test_draws_have_the_mean_and_the_deviation_of_the_posterior(prior, text, sigma):
    problem, _ = problem_of(prior, text, sigma, side=8)
    found = exact_posterior(problem, prior, Rng(0, IDS))
    draws = torch.stack([found.draw(Rng(0, IDS), k) for k in range(1500)])
    scale = found.deviation.clamp_min(1e-7)
    assert ((draws.mean(0) - found.mean) / scale).abs().max() < 5 / 1500**0.5
    assert ((draws.std(0) - found.deviation) / scale).abs().max() < 6 / 3000**0.5
    if sigma == 0:
        assert torch.allclose(problem.operator.A(draws[0]), problem.y, atol=1e-6)


def test_an_iterated_draw_has_the_deviation_of_the_dense_posterior():
    problem, _ = problem_of(GaussianField(), "sumpool:4,count=4", 0.05, side=8)
    known = GaussianField().distribution((8, 8))
    dense, iterated = dense_field(problem, known), IteratedPosterior(problem, known)
    draws = torch.stack([iterated.draw(Rng(0, IDS), k) for k in range(60)])
    assert ((draws.std(0) - dense.deviation) / dense.deviation).abs().max() < 5 / 120**0.5


def test_the_gibbs_mean_against_quadrature_within_its_stated_error():
    """One block of 1 x 2 pixels and one measurement, their sum: p(x | y) on a grid."""
    prior = SparseBlocks(block=2, large=0.3, small=0.1, deviation=0.5)
    problem, _ = problem_of(prior, "sumpool:2,count=1", 0.1, side=2)
    found = exact_posterior(problem, prior, Rng(0, IDS), Chains(8, 2000, 200))
    # of the four coefficients, A sees one combination; enumerate the 16 patterns of large and small: each is Gaussian
    known = prior.distribution((2, 2))
    T = known.analysis(torch.eye(4, dtype=torch.float64).reshape(4, 1, 2, 2)).flatten(1).mT  # c = T x
    means, seconds, logs = [], [], []
    for pattern in range(16):
        bits = torch.tensor([pattern >> i & 1 for i in range(4)])
        D = known.deviations.square().reshape(2, 4)[bits, torch.arange(4)]
        C = T.mT @ torch.diag(D) @ T
        mean, covariance, log = brute_force(problem, torch.zeros(4, dtype=C.dtype), C, 0.01)
        share = torch.where(bits == 0, known.large, 1 - known.large).log().sum()
        means.append(mean), seconds.append(covariance.diagonal() + mean.square()), logs.append(log + share)
    weights = torch.stack(logs).softmax(dim=0)
    expected = (weights[:, :, None] * torch.stack(means)).sum(0)
    variance = (weights[:, :, None] * torch.stack(seconds)).sum(0) - expected.square()
    error = (found.mean.flatten(1) - expected).square().mean(1).sqrt()
    assert (error < 3 * found.info["mc_error"]).all()
    assert (found.info["mc_error"] < 0.02).all()
    assert (found.info["rhat"] < 1.02).all()
    assert torch.allclose(found.deviation.flatten(1), variance.sqrt(), rtol=0.06)


def test_the_stated_error_of_a_correlated_chain_is_that_of_its_mean():
    """AR(1) with coefficient 0.8: n / ess = (1 + 0.8) / (1 - 0.8) = 9."""
    draw = generator("ar")
    e = torch.randn((4, 4000, 50), generator=draw, dtype=torch.float64)
    x = torch.zeros_like(e)
    x[:, 0] = e[:, 0] / 0.6
    for i in range(1, 4000):
        x[:, i] = 0.8 * x[:, i - 1] + e[:, i]
    rhat, ess, error = diagnostics(x)
    assert 16000 / float(ess.mean()) == pytest.approx(9, rel=0.1)
    assert float((x.mean((0, 1)) / error).square().mean().sqrt()) == pytest.approx(1, abs=0.25)
    assert float(rhat.max()) < 1.02
    assert float(diagnostics(x + 2 * torch.arange(4.0).reshape(4, 1, 1))[0].min()) > 1.2


@pytest.mark.parametrize("prior", [GaussianField(), GaussianMixture(3, 4), SparseBlocks(block=4)],
                         ids=["field", "mixture", "blocks"])  # fmt: skip
@pytest.mark.parametrize("sigma", [0.0, 0.1])
def test_the_posterior_score_is_the_gradient_of_its_log_density(prior, sigma):
    problem, _ = problem_of(prior, "sumpool:4,count=4", sigma, side=8)
    x = exact_posterior(problem, prior, Rng(0, IDS), Chains(2, 10, 5)).draw(Rng(0, IDS), 0)
    step = torch.randn(x.shape, generator=generator("step"), dtype=x.dtype)
    score = posterior_score(problem, prior, x, 0.01)
    if sigma == 0:
        step = step - problem.operator.A_dagger_A(step)
    h = 1e-5
    slope = (log_posterior(problem, prior, x + h * step) - log_posterior(problem, prior, x - h * step)) / (2 * h)
    assert slope.numpy() == pytest.approx((score * step).flatten(1).sum(1).numpy(), rel=1e-5)


def test_exact_refuses_what_is_not_exact():
    problem, _ = problem_of(GaussianField(), "sumpool:4,count=4", 0.05)
    solver = Exact()
    assert solver.unsupported(problem) is None
    assert "Gaussian noise or none, got poisson" in str(solver.unsupported(replace(problem, noise=Poisson(50))))
    assert "rel depends on the truth" in str(solver.unsupported(replace(problem, noise=Gaussian(rel=0.1))))
    scaled = replace(problem, scale=Scale(torch.zeros(1).double(), 2 * torch.ones(1).double(), None, "meanstd"))
    assert "--scaling none; meanstd" in str(solver.unsupported(scaled))
    large, _ = problem_of(GaussianField(), "sumpool:4,count=4", 0.05, side=40, images=1)
    assert "at most 1024 pixels, got 1600" in str(Exact(prior=SparseBlocks()).unsupported(large))
    with pytest.raises(IncompatibleError, match="multiples of 8"):
        Exact(prior=SparseBlocks()).unsupported(problem_of(GaussianField(), "bin:2", 0.05, side=12)[0])


def test_the_error_of_the_mean_is_the_deviation():
    """Over draws of truth and noise, E ||x - mean||^2 is the trace of the posterior covariance."""
    for prior in (GaussianField(), GaussianMixture(2, 3)):
        problem, x = problem_of(prior, "sumpool:4,count=2", 0.1, side=8, images=300)
        found = exact_posterior(problem, prior, Rng(0, [str(i) for i in range(300)]))
        ratio = (found.mean - x).square().sum() / found.deviation.square().sum()
        assert float(ratio) == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize(
    ("text", "sigma"),
    [("sumpool:4,count=4", 0.0), ("sumpool:4,count=4", 0.1), ("sumpool:16,count=64", 0.0), ("bin:2", 0.0)],
)
def test_hqs_is_within_a_tenth_of_a_decibel_of_the_exact_mean_of_a_field(text, sigma):
    problem, _ = problem_of(GaussianField(), text, sigma, images=32)
    exact = exact_posterior(problem, GaussianField(), Rng(0, []))
    solver = installed().make("solvers", "hqs:prior=gaussian_field")
    x = solver.solve(problem, rng=Rng(0, [str(i) for i in range(32)])).x
    assert exact.deviation is not None
    gap = 10 * (1 + (x - exact.mean).square().sum() / exact.deviation.square().sum()).log10()
    assert float(gap) < 0.1
