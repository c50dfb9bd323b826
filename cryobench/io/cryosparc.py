"""CryoSPARC particle tables (.cs): a numpy file of one structured array, a row per particle."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cryobench.errors import DataError, DataWarning, reason_of
from cryobench.io.image_files import check_file
from cryobench.io.particles import Particles, Stacks, positive
from cryobench.physics.poses import Poses

if TYPE_CHECKING:
    import pandas as pd

_PATH, _PAGE, _PIXEL_SIZE, _SIGN = "blob/path", "blob/idx", "blob/psize_A", "blob/sign"
_SHAPE = "blob/shape"
_CTF = {
    "ctf/df1_A": "rlnDefocusU",
    "ctf/df2_A": "rlnDefocusV",
    "ctf/df_angle_rad": "rlnDefocusAngle",
    "ctf/accel_kv": "rlnVoltage",
    "ctf/cs_mm": "rlnSphericalAberration",
    "ctf/amp_contrast": "rlnAmplitudeContrast",
    "ctf/phase_shift_rad": "rlnPhaseShift",
    "ctf/bfactor": "rlnCtfBfactor",
}
"""CryoSPARC's fields (angles in radians) and RELION's columns (degrees)."""
_TILT, _CS = "ctf/tilt_A", "ctf/cs_mm"
_POSE, _SHIFT, _SHIFT_UNIT, _HALF, _CLASS = (
    f"alignments3D/{name}" for name in ("pose", "shift", "psize_A", "split", "class")
)
_MICROGRAPH = "location/micrograph_path"
_NEUTRAL = {
    "ctf/trefoil_A": 0,
    "ctf/tetra_A": 0,
    "ctf/anisomag": 0,
    "ctf/shift_A": 0,
    "ctf/scale": 1,
    "location/center_x_frac": None,
    "location/center_y_frac": None,
    "filament/filament_pose": None,
}
"""Fields without a column, as public converters disagree on their conversion, and the value that says nothing."""
_MAX_HEADER = 1 << 20
"""Characters of a header: 100 classes take 40,000, above numpy's limit of 10,000."""


def read_cs(path: Path, data_root: str | None) -> Particles:
    """Read a CryoSPARC particle table.

    Paths of stacks are relative to the project's folder. They are searched when they are used, under `data_root`, the
    table's folder, its parents, then the current folder. Images are multiplied by `blob/sign` where it differs between
    them. Warns (`DataWarning`) of that and of fields that are left out. Raises `DataError` for a file that is not a
    particle table.
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
    names, stack_of = np.unique(_paths(rows, path), return_inverse=True)
    stacks = Stacks([_text(name) for name in names], path, data_root)
    sizes = positive(_values(rows, _PIXEL_SIZE, path), path) if _PIXEL_SIZE in fields else None
    columns = {**_ctf(rows, path), **_alignment(rows, sizes, path)}
    page = _values(rows, _PAGE, path).astype(np.int64)
    signs = _signs(rows, path)
    _warn_of_fields_left_out(rows, path)
    return Particles(stacks, stack_of, page, sizes, _table(columns, sizes), signs)


def selected_rows(path: Path, chosen: Sequence[int], poses: Poses | None = None) -> np.ndarray:
    """Rows of a particle table in this order, with all fields as they are.

    poses: of these rows, which replace those of the table, or are added to it; shifts in Å, in pixels where the table
    does not state their size. Raises `DataError` for rows that do not exist.
    """
    rows = _rows(path)
    if len(chosen) and max(chosen) >= len(rows):
        raise DataError(f"{path} has {len(rows)} rows, and row {max(chosen) + 1} was used; give the table of that run")
    rows = rows[list(chosen)]
    if poses is None:
        return rows
    sizes = positive(_values(rows, _PIXEL_SIZE, path), path) if _PIXEL_SIZE in (rows.dtype.names or ()) else None
    unit = _shift_unit(rows, sizes, path)
    shift = -poses.shift.numpy() / (1.0 if unit is None else unit[:, None])
    found = {_POSE: rotation_vectors(poses.matrices.numpy()), _SHIFT: shift}
    rows = _wider(rows, found)
    for name, values in found.items():
        rows[name] = values
    return rows


def _wider(rows: np.ndarray, fields: Mapping[str, np.ndarray]) -> np.ndarray:
    """A copy of the rows with those of these fields that they lack, of vectors of float32."""
    own = rows.dtype.names or ()
    added = [(name, "<f4", values.shape[1:]) for name, values in fields.items() if name not in own]
    wider = np.zeros(len(rows), [*rows.dtype.descr, *added])
    for name in rows.dtype.names or ():
        wider[name] = rows[name]
    return wider


def rotation_vectors(matrices: np.ndarray) -> np.ndarray:
    """CryoSPARC's rotation vectors (radians) of RELION's matrices A, [n, 3, 3] -> [n, 3]; see `euler_angles`."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_matrix(matrices.transpose(0, 2, 1)).as_rotvec()


def image_sizes(path: Path) -> np.ndarray | None:
    """The sides in pixels of the square images that a particle table lists, [n], or None if it does not state them.

    Raises `DataError` for images that are not square.
    """
    rows = _rows(path)
    if _SHAPE not in (rows.dtype.names or ()):
        return None
    shapes = _vectors(rows, _SHAPE, 2, path)
    wrong = (shapes[:, 0] != shapes[:, 1]) | (shapes[:, 0] < 1)
    if wrong.any():
        row = int(np.argmax(wrong))
        height, width = shapes[row]
        raise DataError(f"{path}: row {row + 1} has {_SHAPE} {height:g} x {width:g}; expected square images")
    return shapes[:, 0]


def _rows(path: Path) -> np.ndarray:
    try:
        rows = np.load(path, allow_pickle=False, max_header_size=_MAX_HEADER)
    except Exception as error:  # numpy evaluates the header as Python, which can raise anything
        raise DataError(
            f"{path} is not a readable CryoSPARC table: {reason_of(error)}; copy or export it again"
        ) from error
    if not isinstance(rows, np.ndarray):
        rows.close()
        raise DataError(f"{path} is an archive of arrays; expected a CryoSPARC table, one structured array")
    return np.atleast_1d(rows)


def _signs(rows: np.ndarray, path: Path) -> np.ndarray | None:
    """The signs [n] by which images of both contrasts are brought to that of sign 1; None where all have the same."""
    if _SIGN not in (rows.dtype.names or ()):
        return None
    signs = _values(rows, _SIGN, path)
    if (signs == signs[0]).all():
        return None
    wrong = np.abs(signs) != 1
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(f"{path}: row {row + 1} has {_SIGN} {signs[row]:g}; expected 1 or -1")
    count = int((signs < 0).sum())
    _warn(f"{path}: {_SIGN} is -1 for {count} of {len(signs)} images; inverting their contrast to that of the others")
    return signs


def _warn_of_fields_left_out(rows: np.ndarray, path: Path) -> None:
    fields = rows.dtype.names or ()
    left_out = [
        field
        for field in fields
        if (field in _NEUTRAL and (_NEUTRAL[field] is None or (rows[field] != _NEUTRAL[field]).any()))
        or (field.endswith(("/pose", "/shift")) and not field.startswith("alignments3D/"))
    ]
    if left_out:
        _warn(f"{path}: not converted to RELION's columns: {', '.join(left_out)}")


def _warn(message: str) -> None:
    warnings.warn(DataWarning(message), stacklevel=2)


def _text(name: bytes | str) -> str:
    """A path, without the leading > with which CryoSPARC marks links."""
    return (os.fsdecode(name) if isinstance(name, bytes) else str(name)).lstrip(">")


def _table(columns: dict[str, np.ndarray], pixel_sizes: np.ndarray | None) -> pd.DataFrame | None:
    import pandas as pd

    if pixel_sizes is not None:
        columns = {**columns, "rlnImagePixelSize": pixel_sizes}
    return pd.DataFrame(columns) if columns else None


def _ctf(rows: np.ndarray, path: Path) -> dict[str, np.ndarray]:
    """The CTF and the beam tilt in RELION's columns.

    The tilt in mrad is that of pyem's csparc2star (see `euler_angles`): asin(tilt_A / Cs). Without a tilt there are no
    columns.
    """
    fields = rows.dtype.names or ()
    values = {field: _values(rows, field, path) for field in _CTF if field in fields}
    columns = {
        _CTF[field]: np.rad2deg(column) if field.endswith("_rad") else column for field, column in values.items()
    }
    tilt = _vectors(rows, _TILT, 2, path) if _TILT in fields else np.zeros((len(rows), 2))
    if tilt.any():
        with np.errstate(divide="ignore", invalid="ignore"):
            angles = 1e3 * np.arcsin(tilt / (values.get(_CS, np.zeros(len(rows)))[:, None] * 1e7))
        if not np.isfinite(angles).all():
            row = int(np.argmin(np.isfinite(angles).all(axis=1)))
            raise DataError(f"{path}: row {row + 1} has {_TILT} {tilt[row].tolist()}; expected less than {_CS}")
        columns |= zip(("rlnBeamTiltX", "rlnBeamTiltY"), angles.T, strict=True)
    return columns


def _alignment(rows: np.ndarray, pixel_sizes: np.ndarray | None, path: Path) -> dict[str, np.ndarray]:
    """Orientation, shift, half set, class and micrograph in RELION's columns, as far as the table has them.

    A half set that is the same for all images was never assigned, and is left out.
    """
    fields = rows.dtype.names or ()
    columns: dict[str, np.ndarray] = {}
    if _POSE in fields:
        angles = euler_angles(_vectors(rows, _POSE, 3, path))
        columns |= zip(("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"), angles.T, strict=True)
    if _SHIFT in fields:
        columns |= _origin(_vectors(rows, _SHIFT, 2, path), _shift_unit(rows, pixel_sizes, path))
    if _HALF in fields:
        half = _values(rows, _HALF, path).astype(np.int64)
        if (half != half[0]).any():
            columns["rlnRandomSubset"] = half + 1
    if _CLASS in fields:
        columns["rlnClassNumber"] = _values(rows, _CLASS, path).astype(np.int64) + 1
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
        return positive(_values(rows, _SHIFT_UNIT, path), path)
    return pixel_sizes


def _paths(rows: np.ndarray, path: Path) -> np.ndarray:
    """The path of the stack of each image, [n] bytes or text."""
    paths = rows[_PATH]
    if paths.shape != (len(rows),) or paths.dtype.kind not in "SU":
        raise DataError(f"{path}: {_PATH} has shape {paths.shape} of {paths.dtype}; expected one text for each of "
                        f"{len(rows)}")  # fmt: skip
    return paths


def _values(rows: np.ndarray, field: str, path: Path) -> np.ndarray:
    """A field of one number for each image, float64 [n]."""
    return _vectors(rows, field, None, path)


def _vectors(rows: np.ndarray, field: str, length: int | None, path: Path) -> np.ndarray:
    """A field of `length` numbers for each image, float64 [n, length]; [n] for None."""
    values = rows[field]
    shape = (len(rows),) if length is None else (len(rows), length)
    if values.shape != shape or values.dtype.kind not in "biuf":
        raise DataError(
            f"{path}: {field} has shape {values.shape} of {values.dtype}; expected {length or 'one'} "
            f"number{'' if length is None else 's'} for each of {len(rows)}"
        )
    return values.astype(np.float64)
