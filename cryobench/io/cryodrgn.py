"""Poses and CTFs of particles as cryoDRGN (Zhong et al. 2021, Nat. Methods 18:176) reads them, two pickled files.

`poses.pkl` is (rotations, translations): RELION's matrix A(rot, tilt, psi), which takes the reference to the image,
[N, 3, 3], and RELION's origin, the shift that centres the particle, (x, y) as a fraction of the box, [N, 2].
`ctf.pkl` is [N, 9]: box in pixels, Å per pixel, defocus U and V in Å and the angle of U in degrees, kV, Cs in mm,
amplitude contrast, and phase shift in degrees. All are float32. cryoDRGN's `parse_pose_star` and `parse_ctf_star` write
the same.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cryobench.errors import DataError, ParameterError, ResultsError, reason_of
from cryobench.files import whole_files
from cryobench.io.cryosparc import image_sizes
from cryobench.io.poses import read_poses
from cryobench.io.star import pixel_sizes
from cryobench.physics.ctf import CtfParameters
from cryobench.physics.poses import Poses

if TYPE_CHECKING:
    import pandas as pd

POSES, CTF = "poses.pkl", "ctf.pkl"
_SIZE = "rlnImageSize"
_CTF = ("defocus_u", "defocus_v", "angle", "voltage", "cs", "amplitude_contrast", "phase_shift")


@dataclass(frozen=True, eq=False)
class DrgnTables:
    """The content of the two files: float32 [N, 3, 3], [N, 2] and [N, 9]."""

    rotations: np.ndarray
    translations: np.ndarray
    ctf: np.ndarray

    def __len__(self) -> int:
        return len(self.ctf)


def drgn_tables(path: Path, size: int | None = None, pixel_size: float | None = None) -> DrgnTables:
    """The poses and CTFs in a star file of RELION 3.0 or later, or in a .cs file. The stacks need not exist.

    size: side of the images in pixels, pixel_size: Å; for a table that does not state them. Raises `DataError` for a
    table without poses or CTFs, for images of several sizes, and for shifts by more than the box, which cryoDRGN takes
    for pixels. Raises `ParameterError` for an unknown, invalid or contradicted size or pixel size.
    """
    for name, value in (("size", size), ("pixel-size", pixel_size)):
        if value is not None and not 0 < value < np.inf:
            raise ParameterError(f"--{name} must be positive, got {value:g}")
    table = read_poses(path, pixel_size)
    pixel = _the_one(pixel_sizes(table, path), pixel_size, path, "pixel size", "pixel-size", "Å")
    side = _the_one(_sizes(table, path), size, path, "image size", "size", "pixels")
    poses, ctf = Poses.from_table(table, str(path)), CtfParameters.from_table(table, str(path))
    translations = -poses.shift.numpy() / (pixel * side)
    far = (np.abs(translations) > 1).any(axis=1)
    if far.any():
        row = int(np.argmax(far))
        x, y = translations[row] * side
        raise DataError(f"{path}: row {row + 1} is shifted by ({x:.4g}, {y:.4g}) pixels, more than the box "
                        f"of {side:g}; check the pixel size")  # fmt: skip
    columns = [np.full(len(poses), value) for value in (side, pixel)]
    return DrgnTables(
        poses.matrices.numpy().astype(np.float32),
        translations.astype(np.float32),
        np.stack([*columns, *(getattr(ctf, name).numpy() for name in _CTF)], axis=1).astype(np.float32),
    )


def write_drgn_tables(tables: DrgnTables, folder: Path) -> list[Path]:
    """Write both files to a folder, which is created if needed; they appear together. Returns their paths.

    Raises `ResultsError` if they cannot be written.
    """
    paths = [folder / POSES, folder / CTF]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole_files(*paths) as (poses, ctf):
            poses.write_bytes(pickle.dumps((tables.rotations, tables.translations)))
            ctf.write_bytes(pickle.dumps(tables.ctf))
    except OSError as error:
        reason = error.strerror or reason_of(error)
        raise ResultsError(f"cannot write to {folder}: {reason}; choose another --out") from error
    return paths


def _sizes(table: pd.DataFrame, path: Path) -> np.ndarray | None:
    """The sides of the images in pixels [N], or None if the table does not state them."""
    import pandas as pd

    if path.suffix.lower() == ".cs":
        return image_sizes(path)
    if _SIZE not in table.columns:
        return None
    sizes = np.asarray(pd.to_numeric(table[_SIZE], errors="coerce"), dtype=np.float64)
    wrong = ~((sizes >= 1) & (sizes % 1 == 0))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(f"{path}: row {row + 1} has {_SIZE} {table[_SIZE].iloc[row]}; expected a number of pixels")
    return sizes


def _the_one(stated: np.ndarray | None, given: float | None, path: Path, what: str, option: str, unit: str) -> float:
    """The value that a table states for all images, else that given."""
    if stated is None:
        if given is None:
            raise ParameterError(f"{path} does not state the {what}; give --{option} in {unit}")
        return given
    if not np.allclose(stated, stated[0], rtol=1e-5, atol=0):
        raise DataError(f"{path} has images of different {what}, {stated.min():g} to {stated.max():g} {unit}; cryoDRGN "
                        "takes the first for all: split the table")  # fmt: skip
    if given is not None and not np.isclose(given, stated[0], rtol=1e-5, atol=0):
        raise ParameterError(f"--{option} {given:g}, but {path} states {stated[0]:g} {unit}; omit it")
    return float(stated[0])
