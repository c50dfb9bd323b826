"""`consensus`: one map for all particles, the floor of solvers for many structures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from cryobench.core import Heterogeneity, HeterogeneitySolver, Problem, Progress, Reconstruction, VolumeModel
from cryobench.errors import CryobenchError, reason_of
from cryobench.limits import check_memory
from cryobench.maps.fixed_volume import FixedVolume
from cryobench.maps.half_maps import TOLERANCE, HalfMaps, halves_of, projection_of
from cryobench.maps.inversion import Maps, wiener
from cryobench.maps.particle_images import ParticleImages, imaging_of, particle_images
from cryobench.maps.particles import particles_of
from cryobench.rng import Rng

_BYTES_PER_PIXEL, _BYTES_PER_VOXEL = 60, 1200
"""Peak memory in bytes for each pixel of the images and each voxel of the map."""


@dataclass(frozen=True)
class Consensus(HeterogeneitySolver):
    """One map for all particles, as if they showed one structure: the floor for stacks with many.

        v = (A^T A + L)^-1 A^T y

    A: the projections through the CTFs. Fourier inversion of all images y with the Wiener weights L of two halves
    (`cryobench/maps/inversion.py`). Latents have no numbers.
    """

    def unsupported(self, problem: Problem) -> str | None:
        return unsupported_particles(problem, "consensus", _BYTES_PER_PIXEL, _BYTES_PER_VOXEL)

    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        images = particle_images(problem, "consensus")
        maps = consensus_maps(images, halves(problem))
        if progress is not None:
            progress(1, 1)
        x = problem.scale.from_file(projections(images, maps.full[None])[0][:, None]).to(problem.y)
        latents = torch.zeros((len(images), 0), dtype=torch.float64)
        return Reconstruction(x, volumes=maps.by_name, heterogeneity=Heterogeneity(latents, FixedVolume(maps.full)))

    def volume_model(self, arrays: Mapping[str, torch.Tensor]) -> VolumeModel:
        return FixedVolume.of(arrays)


def unsupported_particles(problem: Problem, what: str, per_pixel: int, per_voxel: int) -> str | None:
    """The reason why a solver with known poses cannot take the particles of a problem, or None. per_pixel, per_voxel:
    its peak memory in bytes for each pixel of the images and each voxel of a map."""
    try:
        particles = particles_of(imaging_of(problem, what), what)
        halves(problem)
        needed = per_pixel * problem.batch * particles.side**2 + per_voxel * particles.side**3
        check_memory(f"{what} with {problem.batch} particles", needed, "give fewer --images or a smaller --size")
    except CryobenchError as error:
        return reason_of(error)
    return None


def halves(problem: Problem) -> torch.Tensor:
    """The half of each particle, 0 or 1 (`maps.half_maps.halves_of`)."""
    table = None if problem.imaging is None else problem.imaging.table
    return halves_of(table, problem.batch, "the table of the images", least=1)


def consensus_maps(images: ParticleImages, half: torch.Tensor) -> Maps:
    """The maps of all particles and of both halves, float32 on the CPU."""
    sums = HalfMaps(images.side, images.pixel_size)
    sums.add(images.images.cpu(), images.particles.poses, images.particles.ctf, half)
    return wiener(sums.sums, sums.kernels)


def projections(
    images: ParticleImages, volumes: torch.Tensor, chosen: slice | torch.Tensor = slice(None)
) -> torch.Tensor:
    """C_i P_i v of maps [m, D, D, D] for particles, float32 [m, n, D, D] on the CPU, to 1e-4."""
    particles = images.particles.select(chosen)
    operator = projection_of(images.side, images.pixel_size, particles.poses, particles.ctf, tolerance=TOLERANCE)
    return operator.A(volumes.float().cpu()[:, None])
