"""cryobench operators as deepinv physics, against deepinv's adjointness test and iterations, and dense matrices."""

import math
import warnings

import deepinv as dinv
import pytest
import torch
from cryobench_deepinv import as_decomposable, as_physics
from cryobench_deepinv.decomposed import MAX_PIXELS
from deepinv_small import dense, normal, operator

import cryobench as cb
from cryobench.core import meters
from cryobench.errors import IncompatibleError

SPECS = ["identity", "sumpool:4", "sumpool:4,mask=random_gaussian", "sumpool:2,count=6", "fourier:0.4", "ctf",
         "sumpool:4,count=8@ctf"]  # fmt: skip
every_operator = pytest.mark.parametrize("spec", SPECS)
SCALE = 3.0


@every_operator
@pytest.mark.parametrize("convert", [as_physics, as_decomposable])
def test_it_passes_deepinvs_adjointness_test(spec, convert):
    physics = convert(operator(spec), scale=SCALE)
    assert physics.adjointness_test(normal(1, 1, 16, 16), num_samples=4) < 1e-9


@every_operator
def test_it_is_the_operator_over_the_scale_in_every_dtype(spec):
    A, x = operator(spec, "float32"), normal(2, 1, 16, 16)
    for dtype in (torch.float32, torch.float64):
        y = as_physics(A, scale=SCALE).A(x.to(dtype))
        assert y.dtype == dtype
        torch.testing.assert_close(SCALE * y.float(), A.A(x.float()))


@every_operator
def test_the_pseudo_inverse_is_the_minimum_norm_solution(spec):
    A = operator(spec)
    y = A.A(normal(2, 1, 16, 16))
    x = as_physics(A, scale=SCALE).A_dagger(y)
    expected = torch.linalg.pinv(dense(A) / SCALE, rtol=1e-6) @ y.flatten(1).mT
    torch.testing.assert_close(x.flatten(1).mT, expected, rtol=1e-6, atol=1e-6)


@every_operator
@pytest.mark.parametrize("gamma", [0.01, 1.0, 50.0, torch.tensor(2.0), torch.tensor([0.1, 30.0])], ids=str)
def test_the_proximal_step_is_optimal_in_deepinvs_gamma(spec, gamma):
    physics, z = as_physics(operator(spec), scale=SCALE), normal(2, 1, 16, 16)
    y = normal(2, *physics.operator.measurement_shape, seed=1)
    if physics.operator.noise_in_range:
        y = physics.operator.on_range(y)
    x = physics.prox_l2(z, y, gamma)
    gradient = torch.as_tensor(gamma).reshape(-1, 1, 1, 1) * physics.A_adjoint(physics.A(x) - y) + x - z
    assert gradient.norm() < 1e-6 * z.norm()


def test_the_proximal_step_agrees_with_deepinvs_iteration():
    A, z = operator("sumpool:4"), normal(2, 1, 16, 16)
    ours, y = as_physics(A, scale=SCALE), normal(2, *A.measurement_shape, seed=1)
    theirs = dinv.physics.LinearPhysics(A=lambda x: A.A(x) / SCALE, A_adjoint=lambda y: A.A_adjoint(y) / SCALE)
    expected = theirs.prox_l2(z, y, 0.7, max_iter=500, tol=1e-10)
    torch.testing.assert_close(ours.prox_l2(z, y, 0.7), expected, rtol=1e-5, atol=1e-7)


@every_operator
def test_the_proximal_step_is_a_projection_for_infinite_gamma_and_the_identity_for_zero(spec):
    A, z = operator(spec), normal(2, 1, 16, 16)
    y = A.A(normal(2, 1, 16, 16, seed=1))
    physics = as_physics(A)
    torch.testing.assert_close(physics.prox_l2(z, y, math.inf), z + A.A_dagger(y - A.A(z)), rtol=1e-6, atol=1e-6)
    assert torch.equal(physics.prox_l2(z, y, 0.0), z)
    torch.testing.assert_close(physics.prox_l2(None, y, 2.0), physics.prox_l2(torch.zeros_like(z), y, 2.0))
    torch.testing.assert_close(physics.prox_l2(0.5, y, 2.0), physics.prox_l2(torch.full_like(z, 0.5), y, 2.0))


@every_operator
@pytest.mark.parametrize("convert", [as_physics, as_decomposable])
def test_deepinvs_norm_is_the_square_by_default(spec, convert):
    physics, x = convert(operator(spec), scale=SCALE), normal(1, 1, 16, 16)
    before = torch.get_rng_state()
    expected = torch.linalg.svdvals(dense(operator(spec)))[0] / SCALE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        squared = physics.compute_norm(x)
    torch.testing.assert_close(squared, expected**2, rtol=1e-3, atol=0)
    unsquared = physics.compute_norm(x, squared=False)
    torch.testing.assert_close(unsquared, expected, rtol=1e-3, atol=0)
    assert torch.equal(torch.get_rng_state(), before)


@every_operator
def test_the_gradient_is_the_adjoint(spec):
    physics = as_physics(operator(spec), scale=SCALE)
    x, v = normal(1, 1, 16, 16).requires_grad_(), normal(1, *physics.operator.measurement_shape, seed=1)
    with meters.counting() as tally:
        counted = as_physics(meters.CountingOperator(physics.operator), scale=SCALE)
        (gradient,) = torch.autograd.grad((v * counted.A(x)).sum(), x)
    torch.testing.assert_close(gradient, physics.A_adjoint(v))
    assert tally.images == {"A": 1, "A_adjoint": 1}


# ------------------------------------------------------------------------------------------------------ decomposed


@every_operator
def test_the_factors_are_an_svd(spec):
    A, x = operator(spec), normal(2, 1, 16, 16)
    physics = as_decomposable(A, scale=SCALE)
    coefficients = physics.V_adjoint(x)
    torch.testing.assert_close(physics.V(coefficients), x)  # V V^T = 1, and V^T V = 1 below
    torch.testing.assert_close(physics.V_adjoint(physics.V(coefficients)), coefficients)
    torch.testing.assert_close(coefficients.norm(), x.norm())
    torch.testing.assert_close(SCALE * physics.A(x), A.A(x))
    kept = physics.mask > 0  # U^T U = 1 on the nonzero singular values
    c = torch.where(kept, normal(*coefficients.shape, seed=1), 0.0)
    torch.testing.assert_close(physics.U_adjoint(physics.U(c)), c)
    singular = physics.mask.flatten().sort(descending=True).values
    expected = torch.linalg.svdvals(dense(A)) / SCALE
    torch.testing.assert_close(singular[: len(expected)], expected, rtol=1e-6, atol=1e-7)
    assert not singular[len(expected) :].any()
    assert int(kept.sum()) == torch.linalg.matrix_rank(dense(A), rtol=1e-7)


def test_the_factors_are_computed_once_and_their_applications_are_counted():
    A = meters.CountingOperator(operator("sumpool:4"))
    as_decomposable(A)
    with meters.counting() as tally:
        physics = as_decomposable(A)
        physics.A(normal(3, 1, 16, 16))
    assert tally.images == {"V_adjoint": 3, "U": 3}


def test_a_large_operator_without_a_factorisation_is_refused_in_one_line():
    A = cb.operator("sumpool:4@deepinv_blur", shape=(64, 64))
    with pytest.raises(IncompatibleError, match="no known singular value decomposition") as error:
        as_decomposable(A)
    assert "\n" not in str(error.value)
    assert str(MAX_PIXELS) in str(error.value)


def test_an_operator_that_differs_between_images_is_decomposed_per_image():
    A = operator("ctf", images=2)
    with pytest.raises(IncompatibleError, match="differs between 2 images"):
        as_decomposable(A)
    one, x = A.select(slice(1, 2)), normal(1, 1, 16, 16)
    torch.testing.assert_close(as_decomposable(one).A(x), one.A(x))
