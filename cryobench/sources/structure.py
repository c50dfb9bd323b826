"""The source `structure`: the potentials of atomic structures as volumes, the truth of reconstructions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from cryobench.core import Shape, Source, Stack
from cryobench.core.source import size_text
from cryobench.errors import DataError, ParameterError, shortened
from cryobench.limits import check_memory
from cryobench.sources.specimen import BYTES_PER_VOXEL, FILL, Specimen, side_of
from cryobench.sources.structures import catalogue, names_of, read_structure

_LEAST_SIZE = 8
_LEAST_PIXEL = 0.01
"""Å; side and memory of a smaller one are beyond any machine."""


@dataclass(frozen=True)
class Structure(Source):
    """The electrostatic potential of an atomic structure in a cube, in volts: that which `simulate` projects.

    Without a size, the cube is the smallest that the particle fills by 0.65, as in `simulate`, whose side is even and
    has no prime factor above 5. Hydrogens and water are omitted. There is no noise and no CTF.
    """

    structure: Annotated[
        str, "packaged name, mmCIF or PDB file; several joined by +, or train, val or test, are as many volumes"
    ] = "6zu5"
    pixel_size: Annotated[float | None, f"Å per voxel; none: the particle fills {FILL:g} of the box"] = 3.0
    size: Annotated[int | None, f"side in voxels; none: the particle fills {FILL:g} of the box"] = None
    chains: Annotated[str, "chains of the structure, joined by commas, or all"] = "all"
    assembly: Annotated[str | None, "biological assembly of a file to build; none: as deposited"] = None
    b_factor: Annotated[float, "B-factor of the atoms, Å^2"] = 50.0

    def __post_init__(self) -> None:
        if self.pixel_size is None and self.size is None:
            raise ParameterError("structure: pixel_size and size are both none; give at least one")
        if self.pixel_size is not None and not _LEAST_PIXEL <= self.pixel_size < math.inf:
            raise ParameterError(
                f"structure: pixel_size must be positive, at least {_LEAST_PIXEL} Å, got {self.pixel_size:g}"
            )
        if not 0 <= self.b_factor < math.inf:
            raise ParameterError(f"structure: b_factor must be at least 0, got {self.b_factor:g}")
        if self.size is not None:
            if self.size < _LEAST_SIZE:
                raise ParameterError(f"structure: size must be at least {_LEAST_SIZE} voxels, got {self.size}")
            check_memory(
                f"structure with a volume of {shortened(str(self.size), 30)}^3 voxels", BYTES_PER_VOXEL * self.size**3,
                "give a smaller size",
            )  # fmt: skip

    def open(self) -> StructureStack:
        """Read the atoms; potentials are computed when they are read. Raises `DataError` for an invalid structure, or
        a size that it does not fit."""
        return StructureStack(self)


class StructureStack(Stack):
    """The potentials of a `Structure`. Several structures are in boxes of the same number of voxels."""

    def __init__(self, recipe: Structure):
        self._recipe = recipe
        names = names_of(recipe.structure)
        atoms = [read_structure(name, chains=recipe.chains, assembly=recipe.assembly) for name in names]
        size = recipe.size or max(side_of(each, recipe.pixel_size or 1.0) for each in atoms)
        self.shape: Shape = (size, size, size)
        self.label = "+".join(each.name for each in atoms)
        check_memory(
            f"{self.label} in {size_text(self.shape)} voxels of {recipe.pixel_size} Å", BYTES_PER_VOXEL * size**3,
            "give a larger pixel_size", DataError,
        )  # fmt: skip
        self._specimens = [Specimen(each, size, recipe.pixel_size, recipe.b_factor) for each in atoms]

    def __len__(self) -> int:
        return len(self._specimens)

    def read(self, index: int) -> np.ndarray:
        """The potential of structure `index` in volts, float32 [D, D, D] (z, y, x)."""
        self.check(index)
        return self._specimens[index].potential.copy()

    def files(self, images: Sequence[int]) -> list[Path]:
        """The files of the structures; none for packaged ones."""
        return [Path(name).expanduser() for name in names_of(self._recipe.structure) if name not in catalogue()]

    def pixel_size(self, index: int) -> float:
        """Å per voxel."""
        self.check(index)
        return self._specimens[index].pixel_size

    def particle_radius(self, index: int) -> float:
        """Å from the centre of the structure to its farthest atom."""
        self.check(index)
        return self._specimens[index].radius

    @property
    def white_noise(self) -> bool:
        """There is no noise."""
        return True

    @property
    def origin(self) -> dict[str, str]:
        """The structures."""
        return {"structure": ",".join(specimen.name for specimen in self._specimens)}
