"""Particle tables of RELION and CryoSPARC: the images that they list, and the search for their stacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cryobench.errors import DataError

if TYPE_CHECKING:
    import pandas as pd


class Stacks:
    """The stacks that a table names. Each is searched when it is used: under `data_root`, the table's folder, its
    parents, or the current folder; an absolute path is used as it is.

    Raises `DataError` for a data_root that is not a folder.
    """

    def __init__(self, names: Sequence[str], table: Path, data_root: str | None):
        self._names, self._table, self._folders = names, table, _folders(table, data_root)

    def find(self, number: int) -> Path:
        """The path of a stack. Raises `DataError` if it is in none of the folders."""
        name = self._names[number]
        tried = list(dict.fromkeys(folder / name for folder in self._folders))
        for candidate in tried:
            if candidate.is_file():
                return candidate
        raise DataError(
            f"{self._table} names the stack {name}, which does not exist; tried {', '.join(map(str, tried))}; "
            "pass --data-root (data_root=FOLDER) with the folder of the stacks"
        )


@dataclass(frozen=True)
class Particles:
    """The n images that a table lists: number k is image `page[k]` (0-based) of stack `stack_of[k]`.

    pixel_sizes: Å per pixel [n], or None if the table has none. table: all metadata in RELION's columns, a row per
    image, including the columns of its optics group; None if there is none. signs: 1 or -1 for each image [n], by which
    its pixels are multiplied; None for 1.
    """

    stacks: Stacks
    stack_of: np.ndarray
    page: np.ndarray
    pixel_sizes: np.ndarray | None
    table: pd.DataFrame | None
    signs: np.ndarray | None = None


def positive(pixel_sizes: np.ndarray, table: Path | str) -> np.ndarray:
    """The pixel sizes [n], Å. Raises `DataError` for one that is not positive and finite."""
    wrong = ~(np.isfinite(pixel_sizes) & (pixel_sizes > 0))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"{table}: row {row + 1} has a pixel size of {pixel_sizes[row]:g} Å; expected a positive number"
        )
    return pixel_sizes


def _folders(table: Path, data_root: str | None) -> list[Path]:
    """The folders to search for stacks, in order, without duplicates."""
    first = []
    if data_root is not None:
        root = Path(data_root).expanduser()
        if not root.is_dir():
            raise DataError(f"data_root {data_root} is not a folder; give the folder that contains the stacks")
        first = [root.absolute()]
    home = table.absolute().parent
    return list(dict.fromkeys([*first, home, *home.parents, Path.cwd()]))
