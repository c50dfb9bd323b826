"""CryoSPARC particle tables (.cs): a numpy file of one structured array, a row per particle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cryobench.errors import DataError, reason_of
from cryobench.io.image_files import check_file
from cryobench.io.particles import Particles, find_stacks, positive

if TYPE_CHECKING:
    import pandas as pd

_PATH, _PAGE, _PIXEL_SIZE = "blob/path", "blob/idx", "blob/psize_A"
_CTF = {
    "ctf/df1_A": "rlnDefocusU",
    "ctf/df2_A": "rlnDefocusV",
    "ctf/df_angle_rad": "rlnDefocusAngle",
    "ctf/accel_kv": "rlnVoltage",
    "ctf/cs_mm": "rlnSphericalAberration",
    "ctf/amp_contrast": "rlnAmplitudeContrast",
    "ctf/phase_shift_rad": "rlnPhaseShift",
}
"""CryoSPARC's fields (angles in radians) and RELION's columns (degrees)."""
_POSE, _SHIFT, _SHIFT_UNIT, _HALF = (f"alignments3D/{name}" for name in ("pose", "shift", "psize_A", "split"))
_MICROGRAPH = "location/micrograph_path"


def read_cs(path: Path, data_root: str | None) -> Particles:
    """Read a CryoSPARC particle table.

    Paths of stacks are relative to the project's folder. They are searched under `data_root`, the table's folder, its
    parents, then the current folder. Raises `DataError` for a file that is not a particle table and for missing stacks.
    """
    check_file(path, "CryoSPARC table")
    rows = _rows(path)
    fields = rows.dtype.names or ()
    lacking = [name for name in (_PATH, _PAGE) if name not in fields]
    if lacking:
        found = ", ".join(fields) or f"no fields, an array of {rows.dtype}"
        raise DataError(
            f"{path} lacks {' and '.join(lacking)} (it has {found}); expected a table of extracted particles, "
            "not the passthrough table beside it"
        )
    if rows.size == 0:
        raise DataError(f"{path} lists no images; expected a particle table with at least one row")
    names, stack_of = np.unique(rows[_PATH], return_inverse=True)
    stacks = find_stacks([_text(name) for name in names], path, data_root)
    sizes = None
    if _PIXEL_SIZE in fields:
        sizes = positive(rows[_PIXEL_SIZE].astype(np.float64), path)
    columns = {**_ctf(rows), **_alignment(rows, sizes, path)}
    return Particles(stacks, stack_of.reshape(-1), rows[_PAGE].astype(np.int64), sizes, _table(columns, sizes))


def _rows(path: Path) -> np.ndarray:
    try:
        rows = np.load(path, allow_pickle=False)
    except Exception as error:  # numpy evaluates the header as Python, which can raise anything
        raise DataError(
            f"{path} is not a readable CryoSPARC table: {reason_of(error)}; copy or export it again"
        ) from error
    if not isinstance(rows, np.ndarray):
        rows.close()
        raise DataError(f"{path} is an archive of arrays; expected a CryoSPARC table, one structured array")
    return np.atleast_1d(rows)


def _text(name: bytes | str) -> str:
    """A path, without the leading > with which CryoSPARC marks links."""
    return (name.decode() if isinstance(name, bytes) else str(name)).lstrip(">")


def _table(columns: dict[str, np.ndarray], pixel_sizes: np.ndarray | None) -> pd.DataFrame | None:
    import pandas as pd

    if pixel_sizes is not None:
        columns = {**columns, "rlnImagePixelSize": pixel_sizes}
    return pd.DataFrame(columns) if columns else None


def _ctf(rows: np.ndarray) -> dict[str, np.ndarray]:
    """The CTF in RELION's columns."""
    values = {field: rows[field].astype(np.float64) for field in _CTF if field in (rows.dtype.names or ())}
    return {_CTF[field]: np.rad2deg(column) if field.endswith("_rad") else column for field, column in values.items()}


def _alignment(rows: np.ndarray, pixel_sizes: np.ndarray | None, path: Path) -> dict[str, np.ndarray]:
    """Orientation, shift, half set and micrograph in RELION's columns, as far as the table has them."""
    fields = rows.dtype.names or ()
    columns: dict[str, np.ndarray] = {}
    if _POSE in fields:
        angles = euler_angles(_vectors(rows, _POSE, 3, path))
        columns |= zip(("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"), angles.T, strict=True)
    if _SHIFT in fields:
        columns |= _origin(_vectors(rows, _SHIFT, 2, path), _shift_unit(rows, pixel_sizes, path))
    if _HALF in fields:
        columns["rlnRandomSubset"] = rows[_HALF].astype(np.int64) + 1
    if _MICROGRAPH in fields:
        columns["rlnMicrographName"] = np.array([_text(name) for name in rows[_MICROGRAPH]], dtype=object)
    return columns


def euler_angles(pose: np.ndarray) -> np.ndarray:
    """RELION's rot, tilt, psi of CryoSPARC's rotation vectors (radians): [n, 3] -> [n, 3] degrees, tilt in [0, 180].

    With R(e) the turn about e by |e|, RELION's matrix A(rot, tilt, psi), which takes the reference to the image, is
    the transpose of R(e), as in pyem's csparc2star (Asarnow et al., doi:10.5281/zenodo.3576630). So R(e) = Rz(rot)
    Ry(tilt) Rz(psi), whose quaternion is
    (cos t cos s, -sin t sin d, sin t cos d, cos t sin s), t = tilt/2, s = (rot + psi)/2, d = (rot - psi)/2.
    """
    half = np.linalg.norm(pose, axis=1) / 2
    w = np.cos(half)
    x, y, z = pose.T * np.sinc(half / np.pi) / 2
    s, d = np.arctan2(z, w), np.arctan2(-x, y)
    tilt = 2 * np.arctan2(np.hypot(x, y), np.hypot(w, z))
    rot, psi = (np.arctan2(np.sin(angle), np.cos(angle)) for angle in (s + d, s - d))
    return np.rad2deg(np.stack([rot, tilt, psi], axis=1))


def _origin(shift: np.ndarray, unit: np.ndarray | None) -> dict[str, np.ndarray]:
    """Shifts in pixels [n, 2] as RELION's origins: in Å if the pixel size [n] is known, else in pixels."""
    x, y = shift.T
    if unit is None:
        return {"rlnOriginX": x, "rlnOriginY": y}
    return {"rlnOriginXAngst": x * unit, "rlnOriginYAngst": y * unit}


def _shift_unit(rows: np.ndarray, pixel_sizes: np.ndarray | None, path: Path) -> np.ndarray | None:
    """Å per pixel of the shifts [n], which may be that of images downsampled for alignment."""
    if _SHIFT_UNIT in (rows.dtype.names or ()):
        return positive(rows[_SHIFT_UNIT].astype(np.float64), path)
    return pixel_sizes


def _vectors(rows: np.ndarray, field: str, length: int, path: Path) -> np.ndarray:
    vectors = rows[field].astype(np.float64)
    if vectors.shape != (len(rows), length):
        raise DataError(f"{path}: {field} has shape {vectors.shape}; expected {length} numbers for each of {len(rows)}")
    return vectors
