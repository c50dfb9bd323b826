"""An operator from volumes to slices, without closed forms: the rules, dense algebra, every solver of volumes."""

from __future__ import annotations

import math
from importlib.metadata import EntryPoint, entry_points

import pytest
import torch

from cryobench.core import MINMAX, Problem, adjoint_gap, build_operator, mean_intensity
from cryobench.core.meters import CountingOperator
from cryobench.errors import IncompatibleError, PluginError
from cryobench.numerics.linalg import dot, per_item
from cryobench.operators.composed import Composed
from cryobench.operators.ctf import Ctf
from cryobench.operators.fourier import Fourier
from cryobench.operators.identity import Identity
from cryobench.operators.masks import FourierRadial, RandomGaussian
from cryobench.operators.noise import Gaussian, NoNoise
from cryobench.operators.sumpool import SumPool
from cryobench.registry import KINDS, Registry
from cryobench.rng import Rng
from cryobench.solvers.classical import Dct, Tv, Wavelet
from cryobench.solvers.pinv import Pinv, Tikhonov
from cryobench.solvers.wiener import Wiener
from cryobench.testing import examine
from cryobench.testing.slices import CentralSlices

N = 6
ONE = CentralSlices(1)
RECIPES = [
    CentralSlices(),
    ONE,
    *(Composed(outer, ONE) for outer in (Identity(), Fourier(0.5), SumPool(2, 3, RandomGaussian()))),
    Composed(ONE, Fourier(0.5)),
]
every_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=repr)


def build(recipe, n=N, dtype=torch.float64):
    return build_operator(recipe, (n, n, n), seed=1, dtype=dtype)


def volumes(count=2, n=N):
    g = torch.Generator().manual_seed(0)
    return torch.rand((count, 1, n, n, n), generator=g, dtype=torch.float64) * 2 - 1


def matrix(operator):
    units = torch.eye(math.prod(operator.image_shape), dtype=torch.float64).reshape(-1, 1, *operator.image_shape)
    return operator.A(units).flatten(1).mT


def measured(recipe, noise=None, n=N) -> tuple[Problem, torch.Tensor]:
    operator, x = build(recipe, n), volumes(n=n)
    noise = noise or NoNoise()
    noisy = noise.apply(operator.A(x), operator, MINMAX, rng(len(x)))
    return Problem(CountingOperator(operator), noisy.y, noise, noisy.sigma), x


def rng(count):
    return Rng(0, [str(i) for i in range(count)])


def solve(solver, problem):
    return solver.solve(problem, rng=rng(problem.batch)).x


def test_it_satisfies_the_contract():
    points = [point for kind in KINDS for point in entry_points(group=f"cryobench.{kind}")]
    slices = EntryPoint("central_slices", "cryobench.testing.slices:CentralSlices", "cryobench.operators")
    registry = Registry([*points, slices])
    for spec in ("central_slices", "central_slices:1", "sumpool:2,count=2@central_slices:1",
                 "fourier:0.5@central_slices:1"):  # fmt: skip
        results = list(examine("operators", spec, registry))
        assert {r.rule.name: r.why for r in results if r.status == "broken"} == {}


def test_its_norm_is_the_root_of_the_slices_through_a_voxel():
    operator = build(CentralSlices())
    assert operator.compute_norm() == pytest.approx(math.sqrt(3), rel=1e-6)
    assert adjoint_gap(operator) < 1e-15


@every_recipe
def test_pinv_and_tikhonov_are_those_of_the_dense_matrix(recipe):
    problem, _ = measured(recipe)
    D = matrix(problem.operator)
    c = per_item(mean_intensity(problem.operator, problem.y), volumes())
    right = (problem.y - per_item(c, problem.y) * problem.operator.mean_response).flatten(1).mT
    assert problem.operator.compute_norm() == pytest.approx(float(torch.linalg.matrix_norm(D, 2)), rel=1e-3)
    wanted = (torch.linalg.pinv(D, rtol=1e-9) @ right).mT.reshape(c.shape[0], 1, N, N, N) + c
    torch.testing.assert_close(solve(Pinv(), problem), wanted, rtol=1e-6, atol=1e-6)
    lam = 0.3
    wanted = torch.linalg.solve(D.mT @ D + lam * torch.eye(D.shape[1], dtype=D.dtype), D.mT @ right)
    wanted = wanted.mT.reshape(c.shape[0], 1, N, N, N) + c
    torch.testing.assert_close(solve(Tikhonov(lam), problem), wanted, rtol=1e-6, atol=1e-6)


SHORT = {"steps": 200}
"""Enough to fit y: the projection on its solutions is a part of every step."""


@every_recipe
@pytest.mark.parametrize(
    "solver", [Tikhonov(), *(make(**SHORT) for make in (Dct, Wavelet, Tv))], ids=lambda solver: type(solver).__name__
)
@pytest.mark.parametrize("noise", [NoNoise(), Gaussian(rel=0.1)], ids=["exact", "noisy"])
def test_every_solver_of_volumes_solves_it(recipe, solver, noise):
    problem, x = measured(recipe, noise)
    answer = solve(solver, problem)
    assert answer.shape == x.shape
    assert answer.isfinite().all()
    residual, blank = (problem.y - problem.operator.A(each) for each in (answer, torch.zeros_like(x)))
    assert (residual.flatten(1).norm(dim=1) < blank.flatten(1).norm(dim=1)).all()
    if isinstance(noise, NoNoise):
        torch.testing.assert_close(problem.operator.A(answer), problem.y, rtol=1e-4, atol=1e-4)


def test_wiener_refuses_it_in_one_line():
    reason = Wiener().unsupported(measured(CentralSlices())[0])
    assert "diagonal in Fourier" in reason
    assert "\n" not in reason


@pytest.mark.parametrize(
    ("recipe", "shape", "message"),
    [
        (SumPool(2), (N, N, N), "supports images"),
        (Ctf(9000.0, pixel_size=2.0), (N, N, N), "supports images"),
        (CentralSlices(), (N, N), "supports volumes"),
        (CentralSlices(), (N, N, 4), "a cube"),
        (Fourier(0.5, FourierRadial()), (N, N, N), "mask fourierradial supports images"),
        (Composed(CentralSlices(), ONE), (N, N, N), "supports volumes"),
        (Composed(SumPool(2), CentralSlices()), (N, N, N), "gives 3 images per image"),
        (Composed(SumPool(4), ONE), (N, N, N), "does not divide"),
    ],
    ids=repr,
)
def test_other_shapes_are_refused_in_one_line(recipe, shape, message):
    with pytest.raises(IncompatibleError, match=message) as error:
        build_operator(recipe, shape, seed=0)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------------------- its rows


@pytest.mark.parametrize("part", [slice(1, 3), torch.tensor([2, 0]), torch.tensor([True, False, True])], ids=str)
@pytest.mark.parametrize("counting", [False, True])
@pytest.mark.parametrize(
    ("recipe", "shape"),
    [
        (CentralSlices(), (N, N, N)),
        (SumPool(2, 3), (8, 8)),
        (Composed(SumPool(2, 3), Fourier(0.5)), (8, 8)),
        (Composed(SumPool(2, 3), ONE), (N, N, N)),
    ],
    ids=repr,
)
def test_rows_are_those_of_the_matrix(recipe, shape, part, counting):
    whole = build_operator(recipe, shape, seed=1, dtype=torch.float64)
    numbers = torch.arange(math.prod(whole.measurement_shape)).reshape(whole.measurement_shape)
    wanted = matrix(whole)[numbers[part].flatten()]
    operator = (CountingOperator(whole) if counting else whole).rows(part)
    torch.testing.assert_close(matrix(operator), wanted, rtol=0, atol=1e-12)
    assert adjoint_gap(operator) < 1e-12
    assert operator.closed_form == (isinstance(recipe, SumPool))
    assert operator.compute_norm() == pytest.approx(float(torch.linalg.matrix_norm(wanted, 2)), rel=1e-5)
    assert operator.nominal_compression == pytest.approx(whole.nominal_compression * 3 / 2)
    y = operator.A(torch.rand((2, 1, *shape), generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    x = (torch.linalg.pinv(wanted, rtol=1e-7) @ y.flatten(1).mT).mT
    torch.testing.assert_close(operator.A_dagger(y).flatten(1), x, rtol=1e-5, atol=1e-5)


def test_all_rows_are_the_operator_itself_and_none_are_an_error():
    for recipe in (CentralSlices(), Composed(SumPool(2, 3), ONE)):
        operator = build(recipe)
        assert operator.rows(slice(None)).closed_form == operator.closed_form
        with pytest.raises(ValueError, match="selects none of 3 measurements"):
            operator.rows(slice(3, None))
    assert build(Identity()).rows(slice(0, 1)).closed_form


# --------------------------------------------------------------------------------- shapes that would broadcast wrongly


def test_one_number_per_item_must_be_as_many_as_the_items():
    like = torch.zeros((3, 1, 4, 4))
    assert per_item(torch.ones(3, 1), like).shape == (3, 1, 1, 1)
    assert per_item(torch.ones(()), like).shape == (1, 1, 1, 1)
    for count in (2, 4):
        with pytest.raises(ValueError, match=f"{count} numbers of shape"):
            per_item(torch.ones(count), like)
    with pytest.raises(ValueError, match="3 numbers of shape"):
        per_item(torch.ones(3), like[:1])


def test_an_inner_product_is_of_items_of_one_shape():
    with pytest.raises(ValueError, match=r"items of shape \[1, 4, 4\] and \[1, 1, 4\]"):
        dot(torch.ones(2, 1, 4, 4), torch.ones(2, 1, 1, 4))


def test_a_counted_operator_refuses_other_shapes():
    operator = CountingOperator(build(CentralSlices()))
    x, y = volumes(), torch.zeros((2, 3, N, N), dtype=torch.float64)
    for call, given in ((operator.A, x[..., :1]), (operator.A_adjoint, y[:, :1]), (operator.A_dagger, y[:, None]),
                        (operator.A_adjoint_A, y), (operator.on_range, x)):  # fmt: skip
        with pytest.raises(IncompatibleError, match="the operator was given") as error:
            call(given)
        assert "\n" not in str(error.value)


def test_a_result_of_another_shape_is_an_error():
    broken = build(CentralSlices())
    counted = CountingOperator(broken)
    broken.A = lambda x: x[:, 0, :1, :, :]
    broken.A_adjoint = lambda y: y[:, :1]
    with pytest.raises(PluginError, match=r"A of the operator returned shape \[2, 1, 6, 6\], expected \[2, 3, 6, 6\]"):
        counted.A(volumes())
    with pytest.raises(PluginError, match=r"A_adjoint of the operator returned shape \[2, 1, 6, 6\]"):
        counted.A_adjoint(torch.zeros((2, 3, N, N), dtype=torch.float64))


@pytest.mark.parametrize("sigma", [(2,), (2, 1, 1), (2, 1, 1, 1, 1), (2, 3, N, N), (3, 1, 1, 1)], ids=str)
def test_a_sigma_of_another_shape_is_an_error(sigma):
    operator = build(CentralSlices())
    y = torch.zeros((2, 3, N, N), dtype=torch.float64)
    with pytest.raises(IncompatibleError, match=r"sigma has shape .*, expected \[B, 1, 1, 1\]"):
        Problem(operator, y, NoNoise(), torch.zeros(sigma))
    with pytest.raises(IncompatibleError, match="y has shape"):
        Problem(operator, y[:, :1], NoNoise(), torch.zeros((2, 1, 1, 1)))
