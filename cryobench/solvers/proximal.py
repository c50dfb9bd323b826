"""Proximal-gradient solvers: minimise 1/2 ||A x - y||^2 + lam R(x), batched, on the problem's device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch

from cryobench.core import Problem, Progress, Reconstruction, Solver
from cryobench.errors import ParameterError
from cryobench.linalg import dot, mean_intensity, norm
from cryobench.priors.dct import DctSparsity
from cryobench.rng import Rng
from cryobench.solvers.pinv import least_norm

Gradient = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Prox = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Dct(Solver):
    """Sparse DCT reconstruction: argmin_x 1/2 ||A x - y||^2 + lam sum |DCT x| (without the mean), by FISTA.

    The step is 1 / ||A||^2 with the exact spectral norm, the start is the `pinv` floor. `lam=none` takes for each
    image `share` of the smallest weight that would shrink everything but the mean to zero, max |DCT A^T (y - c A 1)|:
    it sees only y, and is right for any operator scale.
    """

    lam: Annotated[float | None, "weight of the sparsity term; none: chosen per image, see share"] = None
    share: Annotated[float, "with lam=none: share of the weight at which the solution is constant"] = 3e-4
    steps: Annotated[int, "most FISTA steps"] = 300
    tol: Annotated[float, "stop an image when a step changes it by less than this, relative to its norm"] = 1e-4

    def __post_init__(self) -> None:
        if self.lam is not None and not 0 <= self.lam < float("inf"):
            raise ParameterError(f"dct: lam must be zero or positive, got {self.lam:g}")
        if not 0 < self.share <= 1:
            raise ParameterError(f"dct: share must lie in (0, 1], got {self.share:g}")
        if self.steps < 1:
            raise ParameterError(f"dct: steps must be at least 1, got {self.steps}")
        if not 0 <= self.tol < float("inf"):
            raise ParameterError(f"dct: tol must be zero or positive, got {self.tol:g}")

    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        operator, prior = problem.operator, DctSparsity()
        back_projection = operator.A_adjoint(problem.y)
        start = least_norm(problem)
        lipschitz = operator.compute_norm() ** 2
        if lipschitz == 0:
            return Reconstruction(start)
        lam = self._weight(problem, prior, back_projection)

        x, info = fista(
            start,
            gradient=lambda x, active: operator.A_adjoint_A(x) - back_projection[active],
            prox=lambda z, step, active: prior.prox(z, step * lam[active]),
            lipschitz=lipschitz,
            steps=self.steps,
            tol=self.tol,
            progress=progress,
        )
        return Reconstruction(x, info | {"lam": lam.flatten()})

    def _weight(self, problem: Problem, prior: DctSparsity, back_projection: torch.Tensor) -> torch.Tensor:
        if self.lam is not None:
            return back_projection.new_full((problem.batch, 1, 1, 1), self.lam)
        operator = problem.operator
        structure = problem.y - mean_intensity(operator, problem.y) * operator.mean_response
        return self.share * prior.largest_threshold(operator.A_adjoint(structure))


def fista(
    start: torch.Tensor,
    *,
    gradient: Gradient,
    prox: Prox,
    lipschitz: float,
    steps: int,
    tol: float,
    progress: Progress | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """FISTA (Beck & Teboulle 2009) with gradient-based adaptive restart (O'Donoghue & Candes 2015, eq. 12).

    start: [B, 1, H, W]. `gradient(x, active)` and `prox(z, step, active)` are given the images still active and their
    indices in the batch; every image restarts and stops on its own, so that its result does not depend on the others.
    Returns the images and, per image, `iterations` and whether it `converged` to `tol` within `steps`.
    """
    step = torch.tensor(1 / lipschitz, dtype=start.dtype, device=start.device)
    result = start.clone()
    active = torch.arange(start.shape[0], device=start.device)
    iterations = torch.full((start.shape[0],), steps, device=start.device)
    x, v = start, start
    t = torch.ones((start.shape[0], 1, 1, 1), dtype=start.dtype, device=start.device)
    for i in range(steps):
        x_next = prox(v - step * gradient(v, active), step, active)
        # momentum that points uphill is dropped: the image's sequence starts again from here
        uphill = dot(v - x_next, x_next - x) > 0
        t = torch.where(uphill, 1.0, t)
        t_next = (1 + (1 + 4 * t**2).sqrt()) / 2
        v = x_next + torch.where(uphill, 0.0, (t - 1) / t_next) * (x_next - x)
        small = (norm(x_next - x) <= tol * norm(x_next)).flatten()
        x, t = x_next, t_next
        if progress is not None:
            progress(i + 1, steps)
        if small.any():
            result[active[small]] = x[small]
            iterations[active[small]] = i + 1
            keep = ~small
            active, x, v, t = active[keep], x[keep], v[keep], t[keep]
            if not len(active):
                break
    result[active] = x
    converged = torch.ones_like(iterations, dtype=torch.bool)
    converged[active] = False
    return result, {"iterations": iterations, "converged": converged}
