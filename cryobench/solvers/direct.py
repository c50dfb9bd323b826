"""`direct`: the structure from the measurements of all particles at once, without images between.

Image i is o_i + f_i x_i (`core.Scale`), and the projection C_i P_i v of the structure v with the particle's pose and
CTF (`operators.project`), plus its noise n_i. Of measurements y_i = S_i x_i, the least-norm images

    u_i = f_i S_i^+ y_i + o_i S_i^+ S_i 1 = Q_i (C_i P_i v + n_i),      Q_i = S_i^+ S_i

state what S_i measures of image i, a projection Q_i of it. With white noise in the images, least squares in u is the
estimate of least variance (in y it is not: the noise S_i n_i is correlated), and is well conditioned. A map of the u_i
as they are takes what was not measured to be 0; here v is solved for with A = (Q_1 C_1 P_1, ..., Q_N C_N P_N) and the
prior of a Wiener filter of each shell of Fourier space,

    (A^T A + L) v = A^T u,      L = <A^T A> / SSNR

<A^T A> is the mean over a shell (`cg.shell_means`), and SSNR follows from the correlation of two maps, of odd and of
even particles (Scheres 2012, J. Struct. Biol. 180:519; `maps.inversion`). These have no prior, which needs them; they
are stopped early instead, before they fit the noise of what is hardly measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch

from cryobench.core import LinearOperator, Problem, Progress, Reconstruction, Solver, mean_intensity
from cryobench.core.operator import Imaging
from cryobench.errors import CryobenchError, ParameterError, Unsupported, reason_of
from cryobench.limits import check_memory
from cryobench.maps.fsc import shell_correlation
from cryobench.maps.half_maps import halves_of
from cryobench.maps.inversion import default_mask, prior_weights
from cryobench.maps.particle_images import least_norm_images
from cryobench.maps.particles import Particles, particles_of, projection
from cryobench.numerics.linalg import conjugate_gradients, item_axes, per_item
from cryobench.operators.spectral import SpectralOperator, multiply_spectrum
from cryobench.operators.views import by_view
from cryobench.rng import Rng
from cryobench.solvers.cg import shell_means

_BYTES_PER_PIXEL, _BYTES_PER_VOXEL = 80, 300
"""Peak memory in bytes for each pixel of the images, all of which are in memory, and each voxel of the structure."""


@dataclass(frozen=True)
class Direct(Solver):
    """The structure from the measurements of all particles at once, for data with known poses of one structure.

        v = (A^T A + L)^-1 A^T u,    L = <A^T A> / SSNR

    A v are the projections of the map v through CTF and measurement, u the least-norm images of the measurements.
    The maps of both halves (even and odd numbers, or `rlnRandomSubset`) are solved for by few conjugate gradients, and
    that of all particles with the prior of a Wiener filter, whose signal-to-noise ratios follow from the halves. The
    noise is taken to be white and in the images, not in the measurements. The image of a particle is the projection of
    the map of all.
    """

    joint = True

    steps: Annotated[int, "conjugate gradients of the map of all particles; half as many of the halves"] = 8

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ParameterError(f"direct: steps must be at least 1, got {self.steps}")

    def unsupported(self, problem: Problem) -> str | None:
        try:
            _halves(problem)
            particles = particles_of(_imaging(problem), "direct")
            pixels = problem.batch * particles.side**2
            needed = _BYTES_PER_PIXEL * pixels + _BYTES_PER_VOXEL * particles.side**3
            check_memory(f"direct with {problem.batch} particles", needed, "give fewer --images or a smaller --size")
        except CryobenchError as error:
            return reason_of(error)
        return None

    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        done = 0

        def step(*_: object) -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(done, 2 * few + self.steps)

        few = (self.steps + 1) // 2
        particles = particles_of(_imaging(problem), "direct")
        half1, half2 = (_Set.of(problem, particles, images).solved(few, None, step) for images in _halves(problem))
        fsc = shell_correlation(half1, half2, default_mask(len(half1)))
        every = _Set.of(problem, particles, torch.arange(problem.batch))
        prior = prior_weights(every.means.cpu(), 2 * fsc / (1 + fsc)).to(every.means.device)
        full = every.solved(self.steps, prior, step)
        images = every.projection.A(full.to(problem.y.dtype)[None, None])[0, :, None]
        x = problem.scale.from_file(images).to(problem.y)
        return Reconstruction(x, volumes={"full": full, "half1": half1, "half2": half2})


@dataclass(frozen=True, eq=False)
class _Set:
    """Some of the particles.

    projection: the operator C P of their images. operator: A. b: A^T u, [1, 1, D, D, D]. c: the mean intensity.
    means: of A^T A over each shell, on the half spectrum [D, D, D // 2 + 1].
    """

    projection: LinearOperator
    operator: LinearOperator
    b: torch.Tensor
    c: torch.Tensor
    means: torch.Tensor

    @staticmethod
    def of(problem: Problem, particles: Particles, images: torch.Tensor) -> _Set:
        outer = problem.operator.select(images)
        views = projection(particles.select(images), dtype=outer.dtype, device=outer.device)
        operator = by_view(_MeasuredPart(outer), views)
        u = least_norm_images(outer, problem.y[images], problem.scale.select(images))[None, :, 0]
        c = mean_intensity(operator, u)
        b = operator.A_adjoint(u - c * operator.mean_response)
        return _Set(views, operator, b, per_item(c, b), shell_means(operator)[0, 0])

    @property
    def side(self) -> int:
        return self.b.shape[-1]

    def solved(
        self, steps: int, prior: torch.Tensor | None, watch: Callable[[int, torch.Tensor], None]
    ) -> torch.Tensor:
        """The map [D, D, D] float64, with a prior weight L on the half spectrum or without."""
        L = torch.zeros_like(self.means) if prior is None else prior
        weights = self.means + L

        def normal(x: torch.Tensor) -> torch.Tensor:
            return self.operator.A_adjoint_A(x) + multiply_spectrum(L, x)

        z = conjugate_gradients(
            normal, self.b, tol=0.0, max_steps=steps, watch=watch,
            precondition=lambda r: (multiply_spectrum(1 / weights, r),),
        )  # fmt: skip
        return (self.c + z)[0, 0].double().cpu()


class _MeasuredPart(LinearOperator):
    """Q = S^+ S, the orthogonal projection of images on what an operator S measures of them."""

    def __init__(self, operator: LinearOperator):
        self._operator = operator
        self.image_shape, self.channels = operator.image_shape, operator.channels
        self.measurement_shape = operator.domain_shape
        self.dtype, self.device, self.images = operator.dtype, operator.device, operator.images
        self.nominal_compression = 1.0

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return self._operator.A_dagger_A(x)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self.A(y)

    def A_adjoint_A(self, x: torch.Tensor) -> torch.Tensor:
        return self.A(x)

    def select(self, images: slice | torch.Tensor) -> _MeasuredPart:
        selected = self._operator.select(images)
        return self if selected is self._operator else _MeasuredPart(selected)

    @property
    def transfer(self) -> torch.Tensor | None:
        """Where that of the operator is not 0."""
        known = self._operator.transfer
        if known is None:
            return None
        return (known.abs() > SpectralOperator.null * known.abs().amax(dim=item_axes(known), keepdim=True)).to(known)


def _imaging(problem: Problem) -> Imaging:
    if problem.imaging is None:
        raise Unsupported("direct needs all particles of a data set at once, with their poses; use `cryobench run`")
    return problem.imaging


def _halves(problem: Problem) -> list[torch.Tensor]:
    """The particles of both halves. Raises a `CryobenchError` where one has none."""
    halves = halves_of(_imaging(problem).table, problem.batch, "the table of the images", least=1)
    return [(halves == number).nonzero()[:, 0] for number in (0, 1)]
