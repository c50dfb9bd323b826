"""Metrics against scikit-image, numpy and cases with a known answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import skimage.metrics
import torch

from cryobench.core import Case, Metric, Problem, Reconstruction, build_operator
from cryobench.metrics.fidelity import L2, Mae, MeasurementMse, Mse, Psnr, Ssim
from cryobench.operators.noise import NoNoise
from cryobench.operators.sumpool import SumPool

METRICS = [Mse(), Mae(), Psnr(), Ssim(), L2(), MeasurementMse()]


@pytest.fixture
def case() -> Case:
    truth = torch.rand((3, 1, 16, 16), generator=torch.Generator().manual_seed(0)) * 2 - 1
    operator = build_operator(SumPool(4, 3), (16, 16), seed=0, dtype=torch.float32, device=torch.device("cpu"))
    problem = Problem(operator, operator.A(truth), NoNoise(), torch.zeros(3, 1, 1, 1))
    return Case(problem, truth, ["0", "1", "2"], [None] * 3)


@pytest.fixture
def estimate(case: Case) -> Reconstruction:
    return Reconstruction(case.truth + 0.1 * torch.randn(case.truth.shape, generator=torch.Generator().manual_seed(1)))


def value(metric: Metric, case: Case, reconstruction: Reconstruction) -> np.ndarray:
    (column,) = metric.columns
    return metric.measure(case, reconstruction).values[column.name].numpy()


def test_against_scikit_image_and_numpy(case, estimate):
    a, b = ((x[:, 0].double().numpy() + 1) / 2 for x in (case.truth, estimate.x))
    pairs = list(zip(a, b, strict=True))
    wanted = {
        Mse(): [skimage.metrics.mean_squared_error(*pair) for pair in pairs],
        Psnr(): [skimage.metrics.peak_signal_noise_ratio(*pair, data_range=1) for pair in pairs],
        Ssim(): [skimage.metrics.structural_similarity(*pair, data_range=1) for pair in pairs],
        Mae(): [np.abs(x - y).mean() for x, y in pairs],
        L2(): [np.linalg.norm(x - y) for x, y in pairs],
    }
    for metric, values in wanted.items():
        np.testing.assert_allclose(value(metric, case, estimate), values, rtol=1e-10)


def test_an_exact_image_and_a_known_offset(case):
    exact, shifted = Reconstruction(case.truth.clone()), Reconstruction(case.truth.double() + 0.2)
    assert value(Psnr(), case, exact).tolist() == [math.inf] * 3
    assert value(Ssim(), case, exact) == pytest.approx(1)
    assert value(MeasurementMse(), case, exact) == pytest.approx(0, abs=1e-10)
    # 0.2 on [-1, 1] is 0.1 on [0, 1]: MSE 0.01, 20 dB, norm 0.1 sqrt(N)
    assert value(Psnr(), case, shifted) == pytest.approx(20)
    assert value(Mae(), case, shifted) == pytest.approx(0.1)
    assert value(L2(), case, shifted) == pytest.approx(1.6)


def test_the_measurement_error_is_in_the_units_of_y(case):
    operator, offset = case.problem.operator, 0.25
    moved = Reconstruction(operator.A_dagger(case.problem.y + offset))
    # three random binary masks on 16 pixels: A A^+ = 1, so the residual is the offset itself
    assert value(MeasurementMse(), case, moved) == pytest.approx(offset**2, rel=1e-4)


def test_columns_state_direction_and_unit():
    stated = {column.name: (column.direction, column.unit) for metric in METRICS for column in metric.columns}
    assert stated["psnr"] == ("higher", "dB")
    assert stated["ssim"][0] == "higher"
    assert all(stated[name] == ("lower", "") for name in ("mse", "mae", "l2", "measurement_mse"))
