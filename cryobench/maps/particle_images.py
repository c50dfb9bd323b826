"""The images of all particles of a problem, as solvers of maps take them.

With the measurements y_i = S_i x_i and image i = o_i + f_i x_i in the units of the file (`core.Scale`), they are the
least-norm images u_i = f_i S_i^+ y_i + o_i S_i^+ S_i 1: what S_i measured of image i, and 0 for the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cryobench.core import Imaging, LinearOperator, Problem, Scale
from cryobench.errors import Unsupported
from cryobench.maps.particles import Particles, particles_of
from cryobench.numerics.linalg import per_item
from cryobench.physics.ctf import transfer


@dataclass(frozen=True, eq=False)
class ParticleImages:
    """N particles and their images.

    images: float32 [N, D, D] in the units of the file. particles: poses and CTFs; poses that are not known are 0.
    """

    images: torch.Tensor
    particles: Particles

    def __len__(self) -> int:
        return len(self.images)

    @property
    def side(self) -> int:
        """D, pixels."""
        return self.particles.side

    @property
    def pixel_size(self) -> float:
        """Å; 1 where it is unknown, so that shifts are in pixels."""
        return self.particles.pixel_size or 1.0

    def transfer(self, chosen: slice | torch.Tensor = slice(None)) -> torch.Tensor | None:
        """The CTF of particles on the half spectrum, float32 [n, D, D // 2 + 1]; None without one."""
        if self.particles.ctf is None:
            return None
        return transfer(self.particles.ctf.select(chosen), (self.side,) * 2, self.pixel_size)[:, 0].float()

    def select(self, chosen: slice | torch.Tensor) -> ParticleImages:
        """Some of the particles."""
        return ParticleImages(self.images[chosen], self.particles.select(chosen))


def imaging_of(problem: Problem, what: str) -> Imaging:
    """The imaging conditions of all particles. Raises `Unsupported` for a problem that lacks them."""
    if problem.imaging is None:
        raise Unsupported(f"{what} needs all particles of a data set at once; use `cryobench run`")
    return problem.imaging


def particle_images(problem: Problem, what: str, *, poses: bool = True) -> ParticleImages:
    """The particles of a problem and their images, on the device of the problem.

    what: the solver, for messages. poses: whether it needs known poses. Raises a `CryobenchError` as `particles_of`.
    """
    particles = particles_of(imaging_of(problem, what), what, poses=poses)
    u = least_norm_images(problem.operator, problem.y, problem.scale)
    return ParticleImages(u[:, 0].float(), particles)


def least_norm_images(operator: LinearOperator, y: torch.Tensor, scale: Scale) -> torch.Tensor:
    """u_i of measurements y [N, M, *s], in the units of the file, [N, 1, D, D]."""
    u, ones = operator.A_dagger(y), operator.A_dagger(operator.mean_response)
    return per_item(scale.factor.to(u), u) * u + per_item(scale.offset.to(u), u) * ones
