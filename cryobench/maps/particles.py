"""Particles with known poses, and the operator of their images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from cryobench.core import Imaging
from cryobench.core.source import size_text
from cryobench.errors import IncompatibleError
from cryobench.io.star import origins_in_angstrom
from cryobench.maps.half_maps import projection_of
from cryobench.operators.project import ProjectionOperator
from cryobench.physics.ctf import COLUMNS, CtfParameters
from cryobench.physics.poses import ANGLES, CLASS, Poses

_SAME_SIZE = 1e-4
"""Relative difference of pixel sizes that are the same, stated with different digits."""


@dataclass(frozen=True, eq=False)
class Particles:
    """N particles of square images of `side` pixels. ctf: of each; None without one. pixel_size: Å, None if unknown."""

    side: int
    poses: Poses
    ctf: CtfParameters | None
    pixel_size: float | None

    def select(self, chosen: slice | torch.Tensor) -> Particles:
        """Some of the particles."""
        return replace(self, poses=self.poses.select(chosen), ctf=None if self.ctf is None else self.ctf.select(chosen))


def particles_of(imaging: Imaging, what: str, *, poses: bool = True) -> Particles:
    """The particles in images; their CTFs if they are known and the images have them.

    what: the caller, for messages. poses: whether they must be known; else they are 0. Raises a `CryobenchError` for
    images that are not square or show several structures, tables without poses, pixel sizes that differ, and shifts
    without a pixel size.
    """
    if len(imaging.shape) != 2 or len(set(imaging.shape)) > 1:
        raise IncompatibleError(f"{what} needs square images, got {size_text(imaging.shape)}")
    table = imaging.table
    if poses and (table is None or not set(ANGLES) <= set(table.columns)):
        raise IncompatibleError(f"{what} needs particles with known poses ({', '.join(ANGLES)}), and the table of the "
                                "images has none")  # fmt: skip
    classes = sorted(set(table[CLASS])) if table is not None and CLASS in table.columns else []
    if len(classes) > 1:
        raise IncompatibleError(
            f"{what} needs particles of one structure, and the images show {len(classes)} ({CLASS}); choose one"
        )
    name = "the table of the images"
    if poses and table is not None:
        known = Poses.from_table(origins_in_angstrom(table, None, name), name)
    else:
        known = Poses.unknown(len(imaging.pixel_size))
    pixel_size = _common(imaging.pixel_size, what)
    if pixel_size is None and known.shift.any():
        raise IncompatibleError(f"{what}: the particles have shifts in Å, and their pixel size is not known")
    with_ctf = table is not None and imaging.through_ctf and set(COLUMNS.values()) & set(table.columns)
    ctf = CtfParameters.from_table(table, name) if table is not None and with_ctf else None
    if pixel_size is None and ctf is not None:
        raise IncompatibleError(f"{what}: the particles have CTFs, and their pixel size is not known")
    return Particles(imaging.shape[0], known, ctf, pixel_size)


def _common(sizes: Sequence[float | None], what: str) -> float | None:
    """Å per pixel of all images, None if unknown. Raises `IncompatibleError` for sizes that differ."""
    known = [size for size in sizes if size is not None]
    if not known:
        return None
    if len(known) < len(sizes) or max(known) > min(known) * (1 + _SAME_SIZE):
        found = f"from {min(known):g} to {max(known):g} Å" if len(known) == len(sizes) else "unknown for some of them"
        raise IncompatibleError(f"{what}: the pixel size of the images is {found}; run them separately")
    return known[0]


def projection(particles: Particles, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> ProjectionOperator:
    """The operator from a structure [1, 1, D, D, D] to the images [1, N, D, D] of particles."""
    size = particles.pixel_size or 1.0
    return projection_of(particles.side, size, particles.poses, particles.ctf, dtype=dtype, device=device)
