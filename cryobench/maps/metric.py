"""`map`: what the images of a cell are worth as a map."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Annotated, NamedTuple

import torch

from cryobench.core import Column, Gathering, Imaging, JointMetric, MeasuredTogether, Reconstruction, Structure
from cryobench.errors import CryobenchError, ParameterError, reason_of
from cryobench.limits import check_memory
from cryobench.maps.fsc import HALF_MAPS, REFERENCE, half_map_fsc, resolution_of, shell_correlation
from cryobench.maps.half_maps import HalfKernels, HalfMaps, halves_of
from cryobench.maps.inversion import particle_mask, wiener
from cryobench.maps.particles import Particles, particles_of
from cryobench.metrics.rings import ring_sums
from cryobench.metrics.spectral import spectrum
from cryobench.physics.ctf import CtfParameters

_NO_LEVEL = "the map does not correlate with the structure, or nothing of it is above the contour"
_BYTES_PER_VOXEL = 800
"""Peak memory of a map in bytes for each voxel, as measured."""
_NO_VOLUME = "the structure of these images is not known, or they show several"


@dataclass(frozen=True)
class Map(JointMetric):
    """The map that the images give with their known poses and CTFs, and what it is worth.

    The map is made by Fourier inversion with Wiener weights (`maps.inversion`), for all solvers the same except
    `direct`, which has maps of its own; its halves are of even and odd particles, or those of `rlnRandomSubset`.
    Correlations are under a ball with a soft edge, the particle's if the source states its radius.

    `map_halves`: the resolution in Å at which the correlation between the half maps, corrected by random phases (Chen
    et al. 2013, Ultramicroscopy 135:24), falls below 0.143. It needs no truth, and is deceived by all that the solver
    adds to every image in the same way. `map_truth`: that at which the correlation of the map with the structure falls
    below 0.5; `map_fsc`: the mean of this correlation over the shells. `map_power`: the mean product of the half maps,
    in shells up to half the Nyquist frequency, relative to the power of the structure: what of the map is repeatable, 1
    for the structure itself. `map_false` and `map_missing`: the volume that is above the contour in the map only, and
    in the structure only, as fractions of the volume above it in the structure; intensities of the map are fitted to
    the structure by least squares.
    """

    columns = (
        Column("map_truth", "lower", "Å"),
        Column("map_halves", "lower", "Å"),
        Column("map_fsc", "higher"),
        Column("map_power", "none"),
        Column("map_false", "lower"),
        Column("map_missing", "lower"),
    )

    contour: Annotated[
        float, "of map_false and map_missing, standard deviations of the structure above its mean in the ball"
    ] = 2.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.contour):
            raise ParameterError(f"map: contour must be a finite number, got {self.contour:g}")

    def gather(self, imaging: Imaging, structure: Structure) -> Gathering:
        try:
            particles = particles_of(imaging, "map")
            halves = halves_of(imaging.table, len(particles.poses), "the table of the images")
            check_memory("map", _BYTES_PER_VOXEL * particles.side**3, "give a smaller --size")
        except CryobenchError as error:
            return _NoMap([column.name for column in self.columns], reason_of(error))
        return _MapOfImages(self, particles, halves, structure)


class _NoMap(Gathering):
    """For images of which no map can be made."""

    def __init__(self, names: list[str], reason: str):
        self._names, self._reason = names, reason

    def add(self, images: torch.Tensor, answer: Reconstruction) -> None:
        """Nothing is needed of them."""

    def measure(self) -> MeasuredTogether:
        return MeasuredTogether(dict.fromkeys(self._names, math.nan), {}, dict.fromkeys(self._names, self._reason))


class _Maps(NamedTuple):
    """Maps [D, D, D], float64."""

    full: torch.Tensor
    half1: torch.Tensor
    half2: torch.Tensor


class _MapOfImages(Gathering):
    def __init__(self, metric: Map, particles: Particles, halves: torch.Tensor, structure: Structure):
        self._metric, self._particles, self._halves, self._structure = metric, particles, halves, structure
        self._count = 0
        self._maps: _Maps | None = None

    def add(self, images: torch.Tensor, answer: Reconstruction) -> None:
        if answer.volumes:
            own = (answer.volumes[name].double().cpu() for name in ("full", "half1", "half2"))
            self._maps = _Maps(*own)
            return
        part = slice(self._count, self._count + len(images))
        self._count = part.stop
        own = self._particles.select(part)
        self._sums.add(images[:, 0], own.poses, own.ctf, self._halves[part])

    def measure(self) -> MeasuredTogether:
        side, pixel_size = self._particles.side, self._particles.pixel_size
        mask = particle_mask(side, self._structure.radius, pixel_size)
        maps = self._maps
        if maps is None:
            found = wiener(self._sums.sums, self._sums.kernels, mask=mask, dtype=torch.float64)
            maps = _Maps(found.full, found.half1, found.half2)
        halves = half_map_fsc(maps.half1, maps.half2, mask=mask, pixel_size=pixel_size)
        values = dict.fromkeys((column.name for column in self._metric.columns), math.nan)
        curves = {"map_halves": halves.corrected, "map_halves_masked": halves.masked}
        volumes = {"map": maps.full, "half1": maps.half1, "half2": maps.half2, "mask": mask}
        values["map_halves"] = halves.resolution(HALF_MAPS)
        structure = self._structure.volume
        unmeasured: dict[str, str] = {}
        if structure is None:
            unmeasured = dict.fromkeys((name for name, value in values.items() if math.isnan(value)), _NO_VOLUME)
        else:
            structure = structure.double() * (pixel_size or 1.0)
            curve = shell_correlation(maps.full, structure, mask)
            values["map_truth"] = resolution_of(curve, REFERENCE, side, pixel_size)
            values["map_fsc"] = curve.mean().item()
            values["map_power"] = _power(maps.half1, maps.half2, mask) / _power(structure, structure, mask)
            parts = _differences(maps.full, structure, mask >= 0.5, self._metric.contour)
            values["map_false"], values["map_missing"] = parts
            if math.isnan(parts[0]):
                unmeasured |= {"map_false": _NO_LEVEL, "map_missing": _NO_LEVEL}
            curves["map_truth"] = curve
            volumes["structure"] = structure
        return MeasuredTogether(values, curves, unmeasured, volumes)

    @cached_property
    def _sums(self) -> HalfMaps:
        own = self._particles
        return HalfMaps(own.side, own.pixel_size or 1.0, kernels=_kernels(_Known.of(own, self._halves)))


def _power(a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor) -> float:
    """sum Re A B* over the shells up to half the Nyquist frequency, of masked maps minus their mean under the mask."""
    own, other = (spectrum(volume[None, None], mask[None, None])[0] for volume in (a, b))
    shape = tuple(a.shape)
    return ring_sums((own * other.conj()).real, shape)[0, : shape[0] // 4].sum().item()


def _differences(
    volume: torch.Tensor, structure: torch.Tensor, inside: torch.Tensor, contour: float
) -> tuple[float, float]:
    """The volume above the contour in the map only, and in the structure only, relative to that of the structure; NaN
    where the intensities of the map do not rise with those of the structure, or nothing is above the contour."""
    own, true = volume[inside], structure[inside]
    centred = true - true.mean()
    slope = (own @ centred) / centred.square().sum()
    level = true.mean() + contour * true.std(correction=0)
    present = true > level
    found = own - own.mean() > slope * (level - true.mean())
    size = present.sum().item()
    if size == 0 or not slope > 0:
        return math.nan, math.nan
    return (found & ~present).sum().item() / size, (present & ~found).sum().item() / size


@dataclass(frozen=True)
class _Known:
    """Particles with a digest of all that their kernels depend on."""

    digest: str
    particles: Particles = field(compare=False)
    halves: torch.Tensor = field(compare=False)

    @staticmethod
    def of(particles: Particles, halves: torch.Tensor) -> _Known:
        numbers = [particles.poses.angles, particles.poses.shift, halves]
        if particles.ctf is not None:
            numbers += [getattr(particles.ctf, name) for name in CtfParameters.__dataclass_fields__]
        content = hashlib.sha256(repr((particles.side, particles.pixel_size)).encode())
        for array in numbers:
            content.update(array.numpy().tobytes())
        return _Known(content.hexdigest(), particles, halves)


@lru_cache(maxsize=1)
def _kernels(known: _Known) -> HalfKernels:
    """The kernels of both halves, which all solvers of a data set share."""
    own = known.particles
    kernels = HalfKernels(own.side, own.pixel_size or 1.0)
    kernels.add(own.poses, own.ctf, known.halves)
    return kernels
