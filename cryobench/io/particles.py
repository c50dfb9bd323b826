"""Particle tables of RELION and CryoSPARC: the images that they list, and the search for their stacks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cryobench.errors import DataError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Particles:
    """The n images that a table lists: number k is image `page[k]` (0-based) of stack `stacks[stack_of[k]]`.

    pixel_sizes: Å per pixel [n], or None if the table has none. table: all metadata in RELION's columns, a row per
    image, including the columns of its optics group; None if there is none.
    """

    stacks: list[Path]
    stack_of: np.ndarray
    page: np.ndarray
    pixel_sizes: np.ndarray | None
    table: pd.DataFrame | None


def find_stacks(names: list[str], table: Path, data_root: str | None) -> list[Path]:
    """The stacks of these names: under `data_root`, the table's folder, its parents, or the current folder.

    Raises `DataError` for a stack that is in none of these folders.
    """
    folders = _folders(table, data_root)
    return [_find(name, folders, table) for name in names]


def positive(pixel_sizes: np.ndarray, table: Path) -> np.ndarray:
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


def _find(name: str, folders: list[Path], table: Path) -> Path:
    """The stack of this name in the first folder that has it (an absolute path is used as it is)."""
    tried = list(dict.fromkeys(folder / name for folder in folders))
    for candidate in tried:
        if candidate.is_file():
            return candidate
    raise DataError(
        f"{table} names the stack {name}, which does not exist; tried {', '.join(map(str, tried))}; "
        "pass --data-root (data_root=FOLDER) with the folder of the stacks"
    )
