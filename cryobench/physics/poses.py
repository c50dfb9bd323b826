"""Orientations and shifts of particles, in RELION's convention.

rot, tilt and psi are RELION's Euler angles (`projection.matrices`); the origin in RELION's tables is the shift that
centres the particle, the negative of its place in the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cryobench.errors import DataError
from cryobench.numerics.philox import RowDraws
from cryobench.physics.projection import euler_angles, matrices

if TYPE_CHECKING:
    import pandas as pd

ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
SHIFTS = ("rlnOriginXAngst", "rlnOriginYAngst")
"""RELION's columns, degrees and Å."""
CLASS = "rlnClassNumber"
"""RELION's column of the number of the structure, from 1."""
SUBSET = "rlnRandomSubset"
"""RELION's column of the half of a particle, 1 or 2."""


@dataclass(frozen=True, eq=False)
class Poses:
    """N poses. angles: rot, tilt and psi in degrees, float64 [N, 3]. shift: of the particle, (x, y) in Å, [N, 2]."""

    angles: torch.Tensor
    shift: torch.Tensor

    def __len__(self) -> int:
        return len(self.angles)

    def select(self, chosen: slice | torch.Tensor) -> Poses:
        """Some of the poses."""
        return Poses(self.angles[chosen], self.shift[chosen])

    @staticmethod
    def uniform(count: int, seed: int) -> Poses:
        """Orientations uniform on SO(3) without shifts. The first N of a larger count are the same."""
        rows = torch.arange(count)
        angles = euler_angles(RowDraws("poses", seed).uniform(rows, 0, 3))
        return Poses(torch.stack(angles, dim=1), torch.zeros((count, 2), dtype=torch.float64))

    @staticmethod
    def unknown(count: int) -> Poses:
        """No rotations and no shifts, in the place of poses that are not known."""
        return Poses(torch.zeros((count, 3), dtype=torch.float64), torch.zeros((count, 2), dtype=torch.float64))

    @staticmethod
    def of_matrices(rotations: torch.Tensor, shift: torch.Tensor) -> Poses:
        """The poses of matrices A [N, 3, 3] of `projection` and shifts [N, 2] in Å; psi is 0 where tilt is 0."""
        A = rotations.double()
        tilt = torch.arccos(A[:, 2, 2].clamp(-1, 1))
        level = torch.hypot(A[:, 2, 0], A[:, 2, 1]) < 1e-9  # only rot + psi is defined, or their difference
        rot = torch.where(
            level, torch.atan2(A[:, 0, 1] * A[:, 2, 2].sign(), A[:, 1, 1]), torch.atan2(A[:, 2, 1], A[:, 2, 0])
        )
        psi = torch.where(level, 0.0, torch.atan2(A[:, 1, 2], -A[:, 0, 2]))
        return Poses(torch.rad2deg(torch.stack([rot, tilt, psi], dim=1)), shift.double())

    @staticmethod
    def from_table(table: pd.DataFrame, what: str = "the table") -> Poses:
        """The poses in a table with RELION's columns, a row per particle; shifts are 0 where it has none.

        Raises `DataError` for missing columns and for values that are not finite.
        """
        missing = [column for column in ANGLES if column not in table.columns]
        if missing:
            raise DataError(f"{what} lacks {', '.join(missing)}; poses need {', '.join(ANGLES)}")
        shifts = [_numbers(table, name, what) if name in table.columns else np.zeros(len(table)) for name in SHIFTS]
        angles = [_numbers(table, name, what) for name in ANGLES]
        return Poses(*(torch.from_numpy(np.stack(columns, axis=1)) for columns in (angles, [-x for x in shifts])))

    def to_table(self) -> pd.DataFrame:
        """A row per particle, in RELION's columns."""
        import pandas as pd

        columns = torch.cat([self.angles, -self.shift], dim=1).numpy()
        return pd.DataFrame(columns, columns=list(ANGLES + SHIFTS))

    @property
    def matrices(self) -> torch.Tensor:
        """The matrices A of `projection`, float64 [N, 3, 3]."""
        return matrices(*self.angles.unbind(1))


def _numbers(table: pd.DataFrame, column: str, what: str) -> np.ndarray:
    import pandas as pd

    given: Any = table[column]
    values = np.asarray(pd.to_numeric(given, errors="coerce"), dtype=np.float64)
    wrong = ~np.isfinite(values)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(f"{what}: row {row + 1} has {column} {given.iloc[row]}; give a finite number")
    return values
