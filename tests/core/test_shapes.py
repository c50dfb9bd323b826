"""Shapes that would broadcast to a wrong result are errors, in two and in three dimensions; `LinearOperator.rows`."""

from __future__ import annotations

import math

import pytest
import torch

from cryobench.core import LinearOperator, Noisy, Problem, Reconstruction, build_operator
from cryobench.core.meters import CountingOperator, counting
from cryobench.core.operator import RowsOperator
from cryobench.errors import IncompatibleError, PluginError
from cryobench.numerics.linalg import dot, norm, per_item
from cryobench.operators.fourier import Fourier
from cryobench.operators.identity import Identity
from cryobench.operators.noise import NoNoise
from cryobench.operators.sumpool import SumPool, SumPoolOperator
from cryobench.registry import installed
from cryobench.runner.checks import checked_measurements, checked_reconstruction
from cryobench.testing.slices import CentralSlices

N = 4
DOUBLE = torch.float64


def built(recipe, shape) -> LinearOperator:
    return build_operator(recipe, shape, seed=1, dtype=DOUBLE)


def slices() -> LinearOperator:
    return built(CentralSlices(), (N, N, N))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def dense(operator: LinearOperator) -> torch.Tensor:
    """[measurements, unknowns]."""
    units = torch.eye(math.prod(operator.domain_shape), dtype=DOUBLE).reshape(-1, *operator.domain_shape)
    return operator.A(units).flatten(1).T


# ------------------------------------------------------------------------------------------------- linear algebra


@pytest.mark.parametrize("axes", [1, 2, 3, 4])
def test_a_number_for_each_item_multiplies_items(axes):
    batch, values = random(3, *[5] * axes), random(3, seed=1)
    got = per_item(values, batch) * batch
    for i in range(3):
        torch.testing.assert_close(got[i], values[i] * batch[i])
    assert per_item(torch.tensor(2.0), batch).shape == (1, *[1] * axes)


@pytest.mark.parametrize("count", [2, 4, 5, 6])
def test_a_wrong_count_of_numbers_is_an_error(count):
    with pytest.raises(ValueError, match=rf"{count} numbers of shape \[{count}\] for a batch of 3 items"):
        per_item(torch.ones(count), torch.ones(3, 1, count, count))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((2, 1, 4, 4), (2, 3, 4, 4)),  # a missing channel
        ((2, 1, 4, 4), (2, 1, 4, 4, 4)),  # images and volumes
        ((2, 1, 4, 4), (2, 1, 1, 4)),
        ((2, 16), (2, 1)),
    ],
)
def test_an_inner_product_of_different_shapes_is_an_error(a, b):
    with pytest.raises(ValueError, match="an inner product of items of shape"):
        dot(torch.ones(a), torch.ones(b))


@pytest.mark.parametrize("shape", [(3, 1, 4, 5), (3, 1, 4, 5, 6), (3, 7)])
def test_inner_product_and_norm_of_each_item(shape):
    a, b = random(*shape), random(*shape, seed=1)
    wanted = torch.stack([torch.dot(x.flatten(), y.flatten()) for x, y in zip(a, b, strict=True)])
    assert dot(a, b).shape == (3, *[1] * (len(shape) - 1))
    torch.testing.assert_close(dot(a, b).flatten(), wanted)
    torch.testing.assert_close(norm(a).flatten(), a.flatten(1).norm(dim=1))
    torch.testing.assert_close(dot(a[:1], b).flatten()[1], torch.dot(a[0].flatten(), b[1].flatten()))


# ----------------------------------------------------------------------------------- the operator that solvers see


@pytest.mark.parametrize("shape", [(2, 1, N, N), (2, N, N, N), (2, 3, N, N, N), (2, 1, N, N, 1), (1, N, N, N, N)])
@pytest.mark.parametrize("name", ["A", "A_adjoint_A", "A_dagger_A"])
def test_a_volume_of_another_shape_is_refused(name, shape):
    with pytest.raises(IncompatibleError, match=rf"was given an image of shape .*expected \[B, 1, {N}, {N}, {N}\]"):
        getattr(CountingOperator(slices()), name)(torch.ones(shape, dtype=DOUBLE))


@pytest.mark.parametrize("shape", [(2, 1, N, N), (2, 3, N, N, N), (2, 3, N, 1), (3, N, N)])
@pytest.mark.parametrize("name", ["A_adjoint", "A_dagger", "on_range"])
def test_measurements_of_another_shape_are_refused(name, shape):
    with pytest.raises(IncompatibleError, match=rf"was given a measurement of shape .*expected \[B, 3, {N}, {N}\]"):
        getattr(CountingOperator(slices()), name)(torch.ones(shape, dtype=DOUBLE))


def test_the_proximal_step_checks_both():
    operator, x, y = CountingOperator(slices()), torch.ones(2, 1, N, N, N).double(), torch.ones(2, 3, N, N).double()
    assert operator.prox_l2(x, y, 1.0).shape == x.shape
    with pytest.raises(IncompatibleError, match="an image"):
        operator.prox_l2(x[:, :, :1], y, 1.0)
    with pytest.raises(IncompatibleError, match="a measurement"):
        operator.prox_l2(x, y[:, :1], 1.0)


@pytest.mark.parametrize("name", ["A", "A_adjoint"])
def test_an_operator_that_returns_another_shape_is_refused(name, monkeypatch):
    operator = slices()
    own = getattr(operator, name)
    monkeypatch.setattr(operator, name, lambda x: own(x)[:, :1, :1])
    x = torch.ones(2, *(operator.domain_shape if name == "A" else operator.measurement_shape), dtype=DOUBLE)
    with pytest.raises(PluginError, match=rf"{name} of the operator returned shape .*expected \[2, "):
        getattr(CountingOperator(operator), name)(x)


def test_an_operator_that_sums_over_the_batch_is_refused(monkeypatch):
    operator = slices()
    own = operator.A
    monkeypatch.setattr(operator, "A", lambda x: own(x).sum(dim=0, keepdim=True))
    with pytest.raises(PluginError, match=rf"returned shape \[1, 3, {N}, {N}\], expected \[2, 3, {N}, {N}\]"):
        CountingOperator(operator).A(torch.ones(2, 1, N, N, N, dtype=DOUBLE))


# ------------------------------------------------------------------------------ problems, measurements and answers


@pytest.mark.parametrize(
    ("y", "sigma", "named"),
    [
        ((2, 3, N, N), (2,), "sigma"),
        ((2, 3, N, N), (2, 1, 1, 1, 1), "sigma"),
        ((2, 3, N, N), (2, 3, 1, 1), "sigma"),
        ((2, 3, N, N), (3, 1, 1, 1), "sigma"),
        ((2, 3, N, N), (), "sigma"),
        ((2, 1, N, N), (2, 1, 1, 1), "y"),
        ((2, 3, N, N, N), (2, 1, 1, 1), "y"),
        ((3, N, N), (1, 1, 1, 1), "y"),
    ],
)
def test_a_problem_of_shapes_that_do_not_fit_is_refused(y, sigma, named):
    wanted = r"\[B, 3, 4, 4\]" if named == "y" else r"\[B, 1, 1, 1\]"
    with pytest.raises(IncompatibleError, match=f"{named} has shape .*expected {wanted}"):
        Problem(slices(), torch.zeros(y, dtype=DOUBLE), NoNoise(), torch.zeros(sigma, dtype=DOUBLE))


@pytest.mark.parametrize("sigmas", [1, 2])
def test_a_problem_has_one_noise_level_or_one_for_each_image(sigmas):
    problem = Problem(slices(), torch.zeros(2, 3, N, N).double(), NoNoise(), torch.zeros(sigmas, 1, 1, 1).double())
    assert (problem.batch, problem.image_batch_shape) == (2, (2, 1, N, N, N))


@pytest.mark.parametrize(
    ("y", "sigma", "wanted"),
    [
        ((2, 1, N, N), (2, 1, 1, 1), r"y of shape \[2, 1, 4, 4\], expected \[2, 3, 4, 4\]"),
        ((1, 3, N, N), (2, 1, 1, 1), r"y of shape \[1, 3, 4, 4\]"),
        ((2, 3, N, N), (2, 1, 1, 1, 1), r"sigma of shape \[2, 1, 1, 1, 1\], expected \[2, 1, 1, 1\]"),
        ((2, 3, N, N), (2,), r"sigma of shape \[2\]"),
        ((2, 3, N, N), (2, 3, N, N), "sigma of shape"),
    ],
)
def test_a_noise_model_that_gives_other_shapes_is_refused(y, sigma, wanted):
    noisy = Noisy(torch.zeros(y, dtype=DOUBLE), torch.zeros(sigma, dtype=DOUBLE))
    with pytest.raises(PluginError, match=wanted):
        checked_measurements(noisy, slices(), 2)


@pytest.mark.parametrize("shape", [(2, 1, N, N), (2, N, N, N), (1, 1, N, N, N), (2, 3, N, N)])
def test_a_reconstruction_of_another_shape_is_refused(shape):
    problem = Problem(slices(), torch.zeros(2, 3, N, N).double(), NoNoise(), torch.zeros(2, 1, 1, 1).double())
    with pytest.raises(PluginError, match=r"returned shape .*expected \[2, 1, 4, 4, 4\]"):
        checked_reconstruction(Reconstruction(torch.zeros(shape, dtype=DOUBLE)), problem)


# ------------------------------------------------------------------------------------- some of the measurements

PARTS = [slice(0, 2), slice(None, None, 2), torch.tensor([2, 0]), torch.tensor([False, True, True]), torch.tensor([1])]
WHOLE = {
    "slices": lambda: slices(),
    "sumpool": lambda: built(SumPool(2, 3), (4, 6)),
    "composed": lambda: built(installed().make("operators", "sumpool:2,count=3@fourier:0.6"), (6, 4)),
    "behind slices": lambda: built(_behind_slices(), (N, N, N)),
}


def _behind_slices():
    from cryobench.operators.composed import Composed

    return Composed(SumPool(2, 3), CentralSlices(1))


def agrees_with(operator: LinearOperator, D: torch.Tensor) -> None:
    """Every method against the matrix D."""
    x, y = random(2, *operator.domain_shape), random(2, *operator.measurement_shape, seed=1)
    flat_x, flat_y, gamma = x.flatten(1).T, y.flatten(1).T, 0.6
    shifted = D.T @ D + torch.eye(D.shape[1], dtype=DOUBLE) / gamma
    for got, wanted, tolerance in (
        (operator.A(x), D @ flat_x, 1e-12),
        (operator.A_adjoint(y), D.T @ flat_y, 1e-12),
        (operator.A_adjoint_A(x), D.T @ (D @ flat_x), 1e-12),
        (operator.A_dagger(y), torch.linalg.pinv(D) @ flat_y, 1e-5),
        (operator.A_dagger_A(x), torch.linalg.pinv(D) @ (D @ flat_x), 1e-5),
        (operator.prox_l2(x, y, gamma), torch.linalg.solve(shifted, D.T @ flat_y + flat_x / gamma), 1e-5),
    ):
        torch.testing.assert_close(got.flatten(1).T, wanted, rtol=tolerance, atol=tolerance)
    assert operator.compute_norm() == pytest.approx(float(torch.linalg.matrix_norm(D, 2)), rel=1e-3)
    torch.testing.assert_close(operator.mean_response.flatten(), D.sum(dim=1))


@pytest.mark.parametrize("part", PARTS, ids=str)
@pytest.mark.parametrize("name", WHOLE)
def test_rows_are_the_operator_of_some_measurements(name, part):
    whole = WHOLE[name]()
    numbers = torch.arange(math.prod(whole.measurement_shape)).reshape(whole.measurement_shape)
    agrees_with(whole.rows(part), dense(whole)[numbers[part].flatten()])


@pytest.mark.parametrize("name", WHOLE)
def test_a_permutation_of_all_measurements_permutes_them(name):
    whole, order = WHOLE[name](), torch.tensor([2, 0, 1])
    numbers = torch.arange(math.prod(whole.measurement_shape)).reshape(whole.measurement_shape)
    agrees_with(whole.rows(order), dense(whole)[numbers[order].flatten()])


@pytest.mark.parametrize("name", ["slices", "sumpool"])
def test_a_measurement_chosen_twice_counts_twice(name):
    whole, twice = WHOLE[name](), torch.tensor([1, 1, 0])
    numbers = torch.arange(math.prod(whole.measurement_shape)).reshape(whole.measurement_shape)
    agrees_with(whole.rows(twice), dense(whole)[numbers[twice].flatten()])


def test_rows_of_rows_are_rows():
    whole, x = slices(), random(1, 1, N, N, N)
    torch.testing.assert_close(whole.rows(slice(1, 3)).rows(torch.tensor([1])).A(x), whole.A(x)[:, 2:])


def test_the_rows_of_sum_pooling_are_its_masks_in_closed_form():
    whole = built(SumPool(2, 4), (4, 6))
    assert isinstance(whole, SumPoolOperator)
    part = torch.tensor([3, 1])
    masks = SumPool(2, 4).draw(_imaging((4, 6)), 1)["masks"]
    rows = whole.rows(part)
    assert isinstance(rows, SumPoolOperator)
    assert rows.closed_form
    wanted = SumPoolOperator(masks[part], 2, dtype=DOUBLE, device="cpu")
    assert torch.equal(rows.matrices, wanted.matrices)
    assert (rows.rank, rows.nominal_compression) == (wanted.rank, wanted.nominal_compression)
    y = random(2, *rows.measurement_shape)
    torch.testing.assert_close(rows.A_dagger(y), wanted.A_dagger(y))


def _imaging(shape):
    from cryobench.core import Imaging

    return Imaging(shape)


def test_rows_keep_what_the_operator_states():
    rows = slices().rows(slice(0, 2))
    assert isinstance(rows, RowsOperator)
    assert rows.measurement_shape == (2, N, N)
    assert rows.image_shape == (N, N, N)
    assert rows.nonnegative
    assert rows.nominal_compression == pytest.approx(N / 2)
    assert rows.rank == 2 * N * N


@pytest.mark.parametrize("recipe", [Identity(), Fourier(0.5)])
@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 2)])
def test_all_rows_are_the_operator_itself(recipe, shape):
    operator = built(recipe, shape)
    assert operator.rows(slice(None)) is operator


@pytest.mark.parametrize("part", [slice(3, 5), torch.tensor([], dtype=torch.long), torch.tensor([[0, 1]])], ids=str)
@pytest.mark.parametrize("name", ["slices", "sumpool"])
def test_no_rows_are_an_error(name, part):
    with pytest.raises(ValueError, match="selects none of 3 measurements"):
        WHOLE[name]().rows(part)


def test_calls_of_rows_are_counted_and_their_shapes_checked():
    operator = CountingOperator(slices()).rows(slice(0, 2))
    assert isinstance(operator, CountingOperator)
    x = random(2, 1, N, N, N)
    with counting() as tally:
        torch.testing.assert_close(operator.A(x), slices().A(x)[:, :2])
    assert tally.images == {"A": 2}
    with pytest.raises(IncompatibleError, match=rf"expected \[B, 2, {N}, {N}\]"):
        operator.A_adjoint(torch.ones(2, 3, N, N, dtype=DOUBLE))


def test_rows_of_an_operator_that_differs_between_images_select_as_it_does():
    import pandas as pd

    from cryobench.core import Imaging

    optics = {
        "rlnDefocusU": [9000.0, 15000.0], "rlnDefocusV": [9500.0, 14000.0], "rlnDefocusAngle": [0.0, 30.0],
        "rlnVoltage": [300.0] * 2, "rlnSphericalAberration": [2.7] * 2, "rlnAmplitudeContrast": [0.1] * 2,
    }  # fmt: skip
    recipe = installed().make("operators", "sumpool:2,count=3@ctf")
    whole = build_operator(recipe, Imaging((8, 8), (2.0, 2.0), pd.DataFrame(optics)), seed=0, dtype=DOUBLE)
    x, part = random(2, 1, 8, 8), torch.tensor([2, 0])
    for rows in (whole.rows(part), RowsOperator(whole, part)):
        torch.testing.assert_close(rows.A(x), whole.A(x)[:, part])
        one = rows.select(slice(1, 2))
        torch.testing.assert_close(one.A(x[1:]), whole.A(x)[1:, part])
        assert one.compute_norm() == rows.compute_norm()  # that of all images
        assert one.images == 1
