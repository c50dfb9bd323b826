"""`direct`: the structure from the measurements of all particles at once, without images between.

Image i is o_i + f_i x_i (`core.Scale`), and the projection C_i P_i v of the structure v with the particle's pose and
CTF (`operators.project`). The measurements y_i = S_i x_i + e_i are then linear in v,

    f_i y_i + o_i S_i 1 = A v + f_i e_i,      A = (S_1 C_1 P_1, ..., S_N C_N P_N)

and v is solved for with the prior of a Wiener filter of each shell of Fourier space,

    (A^T A + L) v = A^T y,      L = <A^T A> / SSNR

<A^T A> is the mean over a shell (`cg.shell_means`), and SSNR follows from the correlation of two maps, of odd and of
even particles, that are solved for without a prior first (Scheres 2012, J. Struct. Biol. 180:519; `maps.inversion`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

import torch

from cryobench.core import LinearOperator, Problem, Progress, Reconstruction, Solver, mean_intensity
from cryobench.core.operator import Imaging
from cryobench.errors import CryobenchError, ParameterError, Unsupported, reason_of
from cryobench.maps.fsc import shell_correlation
from cryobench.maps.half_maps import halves_of
from cryobench.maps.inversion import default_mask, prior_weights
from cryobench.maps.particles import particles_of, projection
from cryobench.numerics.fft import irfftn, rfftn
from cryobench.numerics.linalg import conjugate_gradients, per_item
from cryobench.operators.views import by_view
from cryobench.rng import Rng
from cryobench.solvers.cg import shell_means


@dataclass(frozen=True)
class Direct(Solver):
    """The structure from the measurements of all particles at once, for data with known poses of one structure.

    The map of all particles and those of both halves (even and odd numbers, or `rlnRandomSubset`) are solved for by
    conjugate gradients with the prior of a Wiener filter, whose signal-to-noise ratios follow from the halves. The
    image of a particle is the projection of the map of all.
    """

    joint = True

    steps: Annotated[int, "conjugate gradients, of the maps without a prior and of those with it"] = 12

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ParameterError(f"direct: steps must be at least 1, got {self.steps}")

    def unsupported(self, problem: Problem) -> str | None:
        try:
            _halves(problem)
            particles_of(_imaging(problem), "direct")
        except CryobenchError as error:
            return reason_of(error)
        return None

    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        done = 0

        def step(*_: object) -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(done, 5 * self.steps)

        sets = [_Set.of(problem, images) for images in (*_halves(problem), torch.arange(problem.batch))]
        unweighted = [own.solved(self.steps, None, step) for own in sets[:2]]
        fsc = shell_correlation(*unweighted, default_mask(sets[0].side))
        correlations = [fsc, fsc, 2 * fsc / (1 + fsc)]
        half1, half2, full = (
            own.solved(self.steps, prior_weights(own.means, correlation), step)
            for own, correlation in zip(sets, correlations, strict=True)
        )
        images = sets[2].projection.A(full.to(problem.y.dtype)[None, None])[0, :, None]
        x = problem.scale.from_file(images).to(problem.y)
        return Reconstruction(x, volumes={"full": full, "half1": half1, "half2": half2})


@dataclass(frozen=True, eq=False)
class _Set:
    """Some of the particles.

    projection: the operator C P of their images. operator: A. b: A^T y, [1, 1, D, D, D]. c: the mean intensity.
    means: of A^T A over each shell, on the half spectrum [D, D, D // 2 + 1].
    """

    projection: LinearOperator
    operator: LinearOperator
    b: torch.Tensor
    c: torch.Tensor
    means: torch.Tensor

    @staticmethod
    def of(problem: Problem, images: torch.Tensor) -> _Set:
        imaging, outer = _imaging(problem), problem.operator.select(images)
        rows = images.tolist()
        own = replace(
            imaging,
            pixel_size=tuple(imaging.pixel_size[i] for i in rows),
            table=None if imaging.table is None else imaging.table.iloc[rows].reset_index(drop=True),
        )
        views = projection(particles_of(own, "direct"), dtype=outer.dtype, device=outer.device)
        operator = by_view(outer, views)
        scale, y = problem.scale.select(images), problem.y[images]
        y = per_item(scale.factor.to(y), y) * y + per_item(scale.offset.to(y), y) * outer.mean_response
        y = y.reshape(1, *operator.measurement_shape)
        c = mean_intensity(operator, y)
        b = operator.A_adjoint(y - c * operator.mean_response)
        return _Set(views, operator, b, per_item(c, b), shell_means(operator)[0, 0])

    @property
    def side(self) -> int:
        return self.b.shape[-1]

    def solved(
        self, steps: int, prior: torch.Tensor | None, watch: Callable[[int, torch.Tensor], None]
    ) -> torch.Tensor:
        """The map [D, D, D] float64, with a prior weight L on the half spectrum or without."""
        shape = (self.side,) * 3
        L = torch.zeros_like(self.means) if prior is None else prior
        weights = self.means + L

        def normal(x: torch.Tensor) -> torch.Tensor:
            return self.operator.A_adjoint_A(x) + filtered(L, x)

        def filtered(factors: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return irfftn(factors * rfftn(x.double(), 3), shape).to(x.dtype)

        z = conjugate_gradients(
            normal, self.b, tol=0.0, max_steps=steps, precondition=lambda r: (filtered(1 / weights, r),), watch=watch
        )
        return (self.c + z)[0, 0].double().cpu()


def _imaging(problem: Problem) -> Imaging:
    if problem.imaging is None:
        raise Unsupported("direct needs all particles of a data set at once, with their poses; use `cryobench run`")
    return problem.imaging


def _halves(problem: Problem) -> list[torch.Tensor]:
    """The particles of both halves. Raises a `CryobenchError` where one has none."""
    halves = halves_of(_imaging(problem).table, problem.batch, "the table of the images", least=1)
    return [(halves == number).nonzero()[:, 0] for number in (0, 1)]
