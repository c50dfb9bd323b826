"""CryoSPARC tables (.cs), as CryoSPARC writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

CS_FIELDS = [
    ("uid", "<u8"),
    ("blob/path", "S40"),
    ("blob/idx", "<u4"),
    ("blob/shape", "<u4", (2,)),
    ("blob/psize_A", "<f4"),
    ("ctf/accel_kv", "<f4"),
    ("ctf/cs_mm", "<f4"),
    ("ctf/amp_contrast", "<f4"),
    ("ctf/df1_A", "<f4"),
    ("ctf/df2_A", "<f4"),
    ("ctf/df_angle_rad", "<f4"),
    ("ctf/phase_shift_rad", "<f4"),
]


def cs_table(**changed) -> np.ndarray:
    """Three particles of two stacks under J3/extract; `changed`: fields, with _ for /."""
    rows = np.zeros(3, CS_FIELDS)
    rows["blob/path"] = [b">J3/extract/b.mrcs", b"J3/extract/a.mrcs", b">J3/extract/b.mrcs"]
    rows["blob/idx"] = [1, 2, 0]
    rows["blob/psize_A"] = 1.25
    rows["ctf/accel_kv"], rows["ctf/cs_mm"], rows["ctf/amp_contrast"] = 300, 2.7, 0.1
    rows["ctf/df1_A"], rows["ctf/df2_A"] = [15000, 16000, 17000], [14000, 15000, 16000]
    rows["ctf/df_angle_rad"], rows["ctf/phase_shift_rad"] = np.pi / 6, np.pi / 2
    for name, values in changed.items():
        rows[name.replace("_", "/", 1)] = values
    return rows


def write_cs(path: Path, rows: np.ndarray) -> Path:
    with path.open("wb") as file:  # np.save would add .npy to a name
        np.save(file, rows)
    return path


def with_fields(rows: np.ndarray, fields: dict[str, np.ndarray]) -> np.ndarray:
    """The table with more fields."""
    added = [(name, values.dtype, values.shape[1:]) for name, values in fields.items()]
    wider = np.zeros(len(rows), [*rows.dtype.descr, *added])
    for name in rows.dtype.names:
        wider[name] = rows[name]
    for name, values in fields.items():
        wider[name] = values
    return wider
