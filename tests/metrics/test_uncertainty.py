"""Stated deviations against errors drawn with known deviations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cases import alone, case_of, images, measure
from scipy.stats import norm

from cryobench.metrics.uncertainty import LEVELS, Coverage, Diversity

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


@pytest.mark.parametrize("metric", [Coverage(), Diversity()])
def test_a_solver_without_deviations_has_no_number_but_a_reason(metric):
    truth = images(2, (16, 16))
    measured = measure(metric, case_of(truth), truth)
    for column in metric.columns:
        assert measured.values[column.name].isnan().all()
        assert "states no standard deviation" in measured.unmeasured[column.name]
    assert not measured.curves


@pytest.mark.parametrize("metric", [Coverage(), Diversity()])
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
