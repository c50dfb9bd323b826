"""What a map needs of its particles: sums of A^T y and of the kernel of A^T A, one for each half.

A is `ctf@project` (`operators.project`) of one half of the particles. Both sums have a fixed size, so that memory does
not grow with the number of particles. The kernel depends on poses and CTFs alone: `HalfKernels` serve several sets of
images of the same particles. Of a specimen with a point group, every image is one from each of the equivalent poses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from cryobench.errors import DataError
from cryobench.operators.project import ProjectionOperator, batch_of
from cryobench.physics.ctf import CtfParameters, transfer
from cryobench.physics.poses import SUBSET, Poses

if TYPE_CHECKING:
    import pandas as pd

TOLERANCE = 1e-4
"""Relative error of the sums in float32, far below their noise: half maps change by 7e-5, and correlate with exact ones
to 1e-8. In float64 it is 1e-12 (`operators.project.TOLERANCE`)."""


def halves_of(table: pd.DataFrame | None, count: int, what: str = "the table", *, least: int = 2) -> torch.Tensor:
    """The half of each particle, 0 or 1, int64 [count]: `rlnRandomSubset` less 1, else the parity of its number.

    Raises `DataError` for other subsets, and for halves of fewer than `least` particles.
    """
    halves = np.arange(count) % 2
    if table is not None and SUBSET in table.columns:
        subsets = [str(value).removesuffix(".0") for value in table[SUBSET].tolist()]
        wrong = [row for row, value in enumerate(subsets) if value not in ("1", "2")]
        if wrong:
            raise DataError(f"{what}: row {wrong[0] + 1} has {SUBSET} {subsets[wrong[0]]}; give 1 or 2")
        halves = np.array([int(value) - 1 for value in subsets], dtype=np.int64)
    counts = np.bincount(halves, minlength=2)
    if counts.min() < least:
        raise DataError(
            f"{what}: the halves have {counts[0]} and {counts[1]} particles; give at least {least} in each half"
        )
    return torch.from_numpy(halves)


def projection_of(
    side: int,
    pixel_size: float,
    poses: Poses,
    ctf: CtfParameters | None,
    *,
    symmetry: torch.Tensor | None = None,
    tolerance: float | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> ProjectionOperator:
    """`ctf@project` of N particles, or `project` without a CTF; with a point group of G rotations of G N images, all
    images at the first rotation, then all at the second, and so on.

    A specimen that a rotation g does not change gives the same image at the poses A and A g.
    """
    group = torch.eye(3, dtype=torch.float64)[None] if symmetry is None else symmetry
    matrices = (poses.matrices @ group[:, None]).flatten(0, 1)
    factors = None if ctf is None else transfer(ctf, (side, side), pixel_size).repeat(len(group), 1, 1, 1)
    shift = (poses.shift / pixel_size).repeat(len(group), 1)
    return ProjectionOperator(side, matrices, shift, transfer=factors, tolerance=tolerance, dtype=dtype, device=device)


@dataclass(frozen=True, eq=False)
class _Particles:
    """n particles. ctf: None without a CTF. images: [n, D, D], or None."""

    poses: Poses
    ctf: CtfParameters | None
    images: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.poses)

    def select(self, chosen: slice | torch.Tensor) -> _Particles:
        return _Particles(
            self.poses.select(chosen),
            None if self.ctf is None else self.ctf.select(chosen),
            None if self.images is None else self.images[chosen],
        )

    @staticmethod
    def join(parts: list[_Particles]) -> _Particles:
        if len(parts) == 1:
            return parts[0]
        poses = Poses(*(torch.cat([getattr(part.poses, name) for part in parts]) for name in ("angles", "shift")))
        ctfs = [part.ctf for part in parts if part.ctf is not None]
        images = [part.images for part in parts if part.images is not None]
        return _Particles(poses, CtfParameters.join(ctfs) if ctfs else None, torch.cat(images) if images else None)


class _Batches:
    """Hands particles on half by half in batches of `length`, of whatever size they come: a batch of the transforms
    takes the same time for few particles as for many."""

    def __init__(self, length: int):
        self._length = length
        self._waiting: tuple[list[_Particles], list[_Particles]] = ([], [])

    def add(self, particles: _Particles, halves: torch.Tensor) -> Iterator[tuple[int, _Particles]]:
        """The batches that are full: the half and its particles."""
        for half, waiting in enumerate(self._waiting):
            chosen = (halves == half).nonzero()[:, 0]
            for rows in chosen.split(self._length):
                waiting.append(particles.select(rows))
                if sum(map(len, waiting)) >= self._length:
                    yield from self._release(half)

    def rest(self) -> Iterator[tuple[int, _Particles]]:
        """The particles that wait."""
        for half in (0, 1):
            yield from self._release(half)

    def _release(self, half: int) -> Iterator[tuple[int, _Particles]]:
        waiting = self._waiting[half]
        if waiting:
            particles = _Particles.join(waiting)
            waiting.clear()
            yield half, particles


class _Sums(ABC):
    """Sums over the particles of each half, made batch by batch."""

    def __init__(
        self, side: int, pixel_size: float, shape: tuple[int, ...], symmetry: torch.Tensor | None, dtype: torch.dtype
    ):
        self.side, self.pixel_size, self.symmetry, self.dtype = side, pixel_size, symmetry, dtype
        self._totals = torch.zeros((2, *shape), dtype=torch.float64)
        self._batches = _Batches(max(1, batch_of(side) // (1 if symmetry is None else len(symmetry))))

    def _count(self, particles: _Particles, halves: torch.Tensor) -> None:
        if len(halves) != len(particles):
            raise ValueError(f"{len(halves)} halves for {len(particles)} particles")
        if particles.ctf is not None and len(particles.ctf) != len(particles):
            raise ValueError(f"{len(particles.ctf)} CTFs for {len(particles)} particles")
        for half, batch in self._batches.add(particles, halves):
            self._include(half, batch)

    def _total(self) -> torch.Tensor:
        for half, batch in self._batches.rest():
            self._include(half, batch)
        return self._totals

    @abstractmethod
    def _include(self, half: int, particles: _Particles) -> None:
        """Add the terms of particles of one half to its sum."""

    def _operator(self, particles: _Particles) -> ProjectionOperator:
        tolerance = TOLERANCE if self.dtype == torch.float32 else None
        return projection_of(self.side, self.pixel_size, particles.poses, particles.ctf, symmetry=self.symmetry,
                             tolerance=tolerance, dtype=self.dtype)  # fmt: skip


class HalfKernels(_Sums):
    """The kernels of A^T A of both halves.

    side: D, pixels. pixel_size: Å, by which shifts and CTFs are scaled. symmetry: rotations [G, 3, 3] of the specimen's
    point group (`symmetry.rotations`); None: no symmetry. dtype: of the transforms, which states their error.
    """

    def __init__(
        self,
        side: int,
        pixel_size: float,
        *,
        symmetry: torch.Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(side, pixel_size, (2 * side,) * 3, symmetry, dtype)

    def add(self, poses: Poses, ctf: CtfParameters | None, halves: torch.Tensor) -> None:
        """Include n particles. ctf: None without a CTF. halves: 0 or 1 for each, int64 [n]."""
        self._count(_Particles(poses, ctf), halves)

    @property
    def kernels(self) -> torch.Tensor:
        """K(d) at index d modulo 2 D, float64 [2, 2 D, 2 D, 2 D]."""
        return self._total()

    def _include(self, half: int, particles: _Particles) -> None:
        self._totals[half] += self._operator(particles).kernel()


class HalfMaps(_Sums):
    """A^T y of both halves, and their kernels.

    kernels: those of the same particles, which are then not computed again; None: own ones, of the images that are
    added. symmetry, dtype: as for `HalfKernels`; those of given kernels.
    """

    def __init__(
        self,
        side: int,
        pixel_size: float,
        *,
        kernels: HalfKernels | None = None,
        symmetry: torch.Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        self._shared = kernels is not None
        self._kernels = kernels or HalfKernels(side, pixel_size, symmetry=symmetry, dtype=dtype)
        super().__init__(side, pixel_size, (side,) * 3, self._kernels.symmetry, self._kernels.dtype)

    def add(self, images: torch.Tensor, poses: Poses, ctf: CtfParameters | None, halves: torch.Tensor) -> None:
        """Include n images [n, D, D] of particles. ctf: None without a CTF. halves: 0 or 1 for each, int64 [n]."""
        if tuple(images.shape) != (len(poses), self.side, self.side):
            raise ValueError(f"images of shape {list(images.shape)} for {len(poses)} poses of {self.side} pixels")
        self._with_kernels(
            lambda: self._count(_Particles(poses, ctf, images.cpu()), halves),
            lambda: self._kernels.add(poses, ctf, halves),
        )

    @property
    def sums(self) -> torch.Tensor:
        """A^T y of each half, float64 [2, D, D, D]."""
        self._with_kernels(self._total, lambda: self._kernels.kernels)
        return self._total()

    @property
    def kernels(self) -> torch.Tensor:
        """Those of `HalfKernels`."""
        return self._kernels.kernels

    def _with_kernels(self, own: Callable[[], object], of_kernels: Callable[[], object]) -> None:
        """Do the work for the images and, at the same time, that for kernels that are not shared: each of the
        transforms has one thread, so that sums do not depend on their number."""
        if self._shared:
            own()
            return
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(of_kernels)
            own()
            other.result()

    def _include(self, half: int, particles: _Particles) -> None:
        assert particles.images is not None
        operator = self._operator(particles)
        copies = operator.measurement_shape[0] // len(particles)
        images = particles.images.to(operator.dtype).repeat(copies, 1, 1)[None]
        self._totals[half] += operator.A_adjoint(images)[0, 0].double()
