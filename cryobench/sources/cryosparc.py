"""CryoSPARC particle tables (.cs): a numpy file of one structured array, a row per particle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cryobench.errors import DataError, said
from cryobench.sources.formats import check_file
from cryobench.sources.particles import Particles, find_stacks, positive

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
"""CryoSPARC's fields and RELION's columns; angles in radians there, in degrees here."""


def read_cs(path: Path, data_root: str | None) -> Particles:
    """Read a CryoSPARC particle table.

    Stacks are named from the project's folder, and looked for under `data_root`, the table's folder, its parents, then
    the current folder. Raises `DataError` for a file that is no such table, lacks its images, and for missing stacks.
    """
    check_file(path, "CryoSPARC table")
    rows = _rows(path)
    fields = rows.dtype.names or ()
    lacking = [name for name in (_PATH, _PAGE) if name not in fields]
    if lacking:
        found = ", ".join(fields) or f"no fields, an array of {rows.dtype}"
        raise DataError(
            f"{path} lacks {' and '.join(lacking)} (it has {found}); wanted a table of extracted particles, "
            "and not the passthrough table beside it"
        )
    if rows.size == 0:
        raise DataError(f"{path} lists no images; wanted a particle table with at least one row")
    names, stack_of = np.unique(rows[_PATH], return_inverse=True)
    # CryoSPARC marks a path that it links to with a leading >
    stacks = find_stacks([_text(name).lstrip(">") for name in names], path, data_root)
    sizes = None
    if _PIXEL_SIZE in fields:
        sizes = positive(rows[_PIXEL_SIZE].astype(np.float64), path)
    return Particles(stacks, stack_of.reshape(-1), rows[_PAGE].astype(np.int64), sizes, _ctf(rows))


def _rows(path: Path) -> np.ndarray:
    try:
        rows = np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged header is evaluated as Python, and can fail in any way that can
        raise DataError(f"{path} is not a readable CryoSPARC table: {said(error)}; copy or export it again") from error
    if not isinstance(rows, np.ndarray):
        raise DataError(f"{path} is an archive of arrays; wanted a CryoSPARC table, one structured array")
    return np.atleast_1d(rows)


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _ctf(rows: np.ndarray) -> pd.DataFrame | None:
    """The CTF in RELION's columns, a row per image; None where the table gives no defocus."""
    import pandas as pd

    fields = [field for field in _CTF if field in (rows.dtype.names or ())]
    if "ctf/df1_A" not in fields:
        return None
    values = {field: rows[field].astype(np.float64) for field in fields}
    return pd.DataFrame(
        {_CTF[field]: np.rad2deg(column) if field.endswith("_rad") else column for field, column in values.items()}
    )
