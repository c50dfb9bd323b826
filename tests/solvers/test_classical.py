"""`dct`, `wavelet`, `tv` and `tikhonov` minimise what they state: against cvxpy, long runs and closed formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
import torch
from convex import minimum, operator_matrix, prior_value
from particles import simulated

import cryobench as cb
from cryobench.core import MINMAX, LinearOperator, Problem, build_operator, mean_intensity
from cryobench.errors import IncompatibleError, ParameterError
from cryobench.operators.fourier import Fourier
from cryobench.operators.identity import Identity
from cryobench.operators.noise import Gaussian, NoNoise, Poisson
from cryobench.operators.sumpool import SumPool
from cryobench.rng import Rng
from cryobench.solvers.classical import Dct, Tv, Wavelet
from cryobench.solvers.methods import PrimalDual
from cryobench.solvers.pinv import Pinv, Tikhonov, expected_misfit
from cryobench.solvers.proximal import minimise

CPU = torch.device("cpu")
SOLVERS = [Dct(), Wavelet(), Tv(), Tv(kind="anisotropic")]
every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: f"{type(s).__name__}-{getattr(s, 'kind', '')}")


def images(batch=2, shape=(16, 16), dtype=torch.float64, seed=0) -> torch.Tensor:
    return torch.rand((batch, 1, *shape), generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


def measure(recipe, x: torch.Tensor, noise=None, seed=0) -> Problem:
    noise = noise or NoNoise()
    operator = build_operator(recipe, tuple(x.shape[2:]), seed=seed, dtype=x.dtype, device=CPU)
    noisy = noise.apply(operator.A(x), operator, MINMAX, rng(len(x)))
    return Problem(operator, noisy.y, noise, noisy.sigma)


def part(problem: Problem, images: slice) -> Problem:
    return replace(problem, y=problem.y[images], sigma=problem.sigma[images])


def in_double(recipe, problem: Problem) -> Problem:
    operator = build_operator(recipe, problem.operator.image_shape, seed=0, dtype=torch.float64, device=CPU)
    return Problem(operator, problem.y.double(), problem.noise, problem.sigma.double())


def rng(n: int) -> Rng:
    return Rng(0, [str(i) for i in range(n)])


def solve(solver, problem: Problem):
    return solver.solve(problem, rng=rng(problem.batch))


def psnr(x: torch.Tensor, truth: torch.Tensor) -> float:
    return float((-10 * torch.log10(((x - truth) / 2).square().mean(dim=(1, 2, 3)))).mean())


class Bare(LinearOperator):
    """An operator with A and its adjoint only, without closed forms."""

    def __init__(self, inner: LinearOperator):
        self.inner = inner
        self.image_shape, self.measurement_shape = inner.image_shape, inner.measurement_shape
        self.dtype, self.device = inner.dtype, inner.device

    def A(self, x):
        return self.inner.A(x)

    def A_adjoint(self, y):
        return self.inner.A_adjoint(y)


# ---------------------------------------------------------------------------------------- they minimise what they state


@pytest.mark.slow
@every_solver
@pytest.mark.parametrize("cut", [1.0, 2.0])
@pytest.mark.parametrize("recipe", [SumPool(4, 6), Fourier(0.4)], ids=repr)
@pytest.mark.parametrize("form", ["penalty", "constraint", "box"])
def test_the_objective_equals_that_of_a_convex_solver(solver, cut, recipe, form):
    x = images(1)
    problem = measure(recipe, x, Gaussian(rel=0.1) if form != "constraint" else None)
    if form == "constraint":
        solver = replace(solver, form="constraint", cut=cut, steps=20000, tol=1e-6)
    else:
        solver = replace(solver, lam=0.2, cut=cut, box=form == "box", steps=20000, tol=1e-6)
    answer = solve(solver, problem)
    v = cp.Variable(256)
    A, y = operator_matrix(problem.operator), problem.y.flatten().numpy()
    value = prior_value(solver.sparsity, v, (16, 16))
    if form == "constraint":
        wanted = minimum(value, [A @ v == y], tol=1e-6)
        torch.testing.assert_close(problem.operator.A(answer.x), problem.y)
    else:
        held = [v >= -1, v <= 1] if form == "box" else []
        wanted = minimum(cp.sum_squares(A @ v - y) / 2 + 0.2 * value, held, tol=1e-8)
        assert form != "box" or answer.x.abs().max() <= 1
    assert answer.info["converged"].all()
    assert float(answer.info["objective"]) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.slow
@every_solver
@pytest.mark.parametrize("cut", [1.0, None])
@pytest.mark.parametrize("noise", [None, Gaussian(rel=0.05)], ids=["exact", "noisy"])
@pytest.mark.parametrize("recipe", [SumPool(2, 2), SumPool(8, 32), Fourier(0.5)], ids=repr)
def test_the_defaults_reach_the_objective_of_a_long_run(solver, cut, noise, recipe):
    _reaches_the_objective_of_a_long_run(replace(solver, cut=cut), recipe, noise, simulated(2, 32, snr=0.5)[0])


@pytest.mark.slow
@every_solver
@pytest.mark.parametrize("noise", [None, Gaussian(rel=0.05)], ids=["exact", "noisy"])
def test_a_large_smooth_image_does_not_stop_too_early(solver, noise):
    # a stopping rule based on the step length would stop too early: steps are far shorter than the remaining distance
    _reaches_the_objective_of_a_long_run(replace(solver, cut=1.0), Fourier(0.5), noise, simulated(1, 128)[0])


def _reaches_the_objective_of_a_long_run(solver, recipe, noise, x):
    problem = measure(recipe, x, noise)
    answer = solve(solver, problem)
    assert answer.info["converged"].all()
    objective = solver.objective(in_double(recipe, problem))
    objective.lam = answer.info["lam"].double().reshape(-1, 1, 1, 1)
    objective.misfit = torch.full_like(objective.misfit, math.inf)
    reached = objective.value(answer.x.double()).flatten()
    best = minimise(PrimalDual(objective), steps=6000, tol=1e-6).info["objective"]
    torch.testing.assert_close(reached, best, rtol=1e-4, atol=0)


@every_solver
@pytest.mark.parametrize("cut", [1.0, 2.0])
def test_both_methods_find_the_same_minimum(solver, cut):
    problem = measure(SumPool(4, 6), images())
    methods = [
        replace(solver, lam=0.2, cut=cut, method=method, steps=5000, tol=2e-7) for method in ("primal_dual", "fista")
    ]
    first, second = (solve(each, problem) for each in methods)
    torch.testing.assert_close(first.info["objective"], second.info["objective"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("recipe", [SumPool(4, 6), Fourier(0.4)], ids=repr)
@pytest.mark.parametrize("method", ["primal_dual", "fista"])
def test_the_dct_solution_satisfies_the_optimality_conditions(recipe, method):
    problem, lam = measure(recipe, images()), 0.05
    solver = Dct(lam=lam, method=method, steps=20000, tol=1e-12)
    x = solve(solver, problem).x
    # 0 in A^T (A x - y) + lam dR(x): in DCT coordinates |g| <= lam, and g = -lam sign(c) where c is not zero
    g = solver.sparsity.analysis(problem.operator.A_adjoint(problem.operator.A(x) - problem.y))
    c = solver.sparsity.analysis(x)
    assert g[..., 0, 0].abs().max() < 1e-7
    g[..., 0, 0] = c[..., 0, 0] = 0
    assert g.abs().max() < lam + 1e-6
    active = c.abs() > 1e-6
    assert active.any()
    torch.testing.assert_close(g[active], -lam * c[active].sign(), rtol=0, atol=1e-6)


@every_solver
def test_denoising_is_one_prox(solver):
    x = images()
    solver = replace(solver, lam=0.3, steps=5000, tol=1e-9)
    wanted = solver.sparsity.prox(x, torch.tensor([0.3, 0.3], dtype=torch.float64).reshape(2, 1, 1, 1))
    torch.testing.assert_close(solve(solver, measure(Identity(), x)).x, wanted, atol=1e-4, rtol=0)


# --------------------------------------------------------------------------------------------- the weight and the form


@every_solver
@pytest.mark.parametrize("noise", [Gaussian(rel=0.05), Gaussian(rel=0.5), Poisson(3.0)], ids=repr)
@pytest.mark.parametrize("recipe", [SumPool(2, 2), SumPool(4, 16)], ids=repr)
def test_the_misfit_is_the_expected_norm_of_the_noise(solver, noise, recipe):
    x, _ = simulated(2, 32)
    problem = measure(recipe, x, noise)
    answer = solve(solver, problem)
    assert answer.info["converged"].all()
    torch.testing.assert_close(answer.info["misfit"], expected_misfit(problem).flatten(), rtol=0.011, atol=0)


def test_the_expected_misfit_is_that_of_noise():
    x, _ = simulated(8, 32)
    for recipe in (SumPool(2, 4), SumPool(4, 23), Fourier(0.5), Identity()):
        problem = measure(recipe, x, Gaussian(rel=0.2))
        exact = measure(recipe, x)
        noise = problem.operator.A_dagger(problem.y - exact.y)
        got = (problem.operator.A(noise).flatten(1).norm(dim=1) / expected_misfit(problem).flatten()).mean()
        assert float(got) == pytest.approx(1, abs=0.03)


@every_solver
@pytest.mark.parametrize("recipe", [SumPool(4, 6), Fourier(0.4)], ids=repr)
def test_exact_measurements_are_fitted_exactly(solver, recipe):
    problem = measure(recipe, images(dtype=torch.float32))
    answer = solve(solver, problem)
    torch.testing.assert_close(problem.operator.A(answer.x), problem.y, atol=2e-4, rtol=0)
    assert (answer.info["lam"] == 1).all()
    penalty = solve(replace(solver, form="penalty", share=0.05), problem)
    structure = problem.y - mean_intensity(problem.operator, problem.y) * problem.operator.mean_response
    ratio = penalty.info["misfit"] / structure.flatten(1).norm(dim=1)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 0.05), rtol=0.02, atol=0)


@every_solver
def test_noise_without_structure_converges(solver):
    problem = measure(SumPool(2, 4), torch.zeros(2, 1, 16, 16))
    problem = replace(problem, y=problem.y + 0.1, sigma=torch.ones(2, 1, 1, 1))
    answer = solve(solver, problem)
    assert answer.x.isfinite().all()
    constant = solve(solver, measure(SumPool(2, 2), torch.full((1, 1, 16, 16), 0.3)))
    torch.testing.assert_close(constant.x, torch.full((1, 1, 16, 16), 0.3), atol=1e-5, rtol=0)
    assert constant.info["converged"].all()


@every_solver
def test_with_full_column_rank_the_result_is_the_floor(solver):
    x = images(2, (16, 16), torch.float32)
    problem = measure(SumPool(4, 30), x)
    torch.testing.assert_close(solve(solver, problem).x, solve(Pinv(), problem).x, rtol=0, atol=0)
    assert psnr(solve(solver, problem).x, x) > 85


@every_solver
@pytest.mark.parametrize("noise", [None, Gaussian(rel=0.05)], ids=["exact", "noisy"])
def test_the_scale_of_the_operator_does_not_matter(solver, noise):
    x = images()
    small, large = measure(SumPool(4, 6), x), measure(SumPool(4, 6), x)
    large.operator.matrices.mul_(100)
    noisy = measure(SumPool(4, 6), x, noise)
    small = replace(small, y=noisy.y, sigma=noisy.sigma)
    large = Problem(large.operator, 100 * noisy.y, noisy.noise, 100 * noisy.sigma)
    torch.testing.assert_close(solve(solver, small).x, solve(solver, large).x, atol=2e-3, rtol=0)


def test_a_stated_weight_gives_the_plain_norm_and_auto_the_split():
    assert Dct(lam=0.1).sparsity.cut == 1
    assert (Dct().sparsity.cut, Wavelet().sparsity.cut, Tv().sparsity.cut) == (2.0, 2.5, 1.5)
    assert Dct(lam=0.1, cut=3.0).sparsity.cut == 3


# ------------------------------------------------------------------------------------------------------ how they run


@pytest.mark.slow
@every_solver
@pytest.mark.parametrize("method", ["primal_dual", "fista"])
def test_results_and_stopping_do_not_depend_on_the_batch(solver, method):
    x = images(3, dtype=torch.float32)
    x[1] = torch.linspace(-1, 1, 16)  # one that is done at another step
    problem = measure(SumPool(4, 6), x, Gaussian(rel=0.1))
    solver = replace(solver, method=method, form="penalty", steps=400, tol=1e-4)
    whole = solve(solver, problem)
    assert len(whole.info["iterations"].unique()) > 1
    for i in range(3):
        alone = solve(solver, part(problem, slice(i, i + 1)))
        torch.testing.assert_close(alone.x, whole.x[i : i + 1], rtol=1e-5, atol=1e-5)
        assert alone.info["iterations"][0] == whole.info["iterations"][i]


@every_solver
def test_the_stopping_reason_is_reported(solver):
    problem = measure(SumPool(4, 6), images(3))
    done, capped = solve(solver, problem), solve(replace(solver, steps=3, tol=0.0), problem)
    assert done.info["converged"].all()
    assert (done.info["gap"] <= solver.tol).all()
    assert not capped.info["converged"].any()
    assert (capped.info["iterations"] == 3).all()


@every_solver
@pytest.mark.parametrize("method", ["primal_dual", "fista"])
def test_curves_are_recorded_on_request(solver, method):
    problem = measure(SumPool(4, 6), images(2))
    solver = replace(solver, lam=0.2, method=method, trace=True, tol=1e-3)
    answer = solve(solver, problem)
    assert set(answer.curves) == {"objective", "change", "gap"}
    for i, n in enumerate(answer.info["iterations"].tolist()):
        for curve in answer.curves.values():
            assert curve[i, :n].isfinite().all()
            assert curve[i, n:].isnan().all()
        assert answer.curves["gap"][i, n - 1] == answer.info["gap"][i]
        assert answer.curves["objective"][i, n - 1] == pytest.approx(float(answer.info["objective"][i]), rel=1e-9)
        assert answer.curves["objective"][i, n - 1] <= answer.curves["objective"][i, 0]
    assert not solve(replace(solver, trace=False), problem).curves
    torch.testing.assert_close(solve(replace(solver, trace=False), problem).x, answer.x, rtol=0, atol=0)


@every_solver
@pytest.mark.parametrize("noise", [None, Gaussian(rel=0.1)], ids=["exact", "noisy"])
def test_operators_without_closed_forms_are_supported(solver, noise):
    problem = measure(SumPool(4, 6), images(), noise)
    bare = replace(problem, operator=Bare(problem.operator))
    solver = replace(solver, tol=1e-5)
    wanted, got = solve(solver, problem), solve(solver, bare)
    torch.testing.assert_close(got.x, wanted.x, atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("recipe", "solver", "expected"),
    [
        (Fourier(0.5), Dct(), "primal_dual"),
        (SumPool(8, 32), Tv(), "primal_dual"),
        (SumPool(8, 32), Dct(method="fista"), "fista"),
        (None, Wavelet(), "fista"),
        (None, Dct(box=True), "primal_dual"),
    ],
    ids=repr,
)
def test_the_method_is_chosen_per_image(recipe, solver, expected):
    x = images(3, (32, 32), torch.float32)
    problem = measure(recipe or SumPool(4, 6), x, Gaussian(rel=0.1))
    if recipe is None:
        problem = replace(problem, operator=Bare(problem.operator))
    methods = solver._methods(problem, solver.objective(problem))
    assert methods[expected].all()
    # the second image is exact: it is solved in the constraint form, which does not change the other images
    sigma = problem.sigma.clone()
    sigma[1] = 0
    mixed = replace(problem, sigma=sigma)
    solver = replace(solver, trace=True, steps=60)
    whole = solve(solver, mixed)
    for i in range(3):
        alone = solve(solver, part(mixed, slice(i, i + 1)))
        torch.testing.assert_close(alone.x, whole.x[i : i + 1], rtol=0, atol=1e-5)
        n = int(alone.info["iterations"])
        assert whole.curves["gap"][i, :n].isfinite().all()
        assert whole.curves["gap"][i, n:].isnan().all()


def test_progress_is_reported():
    seen = []
    problem = measure(SumPool(4, 6), images())
    Dct(steps=5, tol=0).solve(problem, rng=rng(2), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 5) for i in range(1, 6)]


def test_the_box_constraint_is_optional():
    x = images(dtype=torch.float32).sign()
    problem = measure(SumPool(2, 2), x)
    assert solve(Dct(cut=1.0), problem).x.abs().max() > 1.05
    held = solve(Dct(cut=1.0, box=True), problem)
    assert held.x.abs().max() <= 1
    torch.testing.assert_close(problem.operator.A(held.x), problem.y, atol=5e-3, rtol=0)


@every_solver
def test_inconsistent_constraints_are_reported_as_unconverged(solver):
    problem = measure(SumPool(2, 2), 3 * images(dtype=torch.float32))
    answer = solve(replace(solver, box=True, steps=500), problem)
    assert answer.x.isfinite().all()
    assert not answer.info["converged"].any()


def test_unsupported_images_give_a_reason():
    problem = measure(Fourier(0.5), images(1, (15, 15)))
    assert "needs even sides" in str(Wavelet().unsupported(problem))
    assert Dct().unsupported(problem) is None


@pytest.mark.parametrize("make", [Dct, Wavelet, Tv], ids=lambda c: c.__name__)
@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({"lam": -1.0}, "lam must be zero, positive or auto, got -1"),
        ({"lam": float("nan")}, "lam must be"),
        ({"lam": 0.1, "form": "constraint"}, "form=constraint has no weight"),
        ({"method": "fista", "form": "constraint"}, "method=fista supports only form=penalty"),
        ({"method": "fista", "box": True}, "method=fista"),
        ({"share": 0.0}, "share"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"tol": -1.0}, "tol"),
        ({"cut": 0.5}, "cut must be 1"),
    ],
)
def test_invalid_parameters_are_refused(make, values, wanted):
    with pytest.raises(ParameterError, match=wanted):
        make(**values)


@pytest.mark.proxtv
@pytest.mark.parametrize("noise", [None, Gaussian(rel=0.1)], ids=["exact", "noisy"])
def test_the_backend_proxtv_finds_the_same_minimum(noise):
    pytest.importorskip("prox_tv", reason="the extra proxtv is not installed")
    problem = measure(SumPool(4, 6), images(), noise)
    ours = Tv(kind="anisotropic", cut=1.0, steps=3000, tol=1e-7)
    theirs = replace(ours, backend="proxtv", tol=1e-5)
    if noise is not None:
        ours, theirs = replace(ours, lam=0.2), replace(theirs, lam=0.2)
    torch.testing.assert_close(
        solve(theirs, problem).info["objective"], solve(ours, problem).info["objective"], rtol=1e-4, atol=0
    )


# ---------------------------------------------------------------------------------------------------------- tikhonov


@pytest.mark.parametrize("recipe", [SumPool(4, 6), SumPool(4, 23), Fourier(0.4)], ids=repr)
def test_tikhonov_is_the_ridge_formula(recipe):
    problem = measure(recipe, images(), Gaussian(rel=0.1))
    A, c = operator_matrix(problem.operator), mean_intensity(problem.operator, problem.y)
    got = solve(Tikhonov(0.3), problem).x
    for y, mean, x in zip(problem.y.flatten(1).numpy(), c.flatten().tolist(), got.flatten(1).numpy(), strict=True):
        wanted = mean + np.linalg.solve(A.T @ A + 0.3 * np.eye(256), A.T @ (y - A @ np.full(256, mean)))
        np.testing.assert_allclose(x, wanted, atol=1e-8)


def test_tikhonov_by_the_noise_level_and_without_noise():
    problem = measure(SumPool(4, 16), images(), Gaussian(rel=0.1))
    answer = solve(Tikhonov(), problem)
    torch.testing.assert_close(answer.info["misfit"], expected_misfit(problem).flatten(), rtol=1e-4, atol=0)
    exact = measure(SumPool(4, 6), images())
    for solver in (Tikhonov(), Tikhonov(0.0)):
        torch.testing.assert_close(solve(solver, exact).x, solve(Pinv(), exact).x, rtol=0, atol=0)
    with pytest.raises(ParameterError, match="lam must be"):
        Tikhonov(-1.0)


# ----------------------------------------------------------------------------------------------------------- quality

CELLS = [SumPool(K, K * K // C) for K in (2, 4, 8, 16) for C in (4, 2)] + [Fourier(0.25), Fourier(0.5)]
NOISES = [NoNoise(), Gaussian(rel=0.05)]


def best_of_three(problem: Problem, truth: torch.Tensor, **parameters) -> float:
    return max(psnr(solve(make(**parameters), problem).x, truth) for make in (Dct, Wavelet, Tv))


@pytest.mark.parametrize("snr", [None, 0.3], ids=["clean", "noisy"])
@pytest.mark.parametrize("noise", NOISES, ids=["exact", "noise"])
@pytest.mark.parametrize("recipe", CELLS, ids=repr)
def test_on_simulated_particles_the_best_beats_the_floor(recipe, noise, snr):
    """Evaluated against the clean image, for measured images that are clean or mostly noise."""
    x, clean = simulated(2, 64, seed=1, snr=snr)
    problem = measure(recipe, x, noise)
    assert best_of_three(problem, clean) > psnr(solve(Pinv(), problem).x, clean)


@pytest.mark.parametrize("noise", NOISES, ids=["exact", "noise"])
@pytest.mark.parametrize("recipe", [*CELLS, *(SumPool(K, K * K) for K in (2, 4, 8, 16))], ids=repr)
def test_on_the_real_particle_the_best_is_no_worse_than_the_floor(particle, recipe, noise):
    """A nearly white image, on which hardly any prior can help: within 0.4 dB."""
    problem = measure(recipe, particle, noise)
    assert best_of_three(problem, particle) > psnr(solve(Pinv(), problem).x, particle) - 0.4


@pytest.mark.parametrize(
    ("make", "recipe", "published"),
    [
        (make, SumPool(2, count), value)
        for make, values in {Dct: (19.3, 21.0, 24.6), Wavelet: (19.4, 20.6, 24.4), Tv: (20.4, 21.7, 24.0)}.items()
        for count, value in zip((1, 2, 4), values, strict=True)
    ]
    + [(Dct, Fourier(0.5), 21.8)],
    ids=lambda value: value.__name__ if isinstance(value, type) else repr(value),
)
def test_none_is_below_its_published_recipe(particle, make, recipe, published):
    problem = measure(recipe, particle)
    assert psnr(solve(make(), problem).x, particle) > published


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("sparse:prior=tv", "tv:cut=1"),
        ("sparse:prior=wavelet,prior.family=haar,cut=2.5", "wavelet:family=haar"),
        ("sparse:prior=dct,prior.cut=2,lam=0.1", "dct:lam=0.1,cut=2"),
    ],
)
def test_sparse_with_a_prior_equals_the_named_solver(spec, named):
    A = cb.operator("sumpool:4", shape=(16, 16))
    y = A.A(torch.rand((2, 1, 16, 16), generator=torch.Generator().manual_seed(0)))
    assert torch.equal(cb.solve(spec, A, y), cb.solve(named, A, y))


def test_other_priors_are_refused():
    with pytest.raises(IncompatibleError, match="requires a sparsity prior"):
        cb.solver("sparse:prior=embedded")
