"""What the header of an MRC file says of its pixels, also where it does not follow MRC2014.

Sources: MRC2014 (Cheng et al. 2015, J. Struct. Biol. 192:146) and IMOD's description of its variant,
https://bio3d.colorado.edu/imod/doc/mrc_format.txt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mrcfile.utils
import numpy as np
from mrcfile.constants import MAP_ID
from mrcfile.dtypes import HEADER_DTYPE

from cryobench.errors import DataError

ByteOrder = Literal["<", ">"]

HEADER_BYTES = HEADER_DTYPE.itemsize
_DTYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
_PACKED = 101
_OTHER_MODES = {
    3: "complex values, a transform",
    4: "complex values, a transform",
    16: "colours (RGB)",
    _PACKED: "packed 4-bit integers",
}
_SMALL = 65536
"""At least one side of an image or volume is smaller: read in the wrong byte order, sides below it are not."""
_IMOD_STAMP, _IMOD_SIGNED, _IMOD_4_BITS = 1146047817, 1, 16
_IMOD_FIELDS = slice(152, 160)
_IN_NEITHER = "its sizes and mode are valid in neither byte order"
_BYTE_ORDERS: dict[ByteOrder, str] = {"<": "little-endian", ">": "big-endian"}
_STAMPS: dict[bytes, ByteOrder] = {b"\x44\x44": "<", b"\x44\x41": "<", b"\x11\x11": ">"}


@dataclass(frozen=True)
class MrcHeader:
    """The layout of an MRC file.

    dtype: of a stored value, with its byte order. shape: of the stored array, [rows, columns], [sections, rows,
    columns] or [volumes, sections, rows, columns]. offset: bytes before the array. axes: the axes along columns, rows
    and sections, 1 for x, 2 for y, 3 for z. voxel: Å per voxel along x, y and z, None where unknown. exact: the file
    must have the size that the header requires, because nothing else shows that it is an MRC file. notes: what was
    assumed, by kind. packed: whether two pixels share a byte (mode 101). start: number of the first column, row and
    section along x, y and z; origin: x, y, z in Å. They place a map beside others.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    axes: tuple[int, int, int]
    space_group: int
    voxel: tuple[float | None, float | None, float | None]
    exact: bool
    notes: dict[str, str]
    packed: bool = False
    start: tuple[int, int, int] = (0, 0, 0)
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def is_volume_stack(self) -> bool:
        """Whether the file holds several volumes by its space group."""
        return bool(mrcfile.utils.spacegroup_is_volume_stack(self.space_group))


def parse_mrc_header(path: Path, raw: bytes, *, packed: bool = False) -> MrcHeader:
    """The header in the first 1024 bytes of a file. packed: accept packed 4-bit integers. Raises `DataError`."""
    if len(raw) < HEADER_BYTES:
        raise DataError(f"{path} is truncated: it has {len(raw)} bytes, less than an MRC header (1024); copy it again")
    notes: dict[str, str] = {}
    fields = _in_its_byte_order(path, raw, notes)
    if min(_sides(fields)) < 1:
        sides = " x ".join(map(str, _sides(fields)))
        raise DataError(f"{path} holds no pixels: its header says {sides}; expected positive sides: copy it again")
    if fields.nsymbt < 0:
        raise DataError(f"{path} has a damaged MRC header: an extended header of {fields.nsymbt} bytes; copy it again")
    is_packed = packed and int(fields.mode) == _PACKED
    dtype = np.dtype("u1") if is_packed else _dtype(path, fields, raw, notes)
    if mrcfile.utils.spacegroup_is_volume_stack(fields.ispg) and (fields.mz < 1 or fields.nz % fields.mz):
        raise DataError(
            f"{path} has a damaged MRC header: {fields.nz} sections in volumes of {fields.mz}; expected a multiple"
        )
    axes = _axes(path, fields)
    starts = dict(zip(axes, (int(fields.nxstart), int(fields.nystart), int(fields.nzstart)), strict=True))
    return MrcHeader(
        dtype=dtype,
        shape=tuple(map(int, mrcfile.utils.data_shape_from_header(fields))),
        offset=HEADER_BYTES + int(fields.nsymbt),
        axes=axes,
        space_group=int(fields.ispg),
        voxel=(_spacing(fields, "x"), _spacing(fields, "y"), _spacing(fields, "z")),
        exact=not _has_map_string(fields),
        notes=notes,
        packed=is_packed,
        start=(starts[1], starts[2], starts[3]),
        origin=(_finite(fields.origin.x), _finite(fields.origin.y), _finite(fields.origin.z)),
    )


def _in_its_byte_order(path: Path, raw: bytes, notes: dict[str, str]) -> Any:
    """The fields of the header, in the byte order of its machine stamp if map string, stamp, sizes and mode are valid.

    Otherwise in the byte order in which sizes and mode are, as IMOD determines it: older software writes no map string
    or no stamp, SerialEM and IMOD the stamps 44 00 and 44 20. Raises `DataError` where neither is.
    """
    orders: dict[ByteOrder, Any] = {
        order: np.frombuffer(raw, HEADER_DTYPE.newbyteorder(order), count=1).view(np.recarray)[0]
        for order in _BYTE_ORDERS
    }
    stamp = raw[212:214]
    stamped = _STAMPS.get(stamp)
    named = _has_map_string(orders["<"])
    plausible: list[ByteOrder] = [order for order in orders if _is_plausible(orders[order])]
    order: ByteOrder
    if stamped is not None and (stamped in plausible or (named and not plausible)):
        order = stamped
    elif plausible:  # both only in mode 0, and the wrong order gives larger sides
        order = min(plausible, key=lambda each: math.prod(_sides(orders[each])))
    elif named:
        raise DataError(f"{path} has a damaged MRC header: {_IN_NEITHER}; copy it again")
    else:
        raise DataError(
            f"{path} is not a readable MRC file: it has no map string, and {_IN_NEITHER}; give one, or copy it again"
        )
    wrong = [] if named else ["no map string"]
    if order != stamped:
        wrong.append(f"{'an unknown' if stamped is None else 'the wrong'} machine stamp ({stamp.hex(' ')})")
    if wrong:
        notes["header"] = (
            f"has {' and '.join(wrong)}; it was read as {_BYTE_ORDERS[order]} MRC, which its sizes and mode fit"
        )
    return orders[order]


def _sides(fields: Any) -> tuple[int, int, int]:
    return int(fields.nx), int(fields.ny), int(fields.nz)


def _has_map_string(fields: Any) -> bool:
    return bytes(fields.map)[:3] == MAP_ID[:3]


def _is_plausible(fields: Any) -> bool:
    return 1 <= min(_sides(fields)) < _SMALL and (fields.mode in _DTYPES or fields.mode in _OTHER_MODES)


def _dtype(path: Path, fields: Any, raw: bytes, notes: dict[str, str]) -> np.dtype:
    """The type of the stored values. Raises `DataError` for a mode that is not real numbers of 8, 16 or 32 bits."""
    order = fields.dtype["mode"].byteorder
    stamp, flags = np.frombuffer(raw[_IMOD_FIELDS], np.dtype("i4").newbyteorder(order)).tolist()
    mode = int(fields.mode)
    what = _OTHER_MODES.get(mode)
    if mode == 0 and stamp == _IMOD_STAMP and flags & _IMOD_4_BITS:
        what = _OTHER_MODES[_PACKED]
    if what is not None:
        raise DataError(
            f"{path} holds {what} (MRC mode {mode}); expected real images of mode 0, 1, 2, 6 or 12: write it as mode 2"
        )
    if mode not in _DTYPES:
        raise DataError(f"{path} has a damaged MRC header: unknown mode {mode}; expected mode 0, 1, 2, 6 or 12")
    if mode == 0 and _is_unsigned(fields, stamp, flags, notes):
        return np.dtype("u1")
    return np.dtype(_DTYPES[mode]).newbyteorder(order)


def _is_unsigned(fields: Any, stamp: int, flags: int, notes: dict[str, str]) -> bool:
    """Whether the bytes of mode 0 are unsigned.

    They are signed by MRC2014, and were unsigned in IMOD before version 4.2.23. IMOD's rule: with its stamp in bytes
    152 to 155, bit 0 of the flags in bytes 156 to 159 means signed; without, the minimum and maximum in the header
    decide. Where these fit both or neither IMOD takes unsigned bytes or the better fit, and this function the signed
    bytes of the standard, since many programs leave both fields empty.
    """
    if stamp == _IMOD_STAMP:
        return not flags & _IMOD_SIGNED
    unsigned = bool(fields.dmin >= 0 and fields.dmax > 127)
    if unsigned:
        notes["unsigned"] = (
            f"was read as unsigned bytes, because the maximum in its header is {fields.dmax:g}; MRC2014 says signed"
        )
    return unsigned


def _finite(value: Any) -> float:
    return float(value) if math.isfinite(value) else 0.0


def _axes(path: Path, fields: Any) -> tuple[int, int, int]:
    axes = int(fields.mapc), int(fields.mapr), int(fields.maps)
    if axes == (0, 0, 0):  # some programs write zeros
        return (1, 2, 3)
    if sorted(axes) != [1, 2, 3]:
        raise DataError(f"{path} has a damaged MRC header: its axes are {list(axes)}; expected 1, 2 and 3")
    return axes


def _spacing(fields: Any, axis: str) -> float | None:
    """Å per voxel along an axis: the cell divided by its intervals; None where the header lacks either."""
    length, intervals = float(fields.cella[axis]), int(fields[f"m{axis}"])
    spacing = length / intervals if intervals > 0 else 0.0
    return spacing if math.isfinite(spacing) and spacing > 0 else None
