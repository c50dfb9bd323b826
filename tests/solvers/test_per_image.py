"""Every solver where each image was measured in its own way: nothing of one image's optics reaches another's answer."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from optics import live, measure, part, taken
from particles import simulated

from cryobench.operators.composed import Composed
from cryobench.operators.ctf import Ctf
from cryobench.operators.noise import Gaussian, NoNoise
from cryobench.operators.sumpool import SumPool
from cryobench.rng import Rng
from cryobench.solvers.classical import Dct, Tv, Wavelet
from cryobench.solvers.methods import PrimalDual
from cryobench.solvers.pinv import Pinv, Tikhonov
from cryobench.solvers.proximal import minimise

SOLVERS = [Pinv(), Tikhonov(), Dct(), Wavelet(), Tv(), Dct(method="primal_dual")]
every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=repr)
every_operator = pytest.mark.parametrize("recipe", [Ctf(), Composed(SumPool(4, 8), Ctf())], ids=["ctf", "pooled"])
every_noise = pytest.mark.parametrize("noise", [NoNoise(), Gaussian(rel=0.2)], ids=["exact", "noisy"])


def solve(solver, problem):
    return solver.solve(problem, rng=Rng(0, [str(i) for i in range(problem.batch)]))


def problem(recipe, noise, dtype=torch.float32):
    x, _ = simulated(3, 16)
    return measure(live(recipe, taken(3, (16, 16), pixel_size=4.0), dtype), x.to(dtype), noise), x


@cache
def solved(solver, recipe, noise):
    """The problem, the images, and the answer for all of them."""
    measured, x = problem(recipe, noise)
    return measured, x, solve(solver, measured)


@every_solver
@every_operator
@every_noise
def test_results_do_not_depend_on_the_batch(solver, recipe, noise):
    measured, _, whole = solved(solver, recipe, noise)
    for i in (0, 2):
        alone = solve(solver, part(measured, slice(i, i + 1)))
        torch.testing.assert_close(alone.x, whole.x[i : i + 1], rtol=1e-5, atol=1e-5)
        if "iterations" in whole.info:
            assert alone.info["iterations"][0] == whole.info["iterations"][i]


@every_solver
@every_operator
@every_noise
def test_it_converges_and_is_no_worse_than_the_floor(solver, recipe, noise):
    measured, x, answer = solved(solver, recipe, noise)
    assert answer.info.get("converged", torch.ones(3)).all()
    floor = (solve(Pinv(), measured).x - x).square().mean()
    assert (answer.x - x).square().mean() <= 1.02 * floor


@pytest.mark.parametrize("solver", [Dct(), Wavelet(), Tv()], ids=repr)
@every_noise
def test_pooled_after_a_ctf_the_objective_is_that_of_a_long_run(solver, noise):
    measured, _ = problem(Composed(SumPool(4, 8), Ctf()), noise)
    answer = solve(solver, measured)
    double, _ = problem(Composed(SumPool(4, 8), Ctf()), noise, torch.float64)
    double = replace(double, y=measured.y.double(), sigma=measured.sigma.double())
    objective = solver.objective(double)
    objective.lam = answer.info["lam"].double().reshape(-1, 1, 1, 1)
    objective.misfit = torch.full_like(objective.misfit, math.inf)
    best = minimise(PrimalDual(objective), steps=1500, tol=1e-5).info["objective"]
    torch.testing.assert_close(objective.value(answer.x.double()).flatten(), best, rtol=2e-4, atol=0)
