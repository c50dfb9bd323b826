"""FISTA minimises what it states, per image, and the DCT prior is the scipy DCT."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft
import scipy.optimize
import torch

from cryobench.core import Problem
from cryobench.errors import ParameterError
from cryobench.operators.fourier import Fourier
from cryobench.operators.identity import Identity
from cryobench.operators.noise import NoNoise
from cryobench.operators.sumpool import SumPool
from cryobench.priors.dct import DctSparsity
from cryobench.rng import Rng
from cryobench.solvers.proximal import Dct

CPU = torch.device("cpu")


def images(batch=2, shape=(16, 16), dtype=torch.float64, seed=0) -> torch.Tensor:
    return torch.rand((batch, 1, *shape), generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


def problem(recipe, x: torch.Tensor) -> Problem:
    operator = recipe.build(tuple(x.shape[2:]), seed=0, dtype=x.dtype, device=CPU)
    return Problem(operator, operator.A(x), NoNoise(), x.new_zeros((len(x), 1, 1, 1)))


def solve(solver: Dct, given: Problem):
    return solver.solve(given, rng=Rng(0, [str(i) for i in range(given.batch)]))


def test_the_transform_is_scipys_and_orthonormal():
    x = images(3, (12, 20))
    c = DctSparsity().analysis(x)
    np.testing.assert_allclose(c.numpy(), scipy.fft.dctn(x.numpy(), axes=(2, 3), norm="ortho"), atol=1e-12)
    torch.testing.assert_close(DctSparsity().synthesis(c), x)


def test_the_prox_is_the_minimiser_and_keeps_the_mean():
    z = images(2, (4, 4))
    t = torch.tensor([0.2, 0.5], dtype=torch.float64).reshape(2, 1, 1, 1)
    x = DctSparsity().prox(z, t)
    torch.testing.assert_close(x.mean(dim=(2, 3)), z.mean(dim=(2, 3)))
    before, after = (scipy.fft.dctn(image.numpy(), axes=(2, 3), norm="ortho") for image in (z, x))
    for index in np.ndindex(before.shape):
        if index[2:] != (0, 0):
            weight = float(t[index[0]])
            best = scipy.optimize.minimize_scalar(
                lambda c, index=index, weight=weight: 0.5 * (c - before[index]) ** 2 + weight * abs(c),
                bounds=(-5, 5),
                method="bounded",
                options={"xatol": 1e-10},
            )
            assert after[index] == pytest.approx(best.x, abs=1e-5)


@pytest.mark.parametrize("recipe", [SumPool(4, 6), Fourier(0.4)], ids=repr)
def test_the_solution_satisfies_the_optimality_conditions(recipe):
    given = problem(recipe, images())
    lam = 0.05
    x = solve(Dct(lam=lam, steps=20000, tol=1e-14), given).x
    # 0 in A^T (A x - y) + lam dR(x): in DCT coordinates |g| <= lam, and g = -lam sign(c) where c is not zero
    g = DctSparsity().analysis(given.operator.A_adjoint(given.operator.A(x) - given.y))
    c = DctSparsity().analysis(x)
    assert g[..., 0, 0].abs().max() < 1e-7
    g[..., 0, 0] = c[..., 0, 0] = 0
    assert g.abs().max() < lam + 1e-6
    active = c.abs() > 1e-6
    assert active.any()
    torch.testing.assert_close(g[active], -lam * c[active].sign(), rtol=0, atol=1e-6)


def test_denoising_is_one_prox():
    x = images()
    given = problem(Identity(), x)
    torch.testing.assert_close(
        solve(Dct(lam=0.3), given).x, DctSparsity().prox(x, torch.tensor(0.3, dtype=torch.float64))
    )


def test_the_weight_chosen_shrinks_in_proportion_to_the_operator():
    x = images()
    small, large = problem(SumPool(4, 6), x), problem(SumPool(4, 6), x)
    large.operator.matrices.mul_(10)
    large = Problem(large.operator, large.operator.A(x), NoNoise(), large.sigma)
    torch.testing.assert_close(solve(Dct(), small).x, solve(Dct(), large).x, rtol=1e-6, atol=1e-6)
    constant = solve(Dct(share=1.0, steps=5000, tol=1e-12), small).x
    assert constant.std(dim=(2, 3)).max() < 1e-3


def test_an_image_stops_on_its_own_and_is_the_same_alone():
    x = images(8, dtype=torch.float32)
    x[3] = x[3] * 0.01 + 0.5  # one image that is done at another step
    given = problem(SumPool(4, 6), x)
    whole = solve(Dct(lam=0.1), given)
    assert len(whole.info["iterations"].unique()) > 1
    for i in range(8):
        alone = solve(Dct(lam=0.1), Problem(given.operator, given.y[i : i + 1], NoNoise(), given.sigma[i : i + 1]))
        torch.testing.assert_close(alone.x, whole.x[i : i + 1], rtol=1e-5, atol=1e-5)
    assert solve(Dct(lam=0.1, steps=5000), given).info["converged"].all()
    assert not solve(Dct(lam=0.1, steps=2), given).info["converged"].any()


def test_progress_is_told():
    seen = []
    given = problem(SumPool(4, 6), images())
    Dct(steps=5, tol=0).solve(given, rng=Rng(0, ["0", "1"]), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 5) for i in range(1, 6)]


@pytest.mark.parametrize(
    "values", [{"lam": -1.0}, {"lam": float("nan")}, {"share": 0.0}, {"share": 2.0}, {"steps": 0}, {"tol": -1.0}]
)
def test_impossible_parameters_are_refused(values):
    with pytest.raises(ParameterError):
        Dct(**values)
