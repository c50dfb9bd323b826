"""RELION star files: the images of stacks that they list, with pixel sizes and all other metadata."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cryobench.errors import DataError, reason_of
from cryobench.io.image_files import check_file
from cryobench.io.particles import Particles, Stacks, positive
from cryobench.io.star_text import parse

if TYPE_CHECKING:
    import pandas as pd

PixelSize = float | Sequence[float | None] | None
"""Å per pixel of all images or of each, None if unknown."""

_NAME, _GROUP = "rlnImageName", "rlnOpticsGroup"
PIXEL_SIZES = (
    "rlnImagePixelSize",
    "rlnPixelSize",
    ("rlnDetectorPixelSize", "rlnMagnification"),
    "rlnMicrographPixelSize",
)
"""The columns that state the pixel size of the images; of those that a table has, the first counts: that of RELION 3.1,
those of 3.0 (Å, or the detector's pixel in µm and the magnification), and that of the micrograph, which is right for
images that were not resized."""


def read_star(path: Path, data_root: str | None) -> Particles:
    """Read a particle star file of RELION 3.0 (one table) or 3.1 (an optics table and a particle table).

    Stacks are searched when they are used, under `data_root`, the star file's folder, its parents, then the current
    folder. Raises `DataError` for a file that is not a star file, and for missing or malformed image names.
    """
    check_file(path, "star file")
    table = particle_table(path)
    parts = table[_NAME].astype("str").str.extract(r"^\s*([0-9]{1,18})@(\S.*?)\s*$")
    page = parts[0].fillna("0").astype("int64").to_numpy() - 1
    if (page < 0).any():
        row = int(np.argmax(page < 0))
        raise DataError(
            f"{path}: row {row + 1} names the image {str(table[_NAME].iloc[row])!r}; expected NUMBER@STACK, counted "
            "from 1, such as 000001@particles.mrcs"
        )
    stack_of, names = parts[1].factorize()
    stacks = Stacks([str(name) for name in names], path, data_root)
    return Particles(stacks, stack_of, page, pixel_sizes(table, path), table)


def particle_table(path: Path, column: str = _NAME) -> pd.DataFrame:
    """The table of particles, merged with the columns of its optics groups: that with this column.

    Raises `DataError` for a file that is not a star file, and for one without this column or without rows.
    """
    blocks = _blocks(path)
    named = [name for name, block in blocks.items() if column in block.columns]
    if not named:
        found = "; ".join(f"{name or 'unnamed'}: {', '.join(block.columns)}" for name, block in blocks.items())
        raise DataError(f"{path} has no {column} column (tables: {found or 'none'}); expected a particle star file")
    table = blocks["particles" if "particles" in named else named[0]]
    if table.empty:
        raise DataError(f"{path} lists no images; expected a particle star file with at least one row")
    optics = blocks.get("optics")
    return table if optics is None else _merge_optics(table, optics, path)


def _blocks(path: Path) -> dict[str, pd.DataFrame]:
    try:
        return parse(path.read_bytes().decode())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a readable star file: {reason_of(error)}; expected RELION's format") from error


def _merge_optics(table: pd.DataFrame, optics: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Add the columns of its optics group to each row; columns that both tables have are not replaced."""
    if _GROUP not in table.columns or _GROUP not in optics.columns:
        raise DataError(
            f"{path} has an optics table, but not {_GROUP} in both tables; expected RELION 3.1's two tables"
        )
    if not optics[_GROUP].is_unique:
        raise DataError(f"{path} lists an optics group twice in its optics table; expected each {_GROUP} once")
    unknown = ~np.isin(table[_GROUP].to_numpy(), optics[_GROUP].to_numpy())
    if unknown.any():
        row = int(np.argmax(unknown))
        group, known = table[_GROUP].iloc[row], ", ".join(map(str, optics[_GROUP]))
        raise DataError(f"{path}: row {row + 1} is of optics group {group}; the optics table has {known}")
    added = [column for column in optics.columns if column not in table.columns]
    return table.join(optics.set_index(_GROUP)[added], on=_GROUP)


def pixel_sizes(table: pd.DataFrame, path: Path | str) -> np.ndarray | None:
    """Å per pixel [n] from the first of `PIXEL_SIZES` that the table has, or None.

    Raises `DataError` for one that is not positive and finite.
    """
    for column in PIXEL_SIZES:
        if isinstance(column, str) and column in table.columns:
            return positive(_numbers(table, column), path)
        if not isinstance(column, str) and set(column) <= set(table.columns):
            detector, magnification = (_numbers(table, name) for name in column)
            with np.errstate(divide="ignore", invalid="ignore"):  # refused by `positive`
                return positive(detector * 1e4 / magnification, path)
    return None


def origins_in_angstrom(table: pd.DataFrame, stored_pixel_size: PixelSize, path: Path | str) -> pd.DataFrame:
    """A copy of the table with RELION 3.0's origins, in pixels of the stored images, as RELION 3.1's, in Å.

    stored_pixel_size: Å, if the table does not state it. Raises `DataError` for pixels of unknown size, and for an
    origin that is not a number.
    """
    both = [(f"rlnOrigin{axis}", f"rlnOrigin{axis}Angst") for axis in "XY"]
    old = [(pixels, angstrom) for pixels, angstrom in both if pixels in table.columns]
    if not old:
        return table.copy()
    stated = pixel_sizes(table, path)
    unit = lengths(stored_pixel_size) if stated is None else stated
    if unit is None:
        raise DataError(
            f"{path}: {old[0][0]} is in pixels of an unknown size; RELION 3.1 expects Å: give the pixel size"
        )
    moved = {}
    for pixels, angstrom in old:
        values = _numbers(table, pixels)
        wrong = ~np.isfinite(values)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise DataError(f"{path}: row {row + 1} has {pixels} {table[pixels].iloc[row]}; expected a finite number")
        if angstrom not in table.columns:
            moved[angstrom] = values * unit
    return table.drop(columns=[pixels for pixels, _ in old]).assign(**moved)


def lengths(pixel_size: PixelSize) -> np.ndarray | None:
    """Å per pixel, [] or [n]; None if all are unknown."""
    known = np.asarray(pixel_size, dtype=np.float64)  # None becomes NaN
    return None if np.isnan(known).all() else known


def _numbers(table: pd.DataFrame, column: str) -> np.ndarray:
    """A column as float64 [n], NaN where the text is not a number."""
    import pandas as pd

    return np.asarray(pd.to_numeric(table[column], errors="coerce"), dtype=np.float64)
