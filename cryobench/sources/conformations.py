"""Structures that differ between particles: mixtures of them, and one whose domain turns about a hinge.

A domain that turns by Q about a hinge h takes an atom from r to Q r + (h - Q h). Its potential keeps its shape, so
that the slice of a particle with the pose A is

    S(A) = S_fixed(A) + exp(-2 pi i k . [A (h - Q h)]_xy) S_moving(A Q),

with the slices S of the potentials of both parts at rest (`physics.projection`): exact for every angle up to the
interpolation of slices, without a grid of conformations.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from cryobench.core.heterogeneity import TRUE_CLASS, TRUE_LATENT
from cryobench.errors import DataError
from cryobench.physics.potential import Atoms, potential
from cryobench.physics.projection import Projector, shift_phase
from cryobench.sources.specimen import FILL, Specimen

_CONTACT = 6.0
"""Å between atoms of two parts that touch."""
_ANGLES = 33
"""Angles of each coordinate at which the farthest atom is sought."""
_KEPT_BYTES = 2**27
"""Size of the volumes of a motion that are kept in memory: 128 of 64^3 voxels."""
_LATENT_OF_STATES = (0.25, 0.75)
_LEAST_FRACTION = 1e-9
"""Fractions in (0, 1) are kept this far from both."""


@dataclass(frozen=True, eq=False)
class Labels:
    """The truth of n particles. classes: from 0, int64 [n], or None. latents: in [0, 1], float64 [n, d]."""

    classes: torch.Tensor | None
    latents: torch.Tensor

    def columns(self) -> dict[str, np.ndarray]:
        """The columns of a table: `trueClass` from 1, and `trueLatent`, or `trueLatent1` and so on."""
        found: dict[str, np.ndarray] = {}
        if self.classes is not None:
            found[TRUE_CLASS] = self.classes.cpu().numpy() + 1
        d = self.latents.shape[1]
        for i in range(d):
            found[TRUE_LATENT if d == 1 else f"{TRUE_LATENT}{i + 1}"] = self.latents[:, i].cpu().numpy()
        return found


class Conformations(ABC):
    """The structures that particles of one stack have, in boxes of `size` voxels of `pixel_size` Å.

    radius: Å from the centre to the farthest atom of any of them. fractions: random numbers for each particle.
    """

    fractions: int

    def __init__(self, radius: float, size: int, pixel_size: float | None, b_factor: float):
        self.radius, self.size, self.b_factor = radius, size, b_factor
        self.pixel_size = pixel_size or 2 * radius / (FILL * size)

    @abstractmethod
    def labels(self, fractions: torch.Tensor) -> Labels:
        """What particles are, from numbers uniform in (0, 1), [n, `fractions`]."""

    @abstractmethod
    def slices(self, rotations: torch.Tensor, labels: Labels) -> torch.Tensor:
        """The slices of particles at the matrices A [n, 3, 3], as `Projector.slices` has them, in volts."""

    @abstractmethod
    def volume(self, labels: Labels, index: int) -> np.ndarray:
        """The potential of particle `index` of the labels, in volts, float32 [size, size, size]."""


class Mixture(Conformations):
    """Particles of several structures, each with the atoms of one, in proportions that add up to 1."""

    fractions = 1

    def __init__(
        self,
        atoms: Sequence[Atoms],
        proportions: Sequence[float],
        size: int,
        pixel_size: float | None,
        b_factor: float,
        device: torch.device,
    ):
        super().__init__(max(each.radius for each in atoms), size, pixel_size, b_factor)
        self._device = device
        self._specimens = [Specimen(each, size, self.pixel_size, b_factor) for each in atoms]
        self._ends = torch.tensor(proportions, dtype=torch.float64).cumsum(0)[:-1]
        self._projectors: dict[int, Projector] = {}

    def labels(self, fractions: torch.Tensor) -> Labels:
        classes = torch.bucketize(fractions[:, 0].contiguous(), self._ends.to(fractions.device), right=True)
        return Labels(classes, fractions.new_zeros((len(fractions), 0)))

    def slices(self, rotations: torch.Tensor, labels: Labels) -> torch.Tensor:
        assert labels.classes is not None
        found = rotations.new_zeros((len(rotations), self.size, self.size // 2 + 1), dtype=torch.complex64)
        for number in labels.classes.unique().tolist():
            chosen = (labels.classes == number).nonzero()[:, 0]
            found[chosen] = self._projector(number).slices(rotations[chosen])
        return found

    def volume(self, labels: Labels, index: int) -> np.ndarray:
        assert labels.classes is not None
        return self._specimens[int(labels.classes[index])].potential

    def _projector(self, number: int) -> Projector:
        if number not in self._projectors:
            self._projectors[number] = Projector(torch.from_numpy(self._specimens[number].potential).to(self._device))
        return self._projectors[number]


class Motion(Conformations):
    """Particles whose domain `moving` turns about a hinge, by angles of `extent` degrees in all about each of d axes.

    The latent l of an axis is the angle (l - 1/2) extent; the turn about the first axis comes after that about the
    second. hinge: Å [3]. axes: unit vectors [d, 3]. width: standard deviation of the latents about 1/4 and 3/4, the
    same number for all axes; None: uniform latents.
    """

    def __init__(
        self,
        fixed: Atoms,
        moving: Atoms,
        hinge: np.ndarray,
        axes: np.ndarray,
        extent: float,
        width: float | None,
        proportions: Sequence[float],
        size: int,
        pixel_size: float | None,
        b_factor: float,
        device: torch.device,
    ):
        self._fixed, self._moving, self._hinge, self._axes = fixed, moving, torch.from_numpy(hinge), axes
        self._extent, self._width, self._first = extent, width, proportions[0]
        self._device = device
        self.fractions = len(axes) + (width is not None)
        super().__init__(self._reach(), size, pixel_size, b_factor)
        if self.radius / self.pixel_size > size / 2:
            raise DataError(
                f"{fixed.name} is up to {2 * self.radius:.0f} Å across as its domain moves, and the box "
                f"{size * self.pixel_size:.0f} Å; give pixel_size={2 * self.radius / (FILL * size):.3g}"
            )
        self._volumes: OrderedDict[tuple[float, ...], np.ndarray] = OrderedDict()

    def labels(self, fractions: torch.Tensor) -> Labels:
        d = len(self._axes)
        if self._width is None:
            return Labels(None, fractions[:, :d].double())
        classes = (fractions[:, d] >= self._first).long()
        centres = fractions.new_tensor(_LATENT_OF_STATES)[classes][:, None]
        normal = torch.special.ndtri(fractions[:, :d].clamp(_LEAST_FRACTION, 1 - _LEAST_FRACTION))
        return Labels(classes, (centres + self._width * normal).clamp(0, 1).double())

    def slices(self, rotations: torch.Tensor, labels: Labels) -> torch.Tensor:
        fixed, moving = self._projectors
        Q = self.turns(labels.latents)
        hinge = self._hinge.to(Q)
        own = rotations.double() @ Q
        moved = (rotations.double() @ (hinge - Q @ hinge)[..., None])[:, :2, 0] / self.pixel_size
        return fixed.slices(rotations) + shift_phase(self.size, moved) * moving.slices(own.to(rotations))

    def volume(self, labels: Labels, index: int) -> np.ndarray:
        key = tuple(labels.latents[index].tolist())
        if key not in self._volumes:
            atoms = self.moved(labels.latents[index])
            self._volumes[key] = self._at_rest[0] + potential(atoms, self.size, self.pixel_size, self.b_factor)
            while len(self._volumes) > max(1, _KEPT_BYTES // (4 * self.size**3)):
                self._volumes.popitem(last=False)
        return self._volumes[key]

    def turns(self, latents: torch.Tensor) -> torch.Tensor:
        """The rotations Q of latents [n, d], float64 [n, 3, 3]."""
        angles = torch.deg2rad((latents.double() - 0.5) * self._extent)
        total = torch.eye(3, dtype=torch.float64, device=latents.device)
        for angle, axis in zip(angles.T, self._axes, strict=True):
            total = total @ _turn(torch.from_numpy(axis).to(angle), angle)
        return total

    def moved(self, latent: torch.Tensor) -> Atoms:
        """The atoms of the domain at a latent [d]."""
        Q, h = self.turns(latent[None])[0].cpu().numpy(), self._hinge.numpy()
        return Atoms(self._moving.name, (self._moving.positions - h) @ Q.T + h, self._moving.numbers)

    def _reach(self) -> float:
        """Å to the farthest atom of all conformations, at angles close enough to miss little of it."""
        steps = torch.linspace(0, 1, _ANGLES, dtype=torch.float64)
        latents = torch.cartesian_prod(*[steps] * len(self._axes)).reshape(-1, len(self._axes))
        hull = _outermost(self._moving.positions)
        h = self._hinge.numpy()
        farthest = max(
            float(np.sqrt((((hull - h) @ Q.T + h) ** 2).sum(axis=1).max())) for Q in self.turns(latents).numpy()
        )
        return max(self._fixed.radius, farthest)

    @cached_property
    def _at_rest(self) -> tuple[np.ndarray, np.ndarray]:
        """The potentials of both parts."""
        fixed, moving = (
            potential(atoms, self.size, self.pixel_size, self.b_factor) for atoms in (self._fixed, self._moving)
        )
        return fixed, moving

    @cached_property
    def _projectors(self) -> tuple[Projector, Projector]:
        fixed, moving = (Projector(torch.from_numpy(volume).to(self._device)) for volume in self._at_rest)
        return fixed, moving


def hinge_of(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """The point of contact of two sets of atoms [n, 3]: the mean of the midpoints between atoms of one and the nearest
    of the other within 6 Å, or of the nearest ones, where they do not touch."""
    from scipy.spatial import KDTree

    distances, nearest = (np.asarray(found) for found in KDTree(fixed).query(moving))
    touching = distances <= max(_CONTACT, distances.min())
    return ((moving[touching] + fixed[nearest[touching]]) / 2).mean(axis=0)


def axes_of(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """Two unit vectors perpendicular to the line between the centres of two sets of atoms and to each other, [2, 3]."""
    line = moving.mean(axis=0) - fixed.mean(axis=0)
    line /= math.sqrt((line**2).sum()) or 1.0
    first = np.cross(line, np.eye(3)[np.abs(line).argmin()])
    first /= np.sqrt((first**2).sum())
    return np.stack([first, np.cross(line, first)])


def _turn(axis: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """Rotations by angles [n] in radians about a unit vector [3] (Rodrigues), [n, 3, 3]."""
    x, y, z = axis.tolist()
    K = angle.new_tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    sine, cosine = angle.sin()[:, None, None], angle.cos()[:, None, None]
    return torch.eye(3, dtype=angle.dtype, device=angle.device) + sine * K + (1 - cosine) * (K @ K)


def _outermost(positions: np.ndarray) -> np.ndarray:
    """The corners of the convex hull of positions [n, 3], or all of few or flat ones."""
    from scipy.spatial import ConvexHull, QhullError

    try:
        return positions[ConvexHull(positions).vertices]
    except (QhullError, ValueError):
        return positions
