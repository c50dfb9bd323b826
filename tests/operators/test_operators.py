"""Every operator x mask against properties and against numpy's dense linear algebra."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from cryobench.core import Imaging, LinearOperator, adjoint_gap, build_operator
from cryobench.core.meters import CountingOperator, counting
from cryobench.errors import IncompatibleError, ParameterError
from cryobench.operators.composed import Composed
from cryobench.operators.ctf import Ctf
from cryobench.operators.fourier import Fourier, FourierOperator
from cryobench.operators.identity import Identity
from cryobench.operators.masks import (
    Checkerboard,
    FourierRadial,
    FourierRing,
    RandomBinary,
    RandomFourier,
    RandomGaussian,
    Superres,
)
from cryobench.operators.sumpool import SumPool, SumPoolOperator

CPU = torch.device("cpu")
PIXEL_MASKS = [RandomBinary(), RandomBinary(0.3), RandomGaussian(), Checkerboard(), Superres()]
FOURIER_MASKS = [
    mask(hermitian=hermitian)
    for mask, hermitian in itertools.product((RandomFourier, FourierRing, FourierRadial), (False, True))
]
RECIPES = [
    Identity(),
    *(SumPool(4, count, mask) for mask in PIXEL_MASKS for count in (1, 5, 16, 23)),
    SumPool(1),
    SumPool(8, mask=RandomGaussian()),
    *(Fourier(rho, mask) for mask in FOURIER_MASKS for rho in (0.25, 0.5)),
    Ctf(9000.0, 800.0, 30.0, pixel_size=3.0),
    Ctf(7000.0, b_factor=100.0, pixel_size=2.5, phase_flipped=True),
    Composed(Fourier(0.5), Ctf(9000.0, 800.0, 30.0, pixel_size=3.0)),
]
SHAPES = [(16, 16), (8, 24)]
ODD = [*((recipe, (15, 9)) for recipe in RECIPES if not isinstance(recipe, SumPool)), (SumPool(3, 4), (15, 9))]
CASES = [*itertools.product(RECIPES, SHAPES), *ODD]


def name(value: object) -> str:
    return repr(value)


cases = pytest.mark.parametrize(("recipe", "shape"), CASES, ids=name)


def build(recipe, shape, dtype=torch.float64) -> LinearOperator:
    return build_operator(recipe, shape, seed=3, dtype=dtype, device=CPU)


def images(shape, batch=3, dtype=torch.float64, seed=0) -> torch.Tensor:
    return torch.rand((batch, 1, *shape), generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


def dense(operator: LinearOperator) -> np.ndarray:
    """The matrix of A, [m, N], column by column."""
    N = operator.image_shape[0] * operator.image_shape[1]
    basis = torch.eye(N, dtype=operator.dtype).reshape(N, 1, *operator.image_shape)
    return operator.A(basis).reshape(N, -1).T.numpy()


@cases
def test_the_adjoint_is_exact_in_single_precision(recipe, shape):
    operator = build(recipe, shape, torch.float32)
    for seed in range(5):
        assert adjoint_gap(operator, seed=seed) < 1e-5


@cases
def test_shapes_and_linearity(recipe, shape):
    operator = build(recipe, shape)
    x, z = images(shape, seed=1), images(shape, seed=2)
    y = operator.A(x)
    assert tuple(y.shape) == (3, *operator.measurement_shape)
    assert operator.A_adjoint(y).shape == x.shape
    torch.testing.assert_close(operator.A(2 * x - 3 * z), 2 * y - 3 * operator.A(z))
    torch.testing.assert_close(operator.A_adjoint_A(x), operator.A_adjoint(y))


@cases
def test_rank_and_norm_against_an_svd(recipe, shape):
    operator = build(recipe, shape)
    singular = np.linalg.svd(dense(operator), compute_uv=False)
    assert operator.compute_norm() == pytest.approx(singular[0], rel=1e-10)
    assert operator.rank == (singular > 1e-9 * singular[0]).sum()
    assert operator.effective_compression == shape[0] * shape[1] / operator.rank


@cases
def test_the_pseudo_inverse_against_numpy(recipe, shape):
    operator = build(recipe, shape)
    y = torch.randn((2, *operator.measurement_shape), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = y.reshape(2, -1).numpy() @ np.linalg.pinv(dense(operator), rcond=1e-9).T
    got = operator.A_dagger(y).reshape(2, -1).numpy()
    np.testing.assert_allclose(got, wanted, rtol=1e-7, atol=1e-7 * np.abs(wanted).max())


@cases
@pytest.mark.parametrize("gamma", [1e-3, 0.7, 40.0])
def test_the_proximal_step_solves_its_normal_equations(recipe, shape, gamma):
    operator = build(recipe, shape)
    z, y = images(shape, seed=4), operator.A(images(shape, seed=5)) + 0.1
    x = operator.prox_l2(z, y, gamma)
    # A^T (A x - y) + (x - z) / gamma = 0
    gradient = operator.A_adjoint(operator.A(x) - y) + (x - z) / gamma
    assert gradient.abs().max() < 1e-9 * (operator.compute_norm() ** 2 + 1 / gamma) * 10


@cases
@pytest.mark.parametrize("gamma", [1.0, 1e5])
def test_the_proximal_step_in_single_precision_is_that_in_double(recipe, shape, gamma):
    single, double = (build(recipe, shape, dtype) for dtype in (torch.float32, torch.float64))
    z, y = images(shape, seed=4), double.A(images(shape, seed=5)) + 0.1
    wanted = double.prox_l2(z, y, gamma)
    got = single.prox_l2(z.float(), y.float(), gamma)
    # rounding of the residual, amplified by at most 1 / (2 sqrt(s)) of the smallest eigenvalue that is not null
    smallest = double.eigenvalues[double.eigenvalues > double.eigenvalue_tolerance].min()
    bound = 1e-6 * float(y.abs().max()) * (1 + double.compute_norm() / float(smallest))
    assert (got - wanted).abs().max() < max(bound, 1e-5)


@cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_measured_component_against_numpy(recipe, shape, dtype):
    """A_dagger_A: the projection on the range of A^T at gamma = inf, its Tikhonov filter below, per image."""
    operator, x = build(recipe, shape, dtype), images(shape, 3, dtype)
    matrix = build(recipe, shape).A(torch.eye(x[0].numel(), dtype=torch.float64).reshape(-1, 1, *shape)).flatten(1).mT
    _, s, V = np.linalg.svd(matrix.numpy(), full_matrices=False)
    s2, gamma = s**2, torch.tensor([0.01, 7.0, np.inf], dtype=dtype).reshape(3, 1, 1, 1)
    kept = s2 > 1e-10 * s2.max()
    wanted = []
    for v, g in zip(x.flatten(1).double().numpy(), gamma.flatten().tolist(), strict=True):
        weight = np.zeros_like(s2)
        weight[kept] = s2[kept] / (s2[kept] + 1 / g)
        wanted.append(V.T @ (weight * (V @ v)))
    tolerance = 1e-9 if dtype is torch.float64 else 2e-5
    got = operator.A_dagger_A(x, gamma).flatten(1).double().numpy()
    np.testing.assert_allclose(got, np.stack(wanted), atol=tolerance)
    everywhere = operator.A_dagger_A(x)
    np.testing.assert_allclose(everywhere[2:].flatten(1).double().numpy(), wanted[2:], atol=tolerance)
    np.testing.assert_allclose(operator.A_dagger_A(everywhere), everywhere, atol=tolerance)


@cases
def test_the_proximal_step_from_a_solution_is_the_proximal_step(recipe, shape):
    operator = build(recipe, shape)
    z, y = images(shape, seed=4), operator.A(images(shape, seed=5)) + 0.1
    torch.testing.assert_close(z + operator.A_dagger_A(operator.A_dagger(y) - z, 0.7), operator.prox_l2(z, y, 0.7))


@pytest.mark.parametrize("recipe", [Identity(), SumPool(4), SumPool(4, 23), Fourier(0.5)], ids=name)
def test_the_default_iterations_agree_with_the_closed_forms(recipe):
    closed = build(recipe, (16, 16))

    class Bare(LinearOperator):
        """The same operator with A and its adjoint only."""

        image_shape, measurement_shape = closed.image_shape, closed.measurement_shape
        dtype, device, cg_tol = closed.dtype, closed.device, 1e-13

        def A(self, x):
            return closed.A(x)

        def A_adjoint(self, y):
            return closed.A_adjoint(y)

    bare, x = Bare(), images((16, 16))
    y = closed.A(x)
    torch.testing.assert_close(bare.A_dagger(y), closed.A_dagger(y), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(bare.prox_l2(x, y + 1, 0.3), closed.prox_l2(x, y + 1, 0.3), rtol=1e-8, atol=1e-8)
    for gamma in (0.3, np.inf, torch.tensor([0.2, 9.0, np.inf], dtype=x.dtype).reshape(3, 1, 1, 1)):
        torch.testing.assert_close(bare.A_dagger_A(x, gamma), closed.A_dagger_A(x, gamma), rtol=1e-8, atol=1e-8)
    assert closed.closed_form
    assert not bare.closed_form
    assert bare.compute_norm() == pytest.approx(closed.compute_norm(), rel=1e-3)


@cases
def test_gradients_flow_through_the_operator(recipe, shape):
    operator = build(recipe, shape)
    x = images(shape).requires_grad_()
    y = operator.A(images(shape, seed=9))
    (gradient,) = torch.autograd.grad(0.5 * (operator.A(x) - y).square().sum(), x)
    torch.testing.assert_close(gradient, operator.A_adjoint(operator.A(x) - y).detach())


@cases
def test_measurements_do_not_depend_on_the_batch(recipe, shape):
    operator, x = build(recipe, shape, torch.float32), images(shape, 8, torch.float32)
    y = operator.A(x)
    for method, batch in ((operator.A, x), (operator.A_adjoint, y), (operator.A_dagger, y)):
        whole = method(batch)
        torch.testing.assert_close(method(batch[5:6]), whole[5:6], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "recipe",
    [
        *(SumPool(2, 1), SumPool(4, 4), SumPool(4, 16), SumPool(8, 4), Fourier(0.5)),
        *(Ctf(9000.0, 800.0, pixel_size=3.0), Composed(SumPool(4, 4), Ctf(9000.0, 800.0, pixel_size=3.0))),
    ],
    ids=name,
)
def test_the_size_of_a_batch_does_not_change_the_rounding(recipe):
    """Sizes for which torch changes its kernel between one image and many; iterations would amplify the difference."""
    operator, x = build(recipe, (64, 64), torch.float32), images((64, 64), 17, torch.float32)
    y = operator.A(x)
    for method, batch in (
        (operator.A, x),
        (operator.A_adjoint, y),
        (operator.A_adjoint_A, x),
        (operator.A_dagger, y),
        (operator.A_dagger_A, x),
    ):
        whole = method(batch)
        for part in (slice(1), slice(2), slice(8), slice(13, 14), slice(5, 17)):
            assert (method(batch[part]) - whole[part]).abs().max() <= 1e-7 * whole.abs().max()


def test_sum_pooling_equals_its_definition():
    operator = build(SumPool(4, 3), (8, 12))
    x = images((8, 12), 2)
    masks = RandomBinary().draw(3, (8, 12), 3).double()
    wanted = 16 * torch.nn.functional.avg_pool2d(masks * x, 4)
    torch.testing.assert_close(operator.A(x), wanted)


def test_fourier_equals_its_definition():
    mask = RandomFourier().draw(0.4, (15, 12), 0)
    operator = FourierOperator(mask, nominal_compression=2.5, dtype=torch.float64, device=CPU)
    x = images((15, 12), 2)
    wanted = torch.fft.ifft2(torch.fft.ifftshift(mask.double()) * torch.fft.fft2(x)).real
    torch.testing.assert_close(operator.A(x), wanted)


def test_effective_compression_is_that_of_the_rank():
    def compression(recipe):
        operator = build(recipe, (64, 64))
        return operator.nominal_compression, operator.effective_compression

    nominal, effective = compression(SumPool(2, 4))
    assert nominal == 1.0
    assert 1 / effective == pytest.approx(0.81, abs=0.03)  # random binary 4 x 4 matrices are often singular
    assert compression(SumPool(4, 7, Superres()))[1] == 16.0  # rank one a block, whatever M is
    nominal, effective = compression(Fourier(0.3))
    assert nominal == pytest.approx(1 / 0.3)
    assert 1 / effective == pytest.approx(1 - 0.7**2, abs=0.03)  # k alone also determines -k
    assert 1 / compression(Fourier(0.3, RandomFourier(hermitian=True)))[1] == pytest.approx(0.3, abs=0.03)
    assert SumPool(16).masks_drawn == 64
    assert SumPool(3).masks_drawn == 3


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda: SumPool(7).check(Imaging((128, 128))), "block sizes that do: 1, 2, 4, 8, 16, 32, 64, 128"),
        (lambda: SumPool(0), "at least 1 pixel, got 0"),
        (lambda: SumPool(4, 0), "at least 1 mask, got 0"),
        (lambda: SumPool(4, mask=RandomFourier()), "requires a pixel mask"),
        (lambda: Fourier(0.5, mask=RandomBinary()), "requires a Fourier mask"),
        (lambda: Fourier(1.5), "got 1.5"),
        (lambda: Fourier(float("nan")), "got nan"),
        (lambda: RandomBinary(0), "got 0"),
        (lambda: Checkerboard(tile=0), "got 0"),
    ],
)
def test_invalid_operators_are_refused(make, wanted):
    with pytest.raises((IncompatibleError, ParameterError), match=wanted):
        make()


def test_the_counting_operator_counts_per_image_and_changes_no_result():
    inner = build(SumPool(4, 3), (8, 8))
    operator, x = CountingOperator(inner), images((8, 8), 2)
    with counting() as calls:
        y = operator.A(x)
        operator.A_adjoint(y[:1])
        operator.A_adjoint_A(x)
        operator.A_dagger(y)
        operator.A_dagger_A(x)
        operator.prox_l2(x, y, 1.0)
    operator.A(x)  # outside: not counted
    assert calls.images == {"A": 2, "A_adjoint": 1, "A_adjoint_A": 2, "A_dagger": 2, "A_dagger_A": 2, "prox_l2": 2}
    assert operator.closed_form
    assert operator.matrices is inner.matrices
    assert operator.rank == inner.rank
    assert isinstance(inner, SumPoolOperator)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    "recipe",
    [
        *(Identity(), SumPool(4), SumPool(4, 23), Fourier(0.5)),
        *(Ctf(9000.0, 800.0, pixel_size=3.0), Composed(SumPool(4), Ctf(9000.0, pixel_size=3.0))),
    ],
    ids=name,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cuda_agrees_with_the_cpu(recipe, dtype):
    here = build_operator(recipe, (16, 16), seed=3, dtype=dtype, device=CPU)
    there = build_operator(recipe, (16, 16), seed=3, dtype=dtype, device=torch.device("cuda"))
    x = images((16, 16), dtype=dtype)
    y = here.A(x)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype is torch.float32 else {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(there.A(x.cuda()).cpu(), y, **tolerance)
    torch.testing.assert_close(there.A_dagger(y.cuda()).cpu(), here.A_dagger(y), **tolerance)
    torch.testing.assert_close(there.A_dagger_A(x.cuda(), 0.5).cpu(), here.A_dagger_A(x, 0.5), **tolerance)
    torch.testing.assert_close(there.prox_l2(x.cuda(), y.cuda(), 0.5).cpu(), here.prox_l2(x, y, 0.5), **tolerance)
    assert there.compute_norm() == pytest.approx(here.compute_norm(), rel=1e-6)
