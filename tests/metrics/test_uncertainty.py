"""Stated deviations against errors drawn with known deviations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cases import alone, case_of, images, measure
from scipy.stats import norm, rankdata
from scipy.stats import t as student

from cryobench.core import Reconstruction, build_operator
from cryobench.metrics.uncertainty import LEVELS, Calibration, Coverage, Diversity
from cryobench.operators.subsampling import Slices

SHAPE = (128, 128)


@pytest.fixture(scope="module")
def drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Truth, reconstruction and the deviation that the errors were drawn with."""
    truth = images(2, SHAPE)
    draw = torch.Generator().manual_seed(3)
    deviation = 0.05 + 0.2 * torch.rand(truth.shape, generator=draw, dtype=torch.float64)
    return truth, truth + deviation * torch.randn(truth.shape, generator=draw, dtype=torch.float64), deviation


@pytest.mark.parametrize("factor", [1.0, 0.5, 2.0, 0.1])
def test_a_deviation_that_is_wrong_by_a_factor_has_closed_forms(drawn, factor):
    truth, x, deviation = drawn
    measured = measure(Coverage(), case_of(truth), x, factor * deviation)
    observed = [2 * norm.cdf(factor * norm.ppf((1 + level) / 2)) - 1 for level in LEVELS]
    spread = 4 * 0.5 / 128  # four standard errors of a fraction of as many pixels
    for i in range(2):
        np.testing.assert_allclose(measured.curves["coverage"][i], observed, atol=spread)
        assert measured.values["coverage"][i].item() == pytest.approx(observed[17], abs=spread)
        error = np.mean(np.abs(np.subtract(observed, LEVELS)))
        assert measured.values["coverage_error"][i].item() == pytest.approx(error, abs=spread)


def test_the_counts_are_those_of_the_intervals(drawn):
    truth, x, deviation = drawn
    curve = measure(Coverage(), case_of(truth), x, deviation).curves["coverage"][0]
    for level, fraction in zip(LEVELS, curve.tolist(), strict=True):
        low, high = norm.interval(level, loc=x[0].numpy(), scale=deviation[0].numpy())
        assert fraction == pytest.approx(((low <= truth[0].numpy()) & (truth[0].numpy() <= high)).mean(), abs=1e-4)


def test_a_deviation_of_zero_covers_exact_pixels_alone():
    truth = images(1, (16, 16))
    nothing = torch.zeros_like(truth)
    exact = measure(Coverage(), case_of(truth), truth.clone(), nothing).values
    assert (exact["coverage"].item(), exact["coverage_error"].item()) == (1, pytest.approx(0.5))
    wrong = measure(Coverage(), case_of(truth), truth + 1e-3, nothing).values
    assert (wrong["coverage"].item(), wrong["coverage_error"].item()) == (0, pytest.approx(0.5))


def test_diversity_is_the_root_mean_square_in_units_of_the_data_range(drawn):
    truth, x, deviation = drawn
    value = measure(Diversity(), case_of(truth), x, deviation).values["diversity"]
    np.testing.assert_allclose(value, [math.sqrt(np.mean((d / 2) ** 2)) for d in deviation.numpy()])


@pytest.mark.parametrize("metric", [Coverage(), Calibration(), Diversity()])
def test_a_solver_without_deviations_has_no_number_but_a_reason(metric):
    truth = images(2, (16, 16))
    measured = measure(metric, case_of(truth), truth)
    for column in metric.columns:
        assert measured.values[column.name].isnan().all()
        assert "states no standard deviation" in measured.unmeasured[column.name]
    assert not measured.curves


@pytest.mark.parametrize("metric", [Coverage(), Calibration(), Diversity()])
def test_results_do_not_depend_on_the_batch_or_on_pixels_outside_the_circle(drawn, metric):
    truth, x, deviation = drawn
    case = case_of(truth, within=[20, 30])
    many, one = measure(metric, case, x, deviation), measure(metric, alone(case, 1), x[1:], deviation[1:])
    y = torch.arange(128) - 64
    outside = y[:, None] ** 2 + y**2 > 30**2
    ignored = measure(metric, case, x + 7 * outside, deviation + 9 * outside)
    for name, value in many.values.items():
        torch.testing.assert_close(one.values[name], value[1:])
        torch.testing.assert_close(ignored.values[name], value)


# ------------------------------------------------------------------------------------------ means of K draws


@pytest.fixture(scope="module")
def posterior() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Truths [B, 1, 2, 2] of a Gaussian prior, and the mean [B, 4] and covariance of p(x | y) for y = A x + n each:
    C = (S^-1 + A^T A / s^2)^-1, m = C A^T y / s^2."""
    g = torch.Generator().manual_seed(11)

    def draw(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64)

    L, A, s = draw(4, 4), draw(3, 4), 0.3
    S = L @ L.T + 0.1 * torch.eye(4)
    x = draw(20000, 4) @ torch.linalg.cholesky(S).T
    y = x @ A.T + s * draw(20000, 3)
    C = torch.linalg.inv(torch.linalg.inv(S) + A.T @ A / s**2)
    return x.reshape(-1, 1, 2, 2), y @ A @ C.T / s**2, C


def draws_of(posterior, K: int) -> Reconstruction:
    truth, mean, C = posterior
    g = torch.Generator().manual_seed(K)
    noise = torch.randn((K, *mean.shape), generator=g, dtype=torch.float64)
    samples = (mean + noise @ torch.linalg.cholesky(C).T).reshape(K, *truth.shape)
    return Reconstruction(samples.mean(0), deviation=samples.std(0), samples=K)


@pytest.mark.parametrize("K", [2, 8, 64])
def test_intervals_from_K_exact_draws_cover_what_they_state(posterior, K):
    truth, drawn = posterior[0], draws_of(posterior, K)
    measured = Coverage().measure(case_of(truth), drawn)
    for name, level in (("coverage_68", 0.68), ("coverage", 0.9), ("coverage_95", 0.95)):
        error = 4 * math.sqrt(level * (1 - level) / len(truth))  # as if the four pixels of an image were one
        assert measured.values[name].mean().item() == pytest.approx(level, abs=error)
    # a normal distribution around the mean of few draws is too narrow, by a known amount
    normal = Coverage().measure(case_of(truth), Reconstruction(drawn.x, deviation=drawn.deviation))
    wanted = 2 * student.cdf(norm.ppf(0.84) / math.sqrt(1 + 1 / K), K - 1) - 1
    assert normal.values["coverage_68"].mean().item() == pytest.approx(wanted, abs=0.015)
    assert K != 8 or wanted == pytest.approx(0.62, abs=0.005)


def test_the_size_of_errors_of_K_exact_draws_is_as_predicted(posterior):
    truth, drawn = posterior[0], draws_of(posterior, 8)
    # all images as one, so that the deviation differs between pixels
    case, x, s = case_of(truth.reshape(1, 1, -1, 2)), drawn.x.reshape(1, 1, -1, 2), drawn.deviation.reshape(1, 1, -1, 2)
    values = Calibration().measure(case, Reconstruction(x, deviation=s, samples=8)).values
    assert values["calibration_ratio"].item() == pytest.approx(1, abs=0.02)
    alone = Calibration().measure(case, Reconstruction(x, deviation=s)).values
    assert alone["calibration_ratio"].item() == pytest.approx(values["calibration_ratio"].item() * math.sqrt(9 / 8))


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_calibration_has_closed_forms_for_known_deviations(drawn, factor):
    truth, x, deviation = drawn
    values = measure(Calibration(), case_of(truth), x, factor * deviation).values
    for i in range(2):
        assert values["calibration_ratio"][i].item() == pytest.approx(1 / factor, abs=0.03)
        assert values["calibration_slope"][i].item() == pytest.approx(1 / factor**2, abs=0.06)
        ranks = [rankdata(v[i].flatten().numpy()) for v in ((x - truth).abs(), deviation)]
        assert values["calibration_rank"][i].item() == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_a_deviation_that_does_not_tell_where_the_error_is(drawn):
    truth, x, deviation = drawn
    shuffled = deviation.flatten(1)[:, torch.randperm(128**2, generator=torch.Generator().manual_seed(0))]
    values = measure(Calibration(), case_of(truth), x, shuffled.reshape(deviation.shape)).values
    assert values["calibration_ratio"].tolist() == pytest.approx([1, 1], abs=0.03)
    assert values["calibration_slope"].tolist() == pytest.approx([0, 0], abs=0.06)
    assert values["calibration_rank"].tolist() == pytest.approx([0, 0], abs=0.03)
    same = measure(Calibration(), case_of(truth), x, torch.full_like(deviation, 0.1))
    assert same.values["calibration_slope"].isnan().all()
    assert "the same in all pixels" in same.unmeasured["calibration_slope"]


def test_sections_that_are_kept_are_not_evaluated():
    """Errors of the stated deviation between sections that are exact with a deviation of 0."""
    operator = build_operator(Slices(4), (13, 40, 40), seed=0, dtype=torch.float64)
    draw = torch.Generator().manual_seed(5)
    truth = torch.rand((2, 1, 13, 40, 40), generator=draw, dtype=torch.float64) * 2 - 1
    deviation = 0.01 + 0.1 * torch.rand(truth.shape, generator=draw, dtype=torch.float64)
    deviation[:, :, ::4] = 0
    x = truth + deviation * torch.randn(truth.shape, generator=draw, dtype=torch.float64)
    problem = case_of(truth, operator=operator)
    found = Coverage().measure(problem, Reconstruction(x, deviation=deviation)).values
    for name, level in (("coverage", 0.9), ("coverage_68", 0.68), ("coverage_95", 0.95)):
        assert found[name].tolist() == pytest.approx([level] * 2, abs=4 * 0.5 / math.sqrt(9 * 1600))
    sizes = Calibration().measure(problem, Reconstruction(x, deviation=deviation)).values
    assert sizes["calibration_ratio"].tolist() == pytest.approx([1, 1], abs=0.02)
    assert sizes["calibration_slope"].tolist() == pytest.approx([1, 1], abs=0.06)
