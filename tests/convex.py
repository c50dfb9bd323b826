"""Convex programs in cvxpy, an independent reference for priors and solvers."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import torch

from cryobench.core import LinearOperator
from cryobench.priors.sparsity import Sparsity
from cryobench.priors.tv import TotalVariation

Shape = tuple[int, int]


def minimum(objective: cp.Expression, constraints: list[cp.Constraint] | None = None, tol: float = 1e-10) -> float:
    """The minimum of the objective under the constraints; its variables are left at the minimiser.

    If the interior-point method fails, the problem is solved again by operator splitting.
    """
    problem = cp.Problem(cp.Minimize(objective), constraints or [])
    tight = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), tol)
    try:
        return problem.solve(solver="CLARABEL", **tight)
    except cp.SolverError:
        return problem.solve(solver="SCS", eps_abs=1e-8, eps_rel=1e-8, max_iters=200_000)


def pixels(shape: Shape) -> torch.Tensor:
    """The unit images, [H W, 1, H, W]."""
    return torch.eye(shape[0] * shape[1], dtype=torch.float64).reshape(-1, 1, *shape)


def operator_matrix(operator: LinearOperator) -> np.ndarray:
    return operator.A(pixels(operator.image_shape)).flatten(1).numpy().T


def analysis_matrix(prior: Sparsity, shape: Shape) -> np.ndarray:
    """K on the entries that R penalises, [C H W, H W]."""
    return prior.penalised(prior.analysis(pixels(shape))).flatten(1).numpy().T


def magnitudes(prior: Sparsity, u: cp.Expression, shape: Shape) -> cp.Expression:
    if isinstance(prior, TotalVariation) and prior.kind == "isotropic":
        return cp.norm(cp.reshape(u, (2, shape[0] * shape[1]), order="C"), 2, axis=0)
    return cp.abs(u)


def prior_value(prior: Sparsity, x: cp.Expression | np.ndarray, shape: Shape) -> cp.Expression:
    """R(x) as in its module: min over a of sum |a| + sqrt(n) / cut ||K x - a||, to be minimised over a too."""
    Kx = analysis_matrix(prior, shape) @ x
    if prior.cut == 1:
        return cp.sum(magnitudes(prior, Kx, shape))
    a = cp.Variable(Kx.shape)
    return cp.sum(magnitudes(prior, a, shape)) + np.sqrt(prior.entries(shape)) / prior.cut * cp.norm(Kx - a, 2)
