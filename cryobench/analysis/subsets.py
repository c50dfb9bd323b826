"""Tables of some of the particles of a result, for the next refinement.

NAME.star  RELION 3.1: all columns, the poses and CTFs that were used, images in their own stacks
NAME.cs    CryoSPARC, where the source is a .cs: rows of that file with all fields
NAME.pkl   cryoDRGN's --ind: numbers of the particles in the source, from 0 (int64, pickled)

Stacks are named by absolute paths, because RELION searches relative ones in its project alone. Images in MRC files are
named as they are stored: without the resizing and inversion of the source. Where there are none, as for simulated
particles, or where their signs differ, the images of all particles are written once to particles.mrcs, as the source
gives them, and the numbers in NAME.pkl are those in it. RELION reads stacks from names in .mrcs only.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cryobench.core import Stack
from cryobench.errors import CryobenchError, DataError, reason_of
from cryobench.io.cryosparc import selected_rows
from cryobench.io.writing import star_text, write_mrcs
from cryobench.physics.poses import Poses
from cryobench.plan.dataset import open_stack
from cryobench.registry import Registry
from cryobench.results.heterogeneity import SavedHeterogeneity
from cryobench.sources.stacks import FileStack

if TYPE_CHECKING:
    import pandas as pd

IMAGES = "particles.mrcs"
_AT_ONCE = 2**24
"""Pixels of images that are read at once."""
_MRC = (".mrc", ".mrcs", ".map")


@dataclass(frozen=True, eq=False)
class Subsets:
    """Writes tables of particles. stack: the source. out: where the folder with particles.mrcs will be."""

    saved: SavedHeterogeneity
    stack: Stack
    out: Path

    @staticmethod
    def of(saved: SavedHeterogeneity, registry: Registry, out: Path) -> Subsets:
        """Raises `DataError` if the source cannot be opened, or lacks images of the result."""
        try:
            stack = open_stack(saved.about.source, {}, registry)
            count = len(stack)
        except CryobenchError as error:
            raise DataError(f"the images of {saved.folder} cannot be opened: {reason_of(error)}; give --no-particles "
                            "to write maps without tables of particles") from error  # fmt: skip
        if max(saved.about.images) >= count:
            raise DataError(f"{stack.label} has {count} images, and the result is of image {max(saved.about.images)}; "
                            "give --no-particles to write maps without tables of particles")  # fmt: skip
        return Subsets(saved, stack, out.absolute())

    @cached_property
    def names(self) -> list[str] | None:
        """NUMBER@STACK of each particle in MRC files; None where there are none."""
        if not isinstance(self.stack, FileStack) or self.stack.signs is not None:
            return None
        names = []
        for index in self.saved.about.images:
            file, page = self.stack.place(index)
            if file.path.suffix.lower() not in _MRC:
                return None
            names.append(f"{page + 1:06d}@{file.path.absolute()}")
        return names

    def write_images(self, folder: Path) -> bool:
        """Write particles.mrcs to a folder if the tables need it, and whether they do."""
        if self.names is not None:
            return False
        write_mrcs(folder / IMAGES, self._chunks(), self._pixel_size)
        return True

    def _chunks(self) -> Iterator[np.ndarray]:
        numbers = self.saved.about.images
        at_once = max(1, _AT_ONCE // int(np.prod(self.stack.shape)))
        for start in range(0, len(numbers), at_once):
            yield self.stack.read_block(numbers[start : start + at_once])

    @property
    def _pixel_size(self) -> float | None:
        return self.stack.pixel_size(self.saved.about.images[0])

    def write(self, folder: Path, name: str, chosen: np.ndarray) -> list[str]:
        """Write the tables of these particles, by their places in the result [n]. Returns the names of the files."""
        files = {f"{name}.star": self._star(folder / f"{name}.star", chosen).encode()}
        numbers = np.asarray(self.saved.about.images, dtype=np.int64)[chosen] if self.names else chosen
        files[f"{name}.pkl"] = pickle.dumps(np.asarray(numbers, dtype=np.int64))
        for file, content in files.items():
            (folder / file).write_bytes(content)
        source = self.stack.path if isinstance(self.stack, FileStack) else None
        if source is None or source.suffix.lower() != ".cs":
            return list(files)
        rows = selected_rows(source, [self.saved.about.images[place] for place in chosen], self._found(chosen))
        with (folder / f"{name}.cs").open("wb") as stream:  # np.save would add .npy to a name
            np.save(stream, rows)
        return [*files, f"{name}.cs"]

    def _star(self, path: Path, chosen: np.ndarray) -> str:
        table: pd.DataFrame = self.saved.table.iloc[chosen].reset_index(drop=True)
        images = [self.saved.about.images[place] for place in chosen]
        if isinstance(self.stack, FileStack):
            stored = [self.stack.stored_pixel_size(index) for index in images]
        else:
            stored = [self.stack.pixel_size(index) for index in images]
        if self.names is not None and isinstance(self.stack, FileStack):
            written, names = stored, [self.names[place] for place in chosen]
            side = self.stack.place(images[0])[0].shape[-1]
        else:
            written = [self.stack.pixel_size(index) for index in images]
            names, side = [f"{place + 1:06d}@{self.out / IMAGES}" for place in chosen], self.stack.shape[-1]
        return star_text(path, table, IMAGES, _known(written), side, stored_pixel_size=_known(stored), names=names)

    def _found(self, chosen: np.ndarray) -> Poses | None:
        """The poses that the solver found."""
        found = self.saved.found
        if found.rotations is None or found.shift is None:
            return None
        return Poses.of_matrices(found.rotations[chosen], found.shift[chosen])


def _known(sizes: Sequence[float | None]) -> list[float] | None:
    """The pixel sizes; None if one is unknown."""
    known = [size for size in sizes if size is not None]
    return known if len(known) == len(sizes) else None
