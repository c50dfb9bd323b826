"""Landweber iteration as a cryobench solver."""

from dataclasses import dataclass
from typing import Annotated

from cryobench.core import Problem, Progress, Reconstruction, Solver
from cryobench.rng import Rng


@dataclass(frozen=True)
class Landweber(Solver):
    """Gradient descent on 1/2 ||A x - y||^2 from zero, with step 1 / ||A||^2 (Landweber 1951).

    Without noise it converges to the least-norm solution; with noise, early stopping regularises.
    """

    dims = (2, 3)  # images and volumes: nothing here depends on the number of axes

    steps: Annotated[int, "number of steps"] = 50

    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        A = problem.operator
        back_projection = A.A_adjoint(problem.y)
        step = 1 / A.compute_norm() ** 2
        x = 0 * back_projection
        for i in range(self.steps):
            x = x - step * (A.A_adjoint_A(x) - back_projection)
            if progress is not None:
                progress(i + 1, self.steps)
        return Reconstruction(x)
