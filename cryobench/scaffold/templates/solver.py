"""Steepest descent as a cryobench solver."""

from dataclasses import dataclass
from typing import Annotated

from cryobench.core import Problem, Progress, Reconstruction, Solver
from cryobench.numerics.linalg import dot, per_item
from cryobench.rng import Rng


@dataclass(frozen=True)
class Example(Solver):
    """Steepest descent on 1/2 ||A x - y||^2 from zero, with the optimal step along each gradient (Cauchy 1847).

    Replace this with your method. Everything is computed per image, so that results do not depend on the batch.
    """

    dims = (2, 3)

    steps: Annotated[int, "number of steps"] = 20

    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        A = problem.operator
        back_projection = A.A_adjoint(problem.y)  # [B, C, *S]
        x = 0 * back_projection
        for i in range(self.steps):
            g = A.A_adjoint_A(x) - back_projection
            curvature, slope = dot(Ag := A.A(g), Ag), dot(g, g)  # one number per image
            x = x - slope / per_item(curvature, x).clamp_min(1e-30) * g
            if progress is not None:
                progress(i + 1, self.steps)
        return Reconstruction(x)
