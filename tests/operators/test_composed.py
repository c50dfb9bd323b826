"""`outer@inner`: closed forms if both parts share a basis, else iterations that converge to the dense solution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from optics import CPU, dense, live, rows, taken

from cryobench.core import MINMAX, Imaging, LinearOperator, adjoint_gap, build_operator, check_operator
from cryobench.core.meters import CountingOperator, counting
from cryobench.errors import IncompatibleError
from cryobench.numerics.linalg import conjugate_gradients
from cryobench.operators.composed import Composed, ComposedOperator
from cryobench.operators.ctf import Ctf
from cryobench.operators.fourier import Fourier, FourierOperator
from cryobench.operators.identity import Identity
from cryobench.operators.masks import RandomGaussian
from cryobench.operators.noise import Gaussian
from cryobench.operators.spectral import SpectralOperator
from cryobench.operators.sumpool import SumPool
from cryobench.rng import Rng

OWN = Ctf()
RECIPES = [
    Composed(SumPool(4, 8), OWN),
    Composed(SumPool(2, 1), OWN),
    Composed(SumPool(2, 4), OWN),  # random blocks, many of them singular
    Composed(SumPool(4, 20), OWN),  # nothing is lost but what the CTF loses
    Composed(SumPool(8, 16, RandomGaussian()), OWN),
    Composed(Fourier(0.5), OWN),
    Composed(OWN, Fourier(0.5)),
    Composed(Identity(), OWN),
    Composed(OWN, Identity()),
    Composed(OWN, OWN),
    Composed(OWN, SumPool(2, 1)),
    Composed(SumPool(4, 20), Fourier(0.3)),  # more measurements than the spectrum has: y can contradict itself
    Composed(SumPool(2, 3), Composed(SumPool(2, 1), OWN)),
    Composed(SumPool(4, 6), Composed(Fourier(0.6), OWN)),
]
GAMMAS = (1e-3, 0.7, 40.0, 1e4)
SHAPE = (16, 16)
compositions = pytest.mark.parametrize("recipe", RECIPES, ids=repr)


def images(n, shape=SHAPE, dtype=torch.float64, seed=0):
    return torch.randn((n, *((1,) if len(shape) == 2 else ()), *shape),
                       generator=torch.Generator().manual_seed(seed), dtype=dtype)  # fmt: skip


def matrices(operator: LinearOperator) -> np.ndarray:
    """That of each image, [B, m, N]."""
    return dense(operator) if operator.images else np.stack([dense(operator)] * 3)


def flat(x: torch.Tensor) -> np.ndarray:
    return x.flatten(1).double().numpy()


@compositions
def test_it_applies_the_inner_operator_and_then_the_outer(recipe):
    operator, x = live(recipe, taken(3, SHAPE)), images(3)
    inner = live(recipe.inner, taken(3, SHAPE))
    outer = live(recipe.outer, taken(3, inner.measurement_shape[1:], pixel_size=2 * 16 / inner.measurement_shape[1]))
    torch.testing.assert_close(operator.A(x), outer.A(inner.A(x)))
    torch.testing.assert_close(operator.A_adjoint_A(x), operator.A_adjoint(operator.A(x)))
    assert tuple(operator.measurement_shape) == tuple(operator.A(x).shape[1:]) == recipe.check(taken(len(x), SHAPE))
    assert operator.nominal_compression == pytest.approx(outer.nominal_compression * inner.nominal_compression)
    for seed in range(3):
        assert adjoint_gap(operator, seed=seed) < 1e-12
    torch.testing.assert_close(
        operator.mean_response, operator.A(torch.ones(3, 1, *SHAPE).double())[: len(operator.mean_response)]
    )


@compositions
def test_the_pseudo_inverse_against_numpy(recipe):
    """Of measurements that need not be consistent."""
    operator = live(recipe, taken(3, SHAPE))
    y = images(3, operator.measurement_shape, seed=1)
    found = flat(operator.A_dagger(y))
    for A, measured, x in zip(matrices(operator), flat(y), found, strict=True):
        wanted = np.linalg.pinv(A, rcond=1e-9) @ measured
        np.testing.assert_allclose(x, wanted, atol=1e-7 * np.abs(wanted).max())


@compositions
def test_proximal_step_and_filter_against_numpy(recipe):
    operator = live(recipe, taken(3, SHAPE))
    y, z = images(3, operator.measurement_shape, seed=1), images(3, seed=2)
    each = torch.tensor([0.05, 30.0, np.inf], dtype=torch.float64).reshape(3, 1, 1, 1)
    filtered = flat(operator.A_dagger_A(z, each))
    steps = {gamma: flat(operator.prox_l2(z, y, gamma)) for gamma in GAMMAS}
    for i, A in enumerate(matrices(operator)):
        normal, unit = A.T @ A, np.eye(A.shape[1])
        for gamma, found in steps.items():
            wanted = np.linalg.solve(normal + unit / gamma, A.T @ flat(y)[i] + flat(z)[i] / gamma)
            np.testing.assert_allclose(found[i], wanted, atol=1e-7 * np.abs(wanted).max())
        gamma = each[i].item()
        wanted = (np.linalg.pinv(A, rcond=1e-9) @ A if np.isinf(gamma) else
                  np.linalg.solve(normal + unit / gamma, normal)) @ flat(z)[i]  # fmt: skip
        np.testing.assert_allclose(filtered[i], wanted, atol=1e-7 * np.abs(wanted).max())


@compositions
def test_norm_and_rank_against_numpy(recipe):
    operator = live(recipe, taken(3, SHAPE))
    A = matrices(operator)
    assert operator.compute_norm() == pytest.approx(max(np.linalg.norm(one, 2) for one in A), rel=1e-3)
    ranks = [np.linalg.matrix_rank(one, tol=1e-9 * np.linalg.norm(one, 2)) for one in A]
    assert operator.rank >= max(ranks)
    exact = not (isinstance(recipe.inner, Composed) and isinstance(operator, ComposedOperator))
    assert operator.rank == ranks[0] or not exact


@compositions
def test_single_precision_agrees_with_double(recipe):
    imaging = taken(3, (32, 32))
    double, single = live(recipe, imaging), live(recipe, imaging, torch.float32)
    x, z = images(3, (32, 32)), images(3, (32, 32), seed=2)
    for gamma in (0.7, 40.0):
        wanted = double.prox_l2(z, double.A(x), gamma)
        got = single.prox_l2(z.float(), double.A(x).float(), gamma)
        assert (got - wanted).norm() < 2e-5 * wanted.norm()
    wanted, got = double.A_dagger_A(x), single.A_dagger_A(x.float())
    assert (got - wanted).norm() < 2e-5 * wanted.norm()


@compositions
def test_results_do_not_depend_on_the_batch(recipe):
    """Bit for bit: an inner iteration that stopped one step earlier would change the fifth digit."""
    imaging, shape = taken(9, (32, 32)), (32, 32)
    operator, x = live(recipe, imaging, torch.float32), images(9, shape, torch.float32)
    y, gamma = operator.A(x), torch.rand(9, 1, 1, 1, generator=torch.Generator().manual_seed(3)) * 5
    alone = live(recipe, rows(imaging, [5]), torch.float32)
    for own, chosen in ((operator.select(slice(3, 6)), slice(3, 6)), (alone, slice(5, 6)),
                        (operator.select(torch.tensor([7, 2])), torch.tensor([7, 2]))):  # fmt: skip
        assert torch.equal(own.A(x[chosen]), y[chosen])
        assert torch.equal(own.A_dagger(y[chosen]), operator.A_dagger(y)[chosen])
        assert torch.equal(own.A_dagger_A(x[chosen], gamma[chosen]), operator.A_dagger_A(x, gamma)[chosen])
        assert torch.equal(own.prox_l2(x[chosen], 1 + y[chosen], 0.3), operator.prox_l2(x, 1 + y, 0.3)[chosen])


def test_norm_and_rank_are_those_of_all_images_in_every_part():
    operator = live(Composed(SumPool(4, 8), OWN), taken(5, SHAPE))
    chosen = operator.select(slice(1, 3))
    assert chosen.images == 2
    assert chosen.select(slice(1, 2)).compute_norm() == chosen.compute_norm() == operator.compute_norm()
    assert chosen.rank == operator.rank
    assert CountingOperator(operator).select(slice(0, 1)).compute_norm() == operator.compute_norm()


def test_closed_forms_are_used_without_iteration():
    imaging = taken(3, SHAPE)
    for recipe in RECIPES[5:10]:
        operator = live(recipe, imaging)
        assert isinstance(operator, SpectralOperator)
        assert operator.closed_form
    assert isinstance(live(Composed(Identity(), Fourier(0.5)), imaging), FourierOperator)
    assert not live(RECIPES[0], imaging).closed_form


@pytest.mark.parametrize("recipe", RECIPES[:3], ids=repr)
@pytest.mark.parametrize("gamma", [1e3, np.inf])
def test_the_preconditioner_reduces_the_steps_and_the_error(recipe, gamma):
    shape = (64, 64)
    operator, x = live(recipe, taken(2, shape)), images(2, shape)
    operator.cg_tol = 1e-6
    exact = live(recipe, taken(2, shape))
    exact.cg_tol = 1e-12
    wanted = exact.A_dagger_A(x, gamma)

    def run(way) -> tuple[float, float]:
        operator.inner = CountingOperator(live(recipe.inner, taken(2, shape)))
        with counting() as calls:
            found = way(x, gamma)
        return calls.images["A"] / 2, float((found - wanted).norm() / wanted.norm())

    steps, error = run(operator.A_dagger_A)
    plain_steps, plain_error = run(lambda *given: LinearOperator.A_dagger_A(operator, *given))
    assert error < 5e-6
    assert steps < 0.8 * plain_steps
    assert error < plain_error


def test_noise_comes_after_the_outer_operator():
    operator = live(Composed(Fourier(0.4), SumPool(2, 1)), Imaging((32, 32)))
    assert operator.noise_in_range
    y = operator.A(images(3, (32, 32)))
    noise = Gaussian(0.1).apply(y, operator, MINMAX, Rng(0, list("abc"))).y - y
    torch.testing.assert_close(operator.outer.on_range(noise), noise)
    ctf = live(Composed(OWN, Fourier(0.4)), taken(3, SHAPE))
    assert not ctf.noise_in_range  # white: detector noise is added after the inner operator
    assert live(Composed(SumPool(4), Fourier(0.4)), Imaging(SHAPE)).noise_in_range is False
    assert live(Composed(Fourier(0.5), OWN), taken(3, SHAPE)).noise_in_range


def test_only_compositions_of_nonnegative_operators_are_nonnegative():
    assert live(Composed(SumPool(2), SumPool(2, 1)), Imaging(SHAPE)).nonnegative
    assert not live(Composed(SumPool(2), OWN), taken(1, SHAPE)).nonnegative


def test_composition_is_associative():
    a, b, c = SumPool(2, 2), SumPool(2, 1), OWN
    left, right = Composed(Composed(a, b), c), Composed(a, Composed(b, c))
    assert left == right
    assert hash(left) == hash(right)


def test_the_outer_operator_sees_the_pixels_of_the_inner_one():
    """A CTF after pooling by 2 is that of pixels twice as large."""
    operator = live(Composed(OWN, SumPool(2, 1)), taken(2, SHAPE, pixel_size=1.5))
    torch.testing.assert_close(operator.outer.transfer, live(OWN, taken(2, (8, 8), pixel_size=3.0)).transfer)


@pytest.mark.parametrize(
    ("recipe", "shape", "wanted"),
    [
        (Composed(OWN, SumPool(2, 3)), (16, 16), "gives 3 images per image, the outer operator requires one"),
        (Composed(SumPool(16), SumPool(2, 1)), (16, 16), "sumpool:16 does not divide images of 8 x 8"),
        (Composed(SumPool(2), SumPool(3, 1)), (16, 16), "sumpool:3 does not divide"),
        (Composed(OWN, SumPool(2, 1)), (16, 24), None),
        (Composed(SumPool(4), Ctf(pixel_size=2.0)), (16, 16), None),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_any_work(recipe, shape, wanted):
    if wanted is None:
        check_operator(recipe, taken(2, shape))
        return
    with pytest.raises(IncompatibleError, match=wanted) as raised:
        check_operator(recipe, taken(2, shape))
    assert "\n" not in str(raised.value)


def test_parts_without_a_stated_shape_are_refused_when_built():
    class Silent(SumPool):
        def check(self, imaging):
            return None

    recipe = Composed(OWN, Silent(2, 3))
    check_operator(recipe, taken(2, SHAPE))
    with pytest.raises(IncompatibleError, match="gives 3 images"):
        live(recipe, taken(2, SHAPE))


def test_a_preconditioner_changes_the_steps_and_not_the_solution():
    scale = torch.logspace(0, 4, 64, dtype=torch.float64).reshape(1, 1, 8, 8)
    b, steps = images(2, (8, 8)), []

    def apply(p, *_):
        steps.append(1)
        return scale * p + 0.1 * p.mean(dim=(2, 3), keepdim=True)

    def solve(**options):
        steps.clear()
        return conjugate_gradients(apply, b, tol=1e-12, max_steps=1000, **options), len(steps)

    plain, many = solve()
    better, few = solve(precondition=lambda r: (r / scale, r))
    torch.testing.assert_close(better, plain, rtol=1e-9, atol=1e-9)
    assert few < many / 5


def test_the_device_and_dtype_are_those_requested():
    operator = build_operator(RECIPES[0], taken(2, SHAPE), seed=0, dtype=torch.float32, device=CPU)
    assert (operator.dtype, operator.device, operator.cg_tol) == (torch.float32, CPU, 1e-6)
