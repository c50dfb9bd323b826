"""Poses of particles in the tables of RELION and CryoSPARC, without their images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cryobench.errors import DataError
from cryobench.io.cryosparc import read_cs
from cryobench.io.image_files import check_file
from cryobench.io.star import origins_in_angstrom, particle_table
from cryobench.physics.poses import ANGLES

if TYPE_CHECKING:
    import pandas as pd


def read_poses(path: Path, pixel_size: float | None = None) -> pd.DataFrame:
    """The table of a star file of RELION 3.0 or later, or of a .cs file: a row per particle in RELION's columns.

    pixel_size: Å, for shifts in pixels in a table that does not state it. Shifts are in Å. The stacks that it names
    need not exist. Raises `DataError` for a file without poses.
    """
    check_file(path, "table of poses (.star or .cs)")
    if path.suffix.lower() == ".cs":
        particles = read_cs(path, None)
        if particles.table is None or ANGLES[0] not in particles.table.columns:
            raise DataError(f"{path} has no poses (alignments3D/pose); give the particles of a refinement")
        return origins_in_angstrom(particles.table, pixel_size, path)
    return origins_in_angstrom(particle_table(path, ANGLES[0]), pixel_size, path)
