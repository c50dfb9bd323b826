"""`direct`: the structure from the measurements of all particles at once, without images between.

Image i is o_i + f_i x_i (`core.Scale`), and the projection C_i P_i v of the structure v with the particle's pose and
CTF (`operators.project`). The measurements y_i = S_i x_i + e_i are then linear in v,

    f_i y_i + o_i S_i 1 = S_i C_i P_i v + f_i e_i

which is the operator S@ctf@project, solved by any solver of volumes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple

import torch

from cryobench.core import Imaging, LinearOperator, Problem, Progress, Reconstruction, Scale, Solver, unsupported_dims
from cryobench.errors import CryobenchError, Unsupported, reason_of
from cryobench.maps.half_maps import halves_of
from cryobench.maps.particles import particles_of, projection
from cryobench.numerics.linalg import per_item
from cryobench.operators.views import by_view
from cryobench.rng import Rng
from cryobench.solvers.cg import Cg
from cryobench.spec import Component


@dataclass(frozen=True)
class Direct(Solver):
    """The structure from the measurements of all particles at once, for data with known poses of one structure.

    Odd and even particles (or those of `rlnRandomSubset` 1 and 2) are solved apart, and the image of a particle is the
    projection of the structure of its own half, so that half maps of the images remain independent. The solver of the
    volumes is given the root mean square of the measurements as the noise level, which includes the signal: for
    particles of a signal-to-noise ratio below 1 it is hardly too large.
    """

    joint = True

    solver: Annotated[Solver, Component("solvers"), "solver of the volumes"] = Cg()

    def unsupported(self, problem: Problem) -> str | None:
        try:
            half = _halves(problem)[0]
        except CryobenchError as error:
            return reason_of(error)
        own = _volume_problem(problem, half)
        return unsupported_dims(self.solver, own.operator.image_shape) or self.solver.unsupported(own)

    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        x = problem.y.new_empty(problem.image_batch_shape)
        info: dict[str, torch.Tensor] = {}
        halves = _halves(problem)
        for number, half in enumerate(halves):
            own = _volume_problem(problem, half)

            def report(done: int, steps: int, before: int = number) -> None:
                if progress is not None:
                    progress(before * steps + done, len(halves) * steps)

            answer = self.solver.solve(own, rng=Rng(rng.seed, [f"half {number + 1}"]), progress=report)
            images = half.projection.A(answer.x)[0, :, None]
            scaled = problem.scale.select(half.images).from_file(own.scale.to_file(images))
            x[half.images] = scaled.to(x)
            for name, values in answer.info.items():
                info.setdefault(name, values.new_zeros(problem.batch))[half.images] = values
        return Reconstruction(x, info)


class _Half(NamedTuple):
    """The particles of a half, [n], and the operator of their images, C P."""

    images: torch.Tensor
    projection: LinearOperator


def _halves(problem: Problem) -> list[_Half]:
    """Raises a `CryobenchError` for images without poses, and `Unsupported` for a half without particles."""
    imaging = problem.imaging
    if imaging is None:
        raise Unsupported("direct needs all particles of a data set at once, with their poses; use `cryobench run`")
    halves = halves_of(imaging.table, problem.batch, "the table of the images", least=1)
    found = []
    for number in (0, 1):
        images = (halves == number).nonzero()[:, 0]
        own = replace(
            imaging,
            pixel_size=tuple(imaging.pixel_size[i] for i in images.tolist()),
            table=None if imaging.table is None else imaging.table.iloc[images.tolist()].reset_index(drop=True),
        )
        found.append(_Half(images, _projection(own, problem.operator)))
    return found


def _projection(imaging: Imaging, operator: LinearOperator) -> LinearOperator:
    return projection(particles_of(imaging, "direct"), dtype=operator.dtype, device=operator.device)


def _volume_problem(problem: Problem, half: _Half) -> Problem:
    """The problem of the volume of a half; its scale divides the measurements by their root mean square."""
    outer = problem.operator.select(half.images)
    scale, y = problem.scale.select(half.images), problem.y[half.images]
    response = outer.mean_response
    y = per_item(scale.factor.to(y), y) * y + per_item(scale.offset.to(y), y) * response
    operator = by_view(outer, half.projection)
    y = y.reshape(1, *operator.measurement_shape)
    level = (y - y.mean()).square().mean().sqrt()
    one = torch.ones(1, dtype=torch.float64)
    units = Scale(torch.zeros_like(one), one * level.item())
    return Problem(operator, y / level, problem.noise, y.new_ones((1,) * y.ndim), units)
