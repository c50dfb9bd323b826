"""`fourier_inversion`: a map from particle images by one division in Fourier space, as refinement programs make it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch

from cryobench.core import LinearOperator, Problem, Progress, Reconstruction, Solver, mean_intensity
from cryobench.errors import ParameterError
from cryobench.maps.fsc import HALF_MAPS, resolution_of
from cryobench.maps.inversion import EDGE, STEPS, wiener
from cryobench.maps.masks import soft_ball
from cryobench.numerics.linalg import per_item
from cryobench.rng import Rng

_LEAST_IMAGES = 4


@dataclass(frozen=True)
class FourierInversion(Solver):
    """Gridding with Wiener weights, for images of views (`ctf@project`).

        x = c + (A^T A + L)^-1 A^T (y - c A 1)

    L is the ratio of noise to signal of each shell of Fourier space, which follows from the correlation of two maps, of
    the images with even and with odd numbers (Scheres 2012, J. Struct. Biol. 180:519). The inverse is a division in
    Fourier space by C + L, C the density of the slices, and few steps of conjugate gradients from there
    (`cryobench/maps/inversion.py`). c: the mean intensity estimated from y. The resolution of the two halves at 0.143,
    in pixels, is stated as `half_map_pixels`.
    """

    dims = (3,)

    radius: Annotated[
        float | None, "of the particle, voxels: halves are compared in this ball; none: the largest in the box"
    ] = None
    steps: Annotated[int, "conjugate gradients towards (A^T A + L)^-1 A^T y; 0: A^T A is taken to be C"] = STEPS

    def __post_init__(self) -> None:
        if self.radius is not None and not 1 <= self.radius < math.inf:
            raise ParameterError(f"fourier_inversion: radius must be at least 1 voxel, got {self.radius:g}")
        if self.steps < 0:
            raise ParameterError(f"fourier_inversion: steps must be zero or more, got {self.steps}")

    def unsupported(self, problem: Problem) -> str | None:
        operator = problem.operator
        if not (operator.convolution and operator.views):
            return "fourier_inversion needs images of views, as project and ctf@project give; use cg"
        if operator.measurement_shape[0] < _LEAST_IMAGES:
            return f"fourier_inversion needs at least 2 images in each half, got {operator.measurement_shape[0]} in all"
        return self.unsupported_side(operator.image_shape[0])

    def unsupported_side(self, side: int) -> str | None:
        """The reason why a box of `side` voxels is too small for the radius, None if it is not."""
        if self.radius is not None and self.radius > side / 2:
            return f"fourier_inversion: radius={self.radius:g} is more than half of the {side} voxels"
        return None

    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        operator, y = problem.operator, problem.y
        reason = self.unsupported(problem)
        if reason is not None:
            raise ParameterError(reason)
        c = mean_intensity(operator, y)
        structure = y - c * operator.mean_response
        parts = [slice(half, None, 2) for half in (0, 1)]
        halves: list[LinearOperator] = [operator.rows(part) for part in parts]
        kernels = torch.stack([half.kernel().cpu() for half in halves])
        sums = [half.A_adjoint(structure[:, part])[:, 0] for half, part in zip(halves, parts, strict=True)]
        side = operator.image_shape[0]
        mask = None if self.radius is None else soft_ball(side, self.radius, EDGE, dtype=torch.float64)
        maps, resolutions = [], []
        for number, pair in enumerate(zip(*sums, strict=True)):
            found = wiener(torch.stack(pair), kernels, mask=mask, steps=self.steps, dtype=y.dtype, device=y.device)
            maps.append(found.full)
            resolutions.append(resolution_of(found.fsc, HALF_MAPS, side, None))
            if progress is not None:
                progress(number + 1, len(y))
        x = torch.stack(maps)[:, None]
        return Reconstruction(per_item(c, x) + x, {"half_map_pixels": torch.tensor(resolutions, dtype=torch.float64)})
