"""Folders of pairs of electron micrographs, as EMDiffuse publishes them (Lu et al. 2024, Nat. Commun. 15).

ROOT/CELL/LEVEL/wf_NAME.tif    a noisy image, or one of low resolution on the same pixels
ROOT/CELL/LEVEL/gt_NAME.tif    the same place, exposed for longer
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryobench.errors import DataError, reason_of

NOISY, CLEAN = "wf_", "gt_"
SUFFIXES = (".tif", ".tiff")


@dataclass(frozen=True)
class PairFiles:
    """The files of a pair, noisy and clean."""

    cell: str
    level: str
    name: str
    noisy: Path
    clean: Path

    def __str__(self) -> str:
        return f"{self.cell}/{self.level}/{self.name}"


def find_pairs(root: Path, cells: Sequence[str] = (), levels: Sequence[str] = ()) -> list[PairFiles]:
    """The pairs in a folder, in the order of the numbers in their names; of these cells and levels, if any are given.

    Raises `DataError` for an image without its partner, a cell or level that does not exist, and if there are none.
    """
    try:
        if not root.is_dir():
            raise DataError(f"{root} is not a folder; give one with CELL/LEVEL/{NOISY}*.tif and {CLEAN}*.tif")
        folders = [level for cell in _folders(root) for level in _folders(cell)]
        found = [pair for folder in folders for pair in _pairs_in(folder)]
    except OSError as error:
        raise DataError(f"{root} cannot be read: {reason_of(error)}; give another folder") from error
    if not found:
        near = next((n for n, pattern in enumerate(("", "*/")) if any(root.glob(f"{pattern}{NOISY}*.tif*"))), None)
        advice = "give another folder" if near is None else f"give the folder {2 - near} above its images"
        raise DataError(f"{root} has no CELL/LEVEL/{NOISY}*.tif; {advice}")
    for what, chosen, known in (("cell", cells, {pair.cell for pair in found}),
                                ("level", levels, {pair.level for pair in found})):  # fmt: skip
        for name in chosen:
            if name not in known:
                raise DataError(f"{root} has no {what} {name!r}; it has {', '.join(sorted(known, key=_in_order))}")
    kept = [pair for pair in found if (not cells or pair.cell in cells) and (not levels or pair.level in levels)]
    if not kept:
        raise DataError(f"{root} has no pairs of the cells {', '.join(cells)} and the levels {', '.join(levels)}; "
                        "choose others")  # fmt: skip
    return kept


def _folders(path: Path) -> list[Path]:
    found = (each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))
    return sorted(found, key=lambda each: _in_order(each.name))


def _pairs_in(folder: Path) -> list[PairFiles]:
    """The pairs of a cell and level."""
    named: dict[str, dict[str, Path]] = {NOISY: {}, CLEAN: {}}
    for path in sorted(folder.iterdir()):
        prefix = path.name[: len(NOISY)]
        if path.suffix.lower() in SUFFIXES and prefix in named:
            earlier = named[prefix].setdefault(path.stem[len(prefix) :], path)
            if earlier is not path:
                raise DataError(f"{earlier} and {path} have one name; leave one out")
    noisy, clean = named[NOISY], named[CLEAN]
    for own, others, partner in ((noisy, clean, CLEAN), (clean, noisy, NOISY)):
        for name, path in own.items():
            if name not in others:
                raise DataError(f"{path} has no partner {partner}{name}.tif; add it, or take the image away")
    return [PairFiles(folder.parent.name, folder.name, name, noisy[name], clean[name])
            for name in sorted(noisy, key=_in_order)]  # fmt: skip


def _in_order(name: str) -> list[tuple[int, str]]:
    """A key that sorts the numbers in names by value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
