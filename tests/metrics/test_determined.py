"""The split of the error against a dense singular value decomposition of the operator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import alone, case_of, images, measure

import cryobench as cb
from cryobench.core import Case, LinearOperator, Reconstruction, meters
from cryobench.metrics.determined import NullError, RangeError
from cryobench.metrics.fidelity import Mse
from cryobench.runner.scoring import score

OPERATORS = [
    "sumpool:4,count=3",
    "sumpool:4,count=5,mask=random_gaussian",
    "sumpool:2,count=4",
    "sumpool:4,count=4,mask=superres",
    "sumpool:4,count=6,mask=checkerboard,mask.tile=2",
    "fourier:0.5",
    "fourier:0.3,mask=fourier_ring",
    "identity",
    "ctf:15000",
    "sumpool:4,count=6@ctf:15000",
]
SHAPE = (8, 12)


def operator_of(spec: str) -> LinearOperator:
    return cb.operator(spec, shape=SHAPE, dtype="float64", pixel_size=3.0)


def projector(operator: LinearOperator) -> torch.Tensor:
    """A^+ A as a matrix [N, N]."""
    N = SHAPE[0] * SHAPE[1]
    matrix = operator.A(torch.eye(N, dtype=torch.float64).reshape(N, 1, *SHAPE)).reshape(N, -1).T
    _, s, rows = torch.linalg.svd(matrix, full_matrices=False)
    rows = rows[s > 1e-6 * s[0]]
    return rows.T @ rows


def split(case: Case, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        measure(RangeError(), case, x).values["range_error"],
        measure(NullError(), case, x).values["null_error"],
    )


@pytest.mark.parametrize("spec", OPERATORS)
def test_against_a_dense_decomposition(spec):
    truth, x = images(3, SHAPE), images(3, SHAPE, seed=1)
    operator = operator_of(spec)
    found = split(case_of(truth, operator=operator), x)
    error = ((x - truth) / 2).flatten(1)
    P = projector(operator)
    for part, wanted in zip(found, (error @ P, error - error @ P), strict=True):
        torch.testing.assert_close(part, wanted.square().mean(dim=1).sqrt(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("spec", OPERATORS)
def test_the_squares_of_the_parts_add_up_to_the_mse(spec):
    case, x = case_of(images(3, SHAPE), operator=operator_of(spec)), images(3, SHAPE, seed=1)
    in_range, in_null = split(case, x)
    torch.testing.assert_close(in_range**2 + in_null**2, measure(Mse(), case, x).values["mse"], rtol=1e-8, atol=0)


@pytest.mark.parametrize("spec", OPERATORS)
def test_a_reconstruction_that_fits_exact_measurements_errs_only_in_the_null_space(spec):
    truth, guess = images(2, SHAPE), images(2, SHAPE, seed=1)
    operator = operator_of(spec)
    case = case_of(truth, operator=operator)
    obedient = guess + operator.A_dagger_A(truth - guess)
    in_range, in_null = split(case, obedient)
    assert in_range.max() < 1e-8
    torch.testing.assert_close(in_null, measure(Mse(), case, obedient).values["mse"].sqrt())
    # a change of the measured component only is an error in the range only
    disobedient = truth + operator.A_dagger_A(guess)
    in_range, in_null = split(case, disobedient)
    assert in_null.max() < 1e-8
    assert in_range.min() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_do_not_depend_on_the_batch_and_are_zero_for_the_truth(dtype):
    truth, x = images(3, (16, 16)).to(dtype), images(3, (16, 16), seed=1).to(dtype)
    case = case_of(truth, operator=cb.operator("sumpool:4,count=4", shape=(16, 16), dtype=dtype))
    for metric in (RangeError(), NullError()):
        ((name, many),) = measure(metric, case, x).values.items()
        torch.testing.assert_close(measure(metric, alone(case, 1), x[1:2]).values[name], many[1:2])
        assert measure(metric, case, truth.clone()).values[name].tolist() == [0, 0, 0]


def test_inside_a_circle_the_parts_are_those_of_the_whole_error():
    truth, x = images(1, (16, 16)), images(1, (16, 16), seed=1)
    operator = cb.operator("sumpool:4,count=4", shape=(16, 16), dtype="float64")
    case = case_of(truth, operator=operator, within=[5.0])
    in_range, _ = split(case, x)
    y = torch.arange(16) - 8
    inside = y[:, None] ** 2 + y**2 <= 25
    part = operator.A_dagger_A(x - truth)[0, 0][inside] / 2
    assert in_range.item() == pytest.approx(part.square().mean().sqrt().item())


def test_the_measured_part_of_an_error_is_computed_once_for_both_metrics_of_it():
    truth = images(3, (16, 16))
    operator = meters.CountingOperator(cb.operator("sumpool:4,count=8", shape=(16, 16), dtype=truth.dtype))
    case = case_of(truth, operator=operator)
    with meters.counting() as tally:
        scores = score([RangeError(), NullError()], case, Reconstruction(0.5 * truth), batch=2)
    assert tally.images["A_dagger_A"] == 3
    total = np.square(scores.values["range_error"]) + np.square(scores.values["null_error"])
    np.testing.assert_allclose(total, (truth / 4).square().mean(dim=(1, 2, 3)), rtol=1e-6)
