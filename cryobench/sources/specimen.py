"""A structure in a box: its pixel size, and its potential, computed at first use."""

from __future__ import annotations

import hashlib
import math
from functools import cached_property
from weakref import WeakValueDictionary

import numpy as np

from cryobench.errors import DataError
from cryobench.physics.potential import Atoms, potential

FILL = 0.65
"""Diameter of the particle over the side of the box, where either the side or the pixel size is not given."""
BYTES_PER_VOXEL = 128
"""Peak memory in bytes when the potential of a structure is computed, for each voxel, as measured."""
_IN_USE: WeakValueDictionary[tuple[bytes, int, float, float], np.ndarray] = WeakValueDictionary()
"""The potentials that a specimen has."""


class Specimen:
    """A structure in a box of `size` voxels a side.

    pixel_size: Å per voxel; None: the structure fills `FILL` of the box. b_factor: of the atoms, Å^2. radius: Å from
    the centre to the farthest atom. Raises `DataError` if the structure does not fit.
    """

    def __init__(self, atoms: Atoms, size: int, pixel_size: float | None, b_factor: float):
        self.name, self.radius, self.size = atoms.name, atoms.radius, size
        self._atoms, self._b_factor = atoms, b_factor
        self.pixel_size = pixel_size or 2 * atoms.radius / (FILL * size)
        radius = atoms.radius / self.pixel_size
        if radius > size / 2:
            raise DataError(
                f"{atoms.name} is {2 * atoms.radius:.0f} Å across and the box {size * self.pixel_size:.0f} Å; "
                f"give pixel_size={2 * atoms.radius / (FILL * size):.3g} or size={math.ceil(2 * radius / FILL)}"
            )

    @property
    def has_potential(self) -> bool:
        """Whether `potential` has been computed."""
        return "potential" in vars(self)

    @cached_property
    def potential(self) -> np.ndarray:
        """In volts, float32 [size, size, size] as z, y, x, the centre of the structure at voxel size // 2.

        Not to be written to: specimens of equal atoms, size, pixel size and B-factor share it.
        """
        content = hashlib.sha256(self._atoms.positions.tobytes() + self._atoms.numbers.tobytes()).digest()
        key = content, self.size, self.pixel_size, self._b_factor
        found = _IN_USE.get(key)
        if found is None:
            found = potential(self._atoms, self.size, self.pixel_size, self._b_factor)
            _IN_USE[key] = found
        return found


def side_of(atoms: Atoms, pixel_size: float) -> int:
    """The smallest side of a box that the structure fills by at most `FILL`: even, with no prime factor above 5."""
    from scipy.fft import next_fast_len

    side = max(8, math.ceil(2 * atoms.radius / pixel_size / FILL))
    while side % 2 or next_fast_len(side, real=True) != side:
        side += 1
    return side
