"""`abinitio`: maps and poses from images alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import torch

from cryobench.core import Heterogeneity, HeterogeneitySolver, Problem, Progress, Reconstruction, VolumeModel
from cryobench.core.checkpoints import checkpoint
from cryobench.errors import CryobenchError, ParameterError, Unsupported, reason_of
from cryobench.limits import check_memory
from cryobench.maps.abinitio import Plan, solve
from cryobench.maps.fixed_volume import ClassVolumes, FixedVolume
from cryobench.maps.particle_images import ParticleImages, imaging_of, particle_images
from cryobench.maps.particles import particles_of
from cryobench.maps.pose_search import Settings
from cryobench.numerics.fft import irfftn
from cryobench.physics.ctf import COLUMNS
from cryobench.physics.projection import Projector, shift_phase
from cryobench.rng import Rng

_BYTES_PER_PIXEL, _BYTES_PER_VOXEL, _BYTES = 60, 2000, 10**9
"""Peak memory in bytes for each pixel of the images, each voxel of a map, and of the probabilities of poses."""
_LEAST_PARTICLES = 2
"""Of a class, one for each half."""
_LEAST_SIDE = 16


@dataclass(frozen=True)
class AbInitio(HeterogeneitySolver):
    """Maps and poses from images alone, of one structure or of K classes.

    Expectation-maximisation over grids of poses from random maps, at low frequencies first; the start of the greatest
    likelihood is refined by a hierarchical search for the poses of each image, whose frequencies the correlation of two
    halves states (`cryobench/maps/abinitio.py`). Latents are the probabilities of classes; with one class they have no
    numbers. The handedness and the orientation of the whole are not determined by the images.
    """

    seeks_poses = True

    classes: Annotated[int, "number of structures"] = 1
    starts: Annotated[int, "random starts, of which the likeliest goes on"] = 4
    particles: Annotated[int, "images that the starts use, the first ones"] = 500
    rounds: Annotated[int, "searches of all poses, each followed by new maps"] = 4
    order: Annotated[int, "of the grids of rotations after the starts: 72 8^order rotations"] = 2
    ctf: Annotated[bool, "the images were taken through CTFs, which the table states; false: without"] = True

    def __post_init__(self) -> None:
        for name, most in (("classes", 100), ("starts", 1000), ("particles", 10**9), ("rounds", 100)):
            if not 1 <= getattr(self, name) <= most:
                raise ParameterError(f"abinitio: {name} must be 1 to {most}, got {getattr(self, name)}")
        if not 1 <= self.order <= 3:
            raise ParameterError(f"abinitio: order must be 1 to 3, got {self.order}")

    def unsupported(self, problem: Problem) -> str | None:
        reason = unsupported_images(problem, "abinitio", self.ctf)
        if reason is None and problem.batch < _LEAST_PARTICLES * self.classes:
            return (
                f"abinitio: {problem.batch} particles for {self.classes} classes; give at least "
                f"{_LEAST_PARTICLES * self.classes}"
            )
        return reason

    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        images = sought_images(problem, "abinitio", self.ctf)
        plan = Plan(self.starts, self.particles, self.classes, self.rounds, self.order)
        found = solve(images, plan, rng.seed, checkpoint=checkpoint(), progress=progress)
        rotations, shift = found.found.rotations[:, 0], found.found.shift[:, 0]
        volumes = torch.stack([maps.full for maps in found.maps])
        classes = found.classes.argmax(dim=1)
        x = torch.zeros_like(images.images)
        for k, volume in enumerate(volumes):
            rows = (classes == k).nonzero()[:, 0]
            x[rows] = seen(images.select(rows), volume, rotations[rows], shift[rows])
        one = self.classes == 1
        latents = found.classes[:, :0] if one else found.classes
        model = FixedVolume(volumes[0]) if one else ClassVolumes(volumes)
        many = Heterogeneity(latents.double(), model, rotations, shift * images.pixel_size, found.starts)
        x = problem.scale.from_file(x[:, None]).to(problem.y)
        return Reconstruction(x, volumes=found.maps[0].by_name if one else {}, heterogeneity=many)

    def volume_model(self, arrays: Mapping[str, torch.Tensor]) -> VolumeModel:
        return FixedVolume.of(arrays) if self.classes == 1 else ClassVolumes.of(arrays)


def unsupported_images(problem: Problem, what: str, ctf: bool) -> str | None:
    """The reason why a solver that seeks poses cannot take these images, or None. ctf: as `sought_images`."""
    try:
        imaging = imaging_of(problem, what)
        particles = particles_of(imaging, what, poses=False)
        if ctf and imaging.through_ctf and particles.ctf is None:
            raise Unsupported(
                f"{what} needs the CTF of the particles ({COLUMNS['defocus_u']} and others), and the table of the "
                "images has none; give ctf=false for images that were taken without one"
            )
        side = particles.side
        if side < _LEAST_SIDE:
            raise Unsupported(
                f"{what}: images of {side} pixels have too few frequencies for poses; give at least {_LEAST_SIDE}"
            )
        Settings().for_side(side)
        if not problem.y.isfinite().all():
            raise Unsupported(f"{what}: the measurements have values that are not finite")
        needed = _BYTES + _BYTES_PER_PIXEL * problem.batch * side**2 + _BYTES_PER_VOXEL * side**3
        check_memory(f"{what} with {problem.batch} particles", needed, "give fewer --images or a smaller --size")
    except CryobenchError as error:
        return reason_of(error)
    return None


def sought_images(problem: Problem, what: str, ctf: bool) -> ParticleImages:
    """The images of all particles without poses. ctf: whether they have CTFs; if not, a table of CTFs is ignored."""
    images = particle_images(problem, what, poses=False)
    if ctf:
        return images
    return replace(images, particles=replace(images.particles, ctf=None))


def seen(images: ParticleImages, volume: torch.Tensor, rotations: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """C P v of a map [D, D, D] for each of the particles, float32 [N, D, D]: by trilinear slices.

    rotations: [N, 3, 3]. shift: [N, 2] in pixels.
    """
    device = images.images.device
    side = images.side
    projector = Projector(volume.to(device, torch.float32))
    parts = [images.images[:0]]
    for rows in torch.arange(len(images)).split(256):
        spectra = projector.slices(rotations[rows].to(device, torch.float32))
        spectra = spectra * shift_phase(side, shift[rows].to(device, torch.float32))
        transfer = images.transfer(rows)
        spectra = spectra if transfer is None else spectra * transfer.to(device)
        parts.append(torch.fft.fftshift(irfftn(spectra, (side, side)), dim=(1, 2)))
    return torch.cat(parts)
