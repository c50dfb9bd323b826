"""Poses of particles in the tables of RELION and CryoSPARC, without their images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cryobench.errors import DataError
from cryobench.io.cryosparc import read_cs
from cryobench.io.image_files import check_file
from cryobench.io.star import particle_table, pixel_sizes
from cryobench.physics.poses import ANGLES, SHIFTS

if TYPE_CHECKING:
    import pandas as pd

_PIXELS = ("rlnOriginX", "rlnOriginY")
"""The shifts of RELION 3.0, in pixels."""


def read_poses(path: Path) -> pd.DataFrame:
    """The table of a star file of RELION 3.0 or later, or of a .cs file: a row per particle in RELION's columns.

    Shifts are in Å. The stacks that it names need not exist. Raises `DataError` for a file without poses.
    """
    check_file(path, "table of poses (.star or .cs)")
    if path.suffix.lower() == ".cs":
        particles = read_cs(path, None)
        table, sizes = particles.table, particles.pixel_sizes
        if table is None or ANGLES[0] not in table.columns:
            raise DataError(f"{path} has no poses (alignments3D/pose); give the particles of a refinement")
    else:
        table = particle_table(path, ANGLES[0])
        sizes = pixel_sizes(table, path)
    return in_angstrom(table, sizes, str(path))


def in_angstrom(table: pd.DataFrame, pixel_sizes: np.ndarray | None, what: str) -> pd.DataFrame:
    """The table with shifts in Å, if it has only those in pixels. pixel_sizes: Å [n], or None if unknown.

    Raises `DataError` for shifts in pixels of unknown size.
    """
    import pandas as pd

    if set(SHIFTS) & set(table.columns) or not set(_PIXELS) <= set(table.columns):
        return table
    shifts = table[list(_PIXELS)].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    if pixel_sizes is None and shifts.any():
        raise DataError(f"{what} has shifts in pixels ({_PIXELS[0]}) and no pixel size; add rlnImagePixelSize, in Å")
    sizes = np.ones(len(table)) if pixel_sizes is None else pixel_sizes
    return table.assign(**dict(zip(SHIFTS, (shifts * sizes[:, None]).T, strict=True)))
