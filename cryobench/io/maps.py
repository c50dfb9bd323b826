"""Maps: single MRC volumes with their voxel size and their place beside other maps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cryobench.core.source import size_text
from cryobench.errors import DataError
from cryobench.io.image_files import changed, cubic, mrc_header, open_mrc
from cryobench.io.writing import Totals
from cryobench.limits import check_memory
from cryobench.text import not_finite

_BYTES_PER_VOXEL = 8


@dataclass(frozen=True, eq=False)
class Map:
    """A cube of voxels, float32 [D, D, D] as z, y, x, and its place: Å per voxel, None if unknown; number of the first
    voxel along x, y and z; origin x, y, z in Å."""

    path: Path
    volume: np.ndarray
    pixel_size: float | None
    start: tuple[int, int, int]
    origin: tuple[float, float, float]


def read_map(path: Path, what: str = "map") -> Map:
    """Read the volume of an MRC file, plain or .gz or .bz2. what: its part, for messages.

    Raises `DataError` for a file that is not MRC, or holds several volumes, no cube, or values that are not finite.
    """
    file = open_mrc(path, as_stack=True, axes=3)
    if file.count != 1:
        raise DataError(f"{path} holds {file.count} volumes; expected one {what}: write it as a file of its own")
    if len(set(file.shape)) != 1 or file.shape[0] < 2:
        raise DataError(f"{path} has {size_text(file.shape)} voxels; expected a cube as {what}: crop or pad it")
    check_memory(f"{path}", _BYTES_PER_VOXEL * file.shape[0] ** 3, "give a smaller map", DataError)
    volume = np.empty((1, *file.shape), np.float32)
    try:
        file.open()(0, volume)
    except (OSError, ValueError) as error:
        raise changed(path) from error
    bad = int(volume.size - np.isfinite(volume).sum())
    if bad:
        raise DataError(f"{path} has {not_finite(bad)}; reconstruct or correct the {what}")
    header = mrc_header(path)
    return Map(path, volume[0], cubic(path, file.voxel), header.start, header.origin)


def write_map(file: Path, path: Path, volume: np.ndarray, pixel_size: float | None, beside: Map | None = None) -> None:
    """Write a cube [D, D, D] to `file`, which will be moved to `path`, as an MRC2014 volume of float32.

    beside: the map whose place it has; by default the first voxel is at the origin, as in RELION. Raises `DataError`
    for values that are not finite.
    """
    totals, block = Totals(), np.ascontiguousarray(volume, dtype="<f4")
    totals.add(block, path)
    header = totals.volume_header(None if pixel_size is None else (pixel_size,) * 3, path)
    if beside is not None:
        header["nxstart"], header["nystart"], header["nzstart"] = beside.start
        header["origin"] = beside.origin
    with file.open("wb") as stream:
        stream.write(header.tobytes())
        stream.write(block.data)
