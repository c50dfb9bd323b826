"""Metrics against an exact posterior: an exact sampler passes, one with its deviation off by 20% does not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom

import cryobench as cb
from cryobench.core import Case, Problem, Reconstruction, build_operator
from cryobench.core.kept_draws import keeping
from cryobench.core.scale import MINMAX, Scale
from cryobench.metrics.ranks import covered, rank
from cryobench.metrics.uncertainty import Coverage, EnergyCoverage
from cryobench.numerics.binomial import binomial_interval
from cryobench.operators.noise import Gaussian, NoNoise
from cryobench.posteriors.density import DensityCoverage
from cryobench.posteriors.distance import EnergyDistance, energy_distance
from cryobench.posteriors.exact import exact_posterior
from cryobench.posteriors.gap import OptimalityGap
from cryobench.posteriors.known_case import posterior_of
from cryobench.posteriors.stein import Stein, discrepancy, others_variance
from cryobench.priors.known import GaussianField, GaussianMixture
from cryobench.registry import installed
from cryobench.rng import Rng, generator
from cryobench.runner.solving import solve
from cryobench.solvers.exact import Exact

IDENTITY = Scale(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
REPEATS, IMAGES, DRAWS = 20, 40, 9


def case_of(prior, images: int, sigma: float = 0.1, seed: int = 0, text: str = "sumpool:4,count=4") -> Case:
    shape = (16, 16)
    operator = build_operator(installed().make("operators", text), shape, seed=0, dtype=torch.float64)
    x = prior.distribution(shape).sample(generator("truth", seed), images)
    ids = [f"{seed} {i}" for i in range(images)]
    noise = Gaussian(sigma) if sigma else NoNoise()
    noisy = noise.apply(operator.A(x), operator, IDENTITY, Rng(seed, ids))
    return Case(Problem(operator, noisy.y, noise, noisy.sigma, IDENTITY), x, ids, [None] * images)


def answer_of(case: Case, prior, factor: float = 1.0, draws: int = DRAWS) -> Reconstruction:
    """Draws whose deviation from the exact mean is `factor` times that of exact ones."""
    rng = Rng(7, case.image_ids)
    posterior = exact_posterior(case.problem, prior, rng)
    drawn = torch.stack([posterior.draw(rng, k) for k in range(draws)], dim=1)
    drawn = posterior.mean[:, None] + factor * (drawn - posterior.mean[:, None])
    return Reconstruction(posterior.mean, deviation=factor * posterior.deviation, draws=drawn)


@pytest.fixture(scope="module")
def repeats() -> list[dict[tuple[str, float], float]]:
    """The mean coverage of each column over the images of each repeat, by column and factor of the deviation."""
    found = []
    for seed in range(REPEATS):
        case, values = case_of(GaussianField(), IMAGES, seed=seed), {}
        for factor in (1.0, 0.8, 1.2):
            answer = answer_of(case, GaussianField(), factor)
            for metric in (EnergyCoverage(), DensityCoverage(), Coverage()):
                measured = metric.measure(case, answer).values
                values |= {(name, factor): float(each.mean()) for name, each in measured.items()}
        found.append(values)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coverage_energy", "hpd_coverage"])
def test_an_exact_sampler_passes_coverage_in_20_repeats_and_one_off_by_20_percent_fails(repeats, name):
    """A repeat passes if the 95% binomial interval contains 0.9: with probability 95% or more for an exact sampler."""

    def passes(factor: float) -> int:
        ends = [binomial_interval(values[name, factor] * IMAGES, IMAGES) for values in repeats]
        return sum(low <= 0.9 <= high for low, high in ends)

    assert passes(1.0) >= binom.ppf(0.001, REPEATS, 0.95)
    assert passes(0.8) == 0
    assert passes(1.2) <= 5  # all truths are covered: 60 of 60, whose interval begins at 0.91
    pooled = binomial_interval(sum(v[name, 1.0] for v in repeats) * IMAGES, REPEATS * IMAGES, 0.999)
    assert pooled[0] <= 0.9 <= pooled[1]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "nominal"), [("coverage", 0.9), ("coverage_95", 0.95)])
def test_the_same_for_intervals_of_pixels(repeats, name, nominal):
    """Pixels of an image are not independent, so that the deviation between repeats gives the interval of each."""
    exact = torch.tensor([values[name, 1.0] for values in repeats])
    deviation = float(exact.std())
    assert float(((exact - nominal).abs() < 2.1 * deviation).sum()) >= binom.ppf(0.001, REPEATS, 0.95)
    for factor in (0.8, 1.2):
        off = torch.tensor([values[name, factor] for values in repeats])
        assert ((off - nominal).abs() > 2.1 * deviation).all()


def test_the_gap_of_the_exact_mean_is_zero_and_its_expectation_is_that_of_the_gap():
    case = case_of(GaussianField(), 200)
    answer = answer_of(case, GaussianField(), draws=2)
    exact = OptimalityGap().measure(case, answer).values
    assert torch.allclose(exact["optimality_gap"], torch.zeros(200, dtype=torch.float64), atol=1e-6)
    assert exact["expected_gap"].abs().max() < 1e-6
    off = Reconstruction(answer.x + 0.05 * torch.randn(answer.x.shape, generator=generator("off"), dtype=torch.float64))
    found = OptimalityGap().measure(case, off).values
    assert float(found["optimality_gap"].mean()) == pytest.approx(float(found["expected_gap"].mean()), abs=0.1)
    assert float(found["expected_gap"].mean()) > 0.2


@pytest.mark.parametrize("prior", [GaussianField(), GaussianMixture(3, 4)], ids=["field", "mixture"])
@pytest.mark.parametrize("sigma", [0.1, 0.0])
def test_distance_and_discrepancy_are_zero_for_exact_draws_only(prior, sigma):
    case = case_of(prior, 12, sigma)

    def means(metric, answer, name) -> tuple[float, float]:
        values = metric.measure(case, answer).values[name]
        return float(values.mean()), float(values.std()) / 12**0.5

    answers = {factor: answer_of(case, prior, factor) for factor in (1.0, 0.5, 1.5)}
    noisy = answer_of(case, prior)
    noisy.draws.add_(0.1 * torch.randn(noisy.draws.shape, generator=generator("noisy"), dtype=torch.float64))
    for metric, name, truth in ((EnergyDistance(prior, 32), "energy_distance", 0), (Stein(prior), "stein", 0),
                                (Stein(prior), "stein_scale", 1)):  # fmt: skip
        exact, error = means(metric, answers[1.0], name)
        assert abs(exact - truth) < 4 * error
        for factor in (0.5, 1.5) if name != "stein" else ():  # with 9 draws it only sees noise
            assert abs(means(metric, answers[factor], name)[0] - truth) > 5 * error
        if name == "stein_scale" and isinstance(prior, GaussianField):
            assert means(metric, answers[0.5], name)[0] == pytest.approx(0.25, abs=0.02)
        assert abs(means(metric, noisy, name)[0] - truth) > 5 * error


def test_the_energy_distance_against_its_closed_form_in_one_dimension():
    """For N(0, 1) and N(m, 1): 2 E|X - Y| - E|X - X'| - E|Y - Y'|, with E|N(m, 2)| of a folded normal."""
    draw = generator("energy")
    x = torch.randn((1, 1500, 1), generator=draw, dtype=torch.float64)
    y = 1.5 + torch.randn((1, 1500, 1), generator=draw, dtype=torch.float64)
    s, m = 2**0.5, 1.5
    folded = s * (2 / math.pi) ** 0.5 * math.exp(-(m**2) / (2 * s**2)) + m * math.erf(m / (s * 2**0.5))
    expected = (2 * folded - 2 * s * (2 / math.pi) ** 0.5) / (2 * folded)
    assert float(energy_distance(x, y)) == pytest.approx(expected, abs=0.02)


def test_the_exact_posterior_of_a_metric_is_that_of_an_edited_file(tmp_path):
    path = tmp_path / "power.txt"
    np.savetxt(path, [[0.0, 1.0], [0.5, 0.1]])
    prior = GaussianField(spectrum=str(path))
    case = case_of(prior, 2)
    first = posterior_of(case, prior).mean
    np.savetxt(path, [[0.0, 1.0], [0.5, 0.01], [0.6, 0.01]])
    assert torch.allclose(posterior_of(case, prior).mean, exact_posterior(case.problem, prior, Rng(0, ["0", "1"])).mean)
    assert not torch.allclose(posterior_of(case, prior).mean, first, atol=1e-3)


def test_steins_kernel_against_autograd():
    draw = generator("stein")
    x, g = torch.randn((2, 4, 3), generator=draw, dtype=torch.float64)
    p = torch.tensor([1.0, 0.4, 0.9], dtype=torch.float64)

    def u(i: int, j: int) -> float:
        a, b = x[i].clone().requires_grad_(), x[j].clone().requires_grad_()
        total = 0.0
        h = 2 * others_variance(x)[i, j]
        assert torch.allclose(h, 2 * x[[m for m in range(4) if m not in (i, j)]].var(dim=0))
        for n in range(3):
            k = (1 + (a[n] - b[n]).square() / h[n]) ** -0.5
            da, db = torch.autograd.grad(k, (a, b), create_graph=True)
            mixed = torch.autograd.grad(da[n], b)[0][n]
            one = k * g[i, n] * g[j, n] + p[n] * (g[i, n] * db[n] + g[j, n] * da[n]) + p[n] ** 2 * mixed
            total += float((h[n] * one).detach())
        return total

    pairs = [[u(i, j) for j in range(4)] for i in range(4)]
    off = sum(pairs[i][j] for i in range(4) for j in range(4) if i != j) / 12
    expected = off / (sum(pairs[i][i] for i in range(4)) / 4)
    assert float(discrepancy(x, g, p)) == pytest.approx(expected, rel=1e-10)


def test_ranks_of_exchangeable_numbers_have_the_nominal_coverage_for_any_number_of_draws():
    for K in (2, 7, 19):
        draws = torch.rand((20000, K + 1), generator=generator("ranks", K), dtype=torch.float64)
        r = rank(draws[:, 0], draws[:, 1:])
        for level in (0.5, 0.9):
            assert float(covered(r, K, level).mean()) == pytest.approx(level, abs=0.012)
    assert rank(torch.tensor([1.0]), torch.tensor([[0.0, 1.0, 2.0]])).tolist() == [1.5]


def test_binomial_intervals_cover():
    for n, p in ((10, 0.9), (60, 0.5)):
        share = sum(binom.pmf(k, n, p) for k in range(n + 1)
                    if binomial_interval(k, n)[0] <= p <= binomial_interval(k, n)[1])  # fmt: skip
        assert 0.95 <= share < 1
    assert binomial_interval(0, 5)[0] == 0
    assert binomial_interval(5, 5)[1] == 1
    with pytest.raises(ValueError, match="6 successes in 5 trials"):
        binomial_interval(6, 5)


def test_metrics_say_why_they_have_no_number():
    case = case_of(GaussianField(), 2)
    plain = Reconstruction(case.truth)
    for metric in (EnergyCoverage(), DensityCoverage(), EnergyDistance(), Stein()):
        measured = metric.measure(case, plain)
        assert all(values.isnan().all() for values in measured.values.values())
        assert "or more" in next(iter(measured.unmeasured.values()))
    scaled = Case(Problem(case.problem.operator, case.problem.y, Gaussian(rel=0.1), case.problem.sigma, MINMAX),
                  case.truth, case.image_ids, case.pixel_size)  # fmt: skip
    assert "rel depends on the truth" in OptimalityGap().measure(scaled, plain).unmeasured["optimality_gap"]


@pytest.mark.parametrize("metric", [OptimalityGap(), DensityCoverage(), EnergyDistance(), Stein()],
                         ids=lambda metric: type(metric).__name__)  # fmt: skip
def test_a_posterior_that_is_a_point_has_no_numbers(metric):
    """Gaps would be infinite, distances and discrepancies those of rounding."""
    case = case_of(GaussianField(), 3, sigma=0.0, text="identity")
    measured = metric.measure(case, answer_of(case, GaussianField()))
    for column in metric.columns:
        assert measured.values[column.name].isnan().all()
        assert "determine the image: its posterior is a point" in measured.unmeasured[column.name]


@pytest.mark.parametrize("text", ["ddnm:5,samples=3,prior=gaussian_field", "exact:samples=3", "daps:3,samples=2"])
def test_draws_are_kept_only_where_they_are_wanted(text):
    case = case_of(GaussianField(), 2)
    y, sigma = case.problem.y.float(), case.problem.sigma.float()
    operator = build_operator(installed().make("operators", "sumpool:4,count=4"), (16, 16), seed=0)
    problem = Problem(operator, y, case.problem.noise, sigma, IDENTITY)
    solver = installed().make("solvers", text + (",prior=gaussian_field" if "daps" in text else ""))
    for batch in (1, 2):
        found = solve(solver, problem, ["0", "1"], seed=0, batch=batch, keep_draws=True).reconstruction
        assert found.draws is not None
        assert found.draws.shape == (2, solver.samples, 1, 16, 16)
        if not isinstance(solver, Exact):
            assert torch.allclose(found.draws.mean(dim=1), found.x, atol=1e-5)
            assert torch.allclose(found.draws.std(dim=1), found.deviation, atol=1e-5)
    assert solve(solver, problem, ["0", "1"], seed=0, batch=2).reconstruction.draws is None
    with keeping():
        assert solver.solve(problem, rng=Rng(0, ["0", "1"])).draws is not None


@pytest.mark.slow
def test_a_run_has_the_metrics_of_every_sampler():
    metrics = ["optimality_gap", "coverage", "energy_coverage", "hpd_coverage", "energy_distance", "stein"]
    records = cb.run(
        ["exact:samples=8", "ddnm:10,samples=8,prior=gaussian_field"], "sumpool:4,count=4", noises="gaussian:0.1",
        data="gaussian_field:16,number=4", images="0:4", scaling="none", metrics=metrics,
    )  # fmt: skip
    exact, ddnm, floor = (
        next(record for record in records if record.solver.startswith(name)) for name in ("exact", "ddnm", "pinv")
    )
    assert {exact.status, ddnm.status, floor.status} == {"ok"}
    mean = {name: sum(values) / 4 for name, values in exact.values.items()}
    assert mean["expected_gap"] < 1e-4
    assert abs(mean["energy_distance"]) < 0.02
    assert mean["stein_scale"] == pytest.approx(1, abs=0.05)
    assert sum(ddnm.values["expected_gap"]) / 4 > 0.2
    assert "samples=2 or more" in floor.unmeasured["energy_distance"]
    assert min(floor.values["expected_gap"]) > 0
