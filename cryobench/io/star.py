"""RELION star files: which image of which stack, at what pixel size, and all else that they say of each image."""

from __future__ import annotations

import linecache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cryobench.errors import DataError, said
from cryobench.io.formats import check_file
from cryobench.io.particles import Particles, find_stacks, positive

if TYPE_CHECKING:
    import pandas as pd

_NAME, _GROUP = "rlnImageName", "rlnOpticsGroup"
_TEXT = ["rlnImageName", "rlnMicrographName", "rlnOpticsGroupName"]


def read_star(path: Path, data_root: str | None) -> Particles:
    """Read a particle star file, of RELION 3.0 (one table) or 3.1 (an optics table and a particle table).

    Stacks are looked for under `data_root`, the star file's folder, its parents, then the current folder. Raises
    `DataError` for a file that is no star file, lacks image names or has garbled ones, and for missing stacks.
    """
    check_file(path, "star file")
    table = _particle_table(path)
    parts = table[_NAME].astype("str").str.extract(r"^\s*([0-9]{1,18})@(\S.*?)\s*$")
    page = parts[0].fillna("0").astype("int64").to_numpy() - 1
    if (page < 0).any():
        row = int(np.argmax(page < 0))
        raise DataError(
            f"{path}: row {row + 1} names the image {str(table[_NAME].iloc[row])!r}; wanted NUMBER@STACK, counted from "
            "1, such as 000001@particles.mrcs"
        )
    stack_of, names = parts[1].factorize()
    stacks = find_stacks([str(name) for name in names], path, data_root)
    return Particles(stacks, stack_of, page, pixel_sizes(table, path), table)


def _particle_table(path: Path) -> pd.DataFrame:
    """The table with image names, with the columns of its optics groups merged in."""
    blocks = {name: _as_table(block) for name, block in _blocks(path).items()}
    named = [name for name, block in blocks.items() if _NAME in block.columns]
    if not named:
        found = "; ".join(f"{name or 'unnamed'}: {', '.join(block.columns)}" for name, block in blocks.items())
        raise DataError(f"{path} has no {_NAME} column (tables: {found or 'none'}); wanted a particle star file")
    table = blocks["particles" if "particles" in named else named[0]]
    twice = table.columns[table.columns.duplicated()].tolist()
    if twice:
        raise DataError(f"{path} has the column {twice[0]} twice; wanted each column once")
    if table.empty:
        raise DataError(f"{path} lists no images; wanted a particle star file with at least one row")
    optics = blocks.get("optics")
    return table if optics is None else _merge_optics(table, optics, path)


def _blocks(path: Path) -> dict[str, Any]:
    import starfile

    linecache.checkcache(str(path))  # starfile reads through linecache, which would serve a corrected file's old text
    try:
        return starfile.read(path, always_dict=True, parse_as_string=_TEXT)  # type: ignore[return-value]
    except Exception as error:  # starfile checks nothing: a malformed table fails wherever it happens to
        raise DataError(f"{path} is not a readable star file: {said(error)}; wanted RELION's format") from error


def _as_table(block: Any) -> pd.DataFrame:
    """A block without a loop is a table of one row."""
    import pandas as pd

    return pd.DataFrame([block]) if isinstance(block, dict) else block


def _merge_optics(table: pd.DataFrame, optics: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Add to each row what its optics group says; a column that both tables have is the row's own."""
    if _GROUP not in table.columns or _GROUP not in optics.columns:
        raise DataError(f"{path} has an optics table, but not {_GROUP} in both tables; wanted RELION 3.1's two tables")
    if not optics[_GROUP].is_unique:
        raise DataError(f"{path} lists an optics group twice in its optics table; wanted each {_GROUP} once")
    unknown = ~np.isin(table[_GROUP].to_numpy(), optics[_GROUP].to_numpy())
    if unknown.any():
        row = int(np.argmax(unknown))
        group, known = table[_GROUP].iloc[row], ", ".join(map(str, optics[_GROUP]))
        raise DataError(f"{path}: row {row + 1} is of optics group {group}; the optics table has {known}")
    added = [column for column in optics.columns if column not in table.columns]
    return table.join(optics.set_index(_GROUP)[added], on=_GROUP)


def pixel_sizes(table: pd.DataFrame, path: Path) -> np.ndarray | None:
    """Å per pixel [n]: stated (3.1), or from the detector's pixel in µm and the magnification (3.0); None without.

    Raises `DataError` where one makes no sense.
    """
    if "rlnImagePixelSize" in table.columns:
        sizes = _numbers(table, "rlnImagePixelSize")
    elif {"rlnDetectorPixelSize", "rlnMagnification"} <= set(table.columns):
        with np.errstate(divide="ignore", invalid="ignore"):  # what that gives is refused below
            sizes = _numbers(table, "rlnDetectorPixelSize") * 1e4 / _numbers(table, "rlnMagnification")
    else:
        return None
    return positive(sizes, path)


def _numbers(table: pd.DataFrame, column: str) -> np.ndarray:
    """A column as float64 [n], NaN where the text is no number."""
    import pandas as pd

    return np.asarray(pd.to_numeric(table[column], errors="coerce"), dtype=np.float64)
