"""Measurements on disk: the output of a simulated detector, with everything needed to reconstruct images from it.

One .npz: `y` [B, M, h, w], `sigma` [B], `offset` and `factor` [B] (image = offset + factor * x), `drawn/NAME` for each
random array that the operator was made with (masks), and `about`, JSON text with the specs, the name and the range of
the scale, the image shape, the pixel sizes, the images' ids and their table. Format 1 has no range; it follows from the
name. A file with only `y` and `masks` [M, H, W] is sum pooling of images in the units of y.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cryobench.core import Imaging, Scale, Shape
from cryobench.errors import DataError, ResultsError, reason_of, shortened
from cryobench.files import whole_file
from cryobench.io.scaling import MINMAX, NORMALISATIONS, scale_of
from cryobench.limits import bytes_text, check_memory

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 2
_DRAWN = "drawn/"
_NAMES = ("y", "masks", "about", "sigma", "offset", "factor")
_COLUMN = re.compile(r"[A-Za-z]\w*")
_MAX_PIXEL_SIZE = 1e6
"""Å: more than any microscope has."""
_MAX_RATIO, _SMALL = 200, 10**8
"""The ratio to which a file of more than `_SMALL` unpacked bytes may be compressed: 30 for random masks."""


@dataclass(frozen=True, eq=False)
class Measurements:
    """Measurements and everything they were made with.

    y: [B, M, h, w]. sigma: standard deviation of the noise in an entry of y, [B]. operator, noise: full specs; operator
    is '' if only masks are known. drawn: the operator's random arrays. scale: of the images, one number each [B].
    pixel_size: Å per pixel or None. table: RELION's columns, a row per image, or None.
    """

    y: torch.Tensor
    sigma: torch.Tensor
    image_shape: Shape
    operator: str
    noise: str
    seed: int
    drawn: dict[str, torch.Tensor]
    scale: Scale
    pixel_size: tuple[float | None, ...]
    image_ids: tuple[str, ...]
    table: pd.DataFrame | None = None
    about: dict[str, Any] = field(default_factory=dict)
    """Further provenance: data, radius of the particle, versions."""

    @property
    def imaging(self) -> Imaging:
        return Imaging(self.image_shape, self.pixel_size, self.table)

    def select(self, part: slice) -> Measurements:
        """The measurements of some of the images."""
        table = None if self.table is None else self.table.iloc[part].reset_index(drop=True)
        return replace(self, y=self.y[part], sigma=self.sigma[part], scale=self.scale.select(part), table=table,
                       pixel_size=self.pixel_size[part], image_ids=self.image_ids[part])  # fmt: skip

    def save(self, path: Path) -> None:
        """Write the file atomically. Raises `ResultsError`."""
        about = {
            "format": FORMAT,
            "operator": self.operator,
            "noise": self.noise,
            "seed": self.seed,
            "scaling": self.scale.name,
            "range": self.scale.range,
            "image_shape": list(self.image_shape),
            "scale": self.scale.name,
            "pixel_size_angstrom": list(self.pixel_size),
            "image_ids": list(self.image_ids),
            "table": None if self.table is None else self.table.to_json(orient="split", double_precision=15),
            "about": self.about,
        }
        arrays: dict[str, Any] = {
            "y": self.y.cpu().numpy(),
            "sigma": self.sigma.cpu().numpy(),
            "offset": self.scale.offset.numpy(),
            "factor": self.scale.factor.numpy(),
            "about": np.array(json.dumps(about)),
        } | {_DRAWN + name: array.cpu().numpy() for name, array in self.drawn.items()}
        try:
            with whole_file(path) as temporary, temporary.open("wb") as file:
                np.savez(file, **arrays)
        except OSError as error:
            raise ResultsError(f"cannot write {path}: {error.strerror}; choose another path") from error


def load(path: Path) -> Measurements:
    """Read measurements. Raises `DataError` for a file without them, and for fields that do not fit together."""
    from cryobench.io.image_files import check_file

    check_file(path, "file of measurements (.npz)")
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = _arrays(archive, path)
    except DataError:
        raise
    except Exception as error:  # zipfile and numpy raise many kinds of errors for other files
        raise DataError(
            f"{path} is not a readable .npz file: {reason_of(error)}; expected what `cryobench measure` writes, or "
            "arrays y and masks"
        ) from error
    y = arrays["y"]
    if y.ndim != 4 or y.dtype.kind not in "fiu" or 0 in y.shape or not np.isfinite(y).all():
        raise DataError(f"{path}: y is {y.dtype} {list(y.shape)}; expected finite real numbers [B, M, h, w]")
    if "about" not in arrays:
        return _plain(arrays, path)
    try:
        return _recorded(arrays)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else shortened(reason_of(error))
        raise DataError(f"{path} is damaged or from another version: {reason}; measure again") from error


def _arrays(archive: zipfile.ZipFile, path: Path) -> dict[str, np.ndarray]:
    """The arrays of the file. Sizes are checked before anything is unpacked, and other arrays are not read."""
    entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
    if "y" not in entries:
        held = shortened(", ".join(entries)) or "nothing"
        raise DataError(f"{path} holds {held}, but no y; expected measurements y [B, M, h, w]")
    if not {"about", "masks"} & set(entries):
        raise DataError(f"{path} has y but no masks; give masks [M, H, W], or measure with `cryobench measure`")
    wanted = {name: entry for name, entry in entries.items() if name in _NAMES or name.startswith(_DRAWN)}
    unpacked = sum(entry.file_size for entry in wanted.values())
    check_memory(f"{path}: unpacking it", 4 * unpacked, "split it into files of fewer images", DataError)
    packed = path.stat().st_size
    if unpacked > max(_SMALL, _MAX_RATIO * packed):
        raise DataError(
            f"{path} has {bytes_text(packed)} and unpacks to {bytes_text(unpacked)}, more than {_MAX_RATIO} times as "
            "much; save the arrays with numpy.savez"
        )
    return {name: _array(archive, entry) for name, entry in wanted.items()}


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """One array, whose header states the size of its entry. Raises `ValueError` for others and for pickles."""
    with archive.open(entry) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{shortened(entry.filename)} is not an array of numpy's format 1.0")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        stated, stored = math.prod(shape) * dtype.itemsize, entry.file_size - file.tell()
        if min(shape, default=0) < 0 or dtype.hasobject or stated != stored:
            raise ValueError(f"{shortened(entry.filename)} states {bytes_text(stated)} and stores {bytes_text(stored)}")
    with archive.open(entry) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _recorded(arrays: dict[str, np.ndarray]) -> Measurements:
    """What `measure` wrote. Raises `ValueError`, `TypeError` or `KeyError` for fields that do not fit together."""
    about = json.loads(str(arrays["about"]))
    _require(isinstance(about, dict), "about is not a set of named values")
    _require(about["format"] in (1, FORMAT), f"format {about['format']!r}, this version reads 1 and {FORMAT}")
    if about["format"] == 1:
        about["scaling"] = about["about"]["normalize"]
        about["range"] = (-1.0, 1.0) if about["scaling"] == MINMAX else None
    y, shape, seed = arrays["y"], about["image_shape"], about["seed"]
    B = len(y)
    _require(y.dtype.kind == "f", f"y is {y.dtype}, expected floating-point numbers")
    for name in ("operator", "noise", "scaling"):
        _require(isinstance(about[name], str) and about[name], f"{name} is {about[name]!r}, expected a text")
    _require(
        isinstance(shape, list) and len(shape) == 2 and all(_is_integer(side) and side > 0 for side in shape),
        f"image_shape is {shape!r}, expected two positive integers",
    )
    _require(_is_integer(seed) and -(2**63) <= seed < 2**63, f"seed is {seed!r}, expected an integer of 64 bits")
    _require(isinstance(about["about"], dict), f"about is {about['about']!r}, expected named values")
    sigma, offset, factor = (_numbers(arrays, name, (B,)) for name in ("sigma", "offset", "factor"))
    _require((sigma >= 0).all(), "sigma has negative numbers")
    _require((factor != 0).all(), "factor has zeros")
    _require(about["noise"] != "none" or (sigma == 0).all(), "sigma is not zero, but the noise is none")
    return Measurements(
        y=torch.from_numpy(y),
        sigma=torch.from_numpy(sigma),
        image_shape=tuple(shape),
        operator=about["operator"],
        noise=about["noise"],
        seed=seed,
        drawn={name.removeprefix(_DRAWN): torch.from_numpy(_numbers(arrays, name)) for name in arrays
               if name.startswith(_DRAWN)},
        scale=Scale(torch.from_numpy(offset).double(), torch.from_numpy(factor).double(), _range(about),
                    about["scaling"]),
        pixel_size=_pixel_sizes(about["pixel_size_angstrom"], B),
        image_ids=_ids(about["image_ids"], B),
        table=_table(about["table"], B),
        about=about["about"],
    )  # fmt: skip


def _require(condition: Any, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(arrays: dict[str, np.ndarray], name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """An array of finite numbers, of this shape if one is given."""
    array = arrays[name]
    fits = array.dtype.kind in ("bf" if shape is None else "f") and shape in (None, array.shape)
    expected = "finite numbers" if shape is None else f"finite numbers of shape {list(shape)}"
    got = f"{array.dtype} {list(array.shape)}"
    _require(fits and np.isfinite(array).all(), f"{name} is {got}, expected {expected}")
    return array


def _range(about: dict[str, Any]) -> tuple[float, float] | None:
    """The range of the scale, which its name determines."""
    name, limits = about["scaling"], about["range"]
    _require(name in NORMALISATIONS, f"scaling is {name!r}, expected {', '.join(NORMALISATIONS)}")
    expected = scale_of(name, []).range
    _require((None if limits is None else tuple(limits)) == expected, f"range is {limits!r}, expected {expected}")
    return expected


def _pixel_sizes(sizes: Any, count: int) -> tuple[float | None, ...]:
    _require(isinstance(sizes, list) and len(sizes) == count, f"pixel_size_angstrom is not a list of {count}")
    for size in sizes:
        _require(size is None or (_is_number(size) and 0 < size < _MAX_PIXEL_SIZE), f"a pixel size is {size!r}")
    return tuple(sizes)


def _ids(ids: Any, count: int) -> tuple[str, ...]:
    _require(isinstance(ids, list) and len(ids) == count, f"image_ids is not a list of {count}")
    _require(all(isinstance(one, str) and one and one.isprintable() for one in ids), "image_ids are not all names")
    _require(len(set(ids)) == count, "image_ids names an image twice")
    return tuple(ids)


def _table(text: Any, count: int) -> pd.DataFrame | None:
    """The table, a row per image, from JSON with columns and rows of data. Columns hold numbers or one-line texts."""
    import pandas as pd

    if text is None:
        return None
    table = json.loads(text)
    columns, rows = table["columns"], table["data"]
    _require(len(rows) == count, f"the table has {len(rows)} rows for {count} images")
    for name in columns:
        _require(isinstance(name, str) and _COLUMN.fullmatch(name), f"the table has a column {name!r}")
    _require(len(set(columns)) == len(columns), "the table has a column twice")
    _require(all(isinstance(row, list) and len(row) == len(columns) for row in rows), "the table has incomplete rows")
    for name, *values in zip(columns, *rows, strict=True):
        known = [value for value in values if value is not None]
        numbers = all(isinstance(value, bool) or _is_number(value) for value in known)
        texts = all(isinstance(value, str) and value.isprintable() for value in known)
        _require(numbers or texts, f"the column {name} of the table does not hold numbers or one-line texts")
    return pd.DataFrame(rows, columns=columns)


def _plain(arrays: dict[str, np.ndarray], path: Path) -> Measurements:
    """Sum pooling in the units of y, from only y [B, M, h, w] and masks [M, H, W]."""
    y, masks = _float32(arrays["y"]), _float32(arrays["masks"])
    B, M, h, w = y.shape
    fits = masks.ndim == 3 and len(masks) == M and 0 not in masks.shape
    finite = bool(np.isfinite(y).all() and np.isfinite(masks).all())
    fits = fits and finite
    if not fits or masks.shape[1] % h or masks.shape[2] % w or masks.shape[1] // h != masks.shape[2] // w:
        raise DataError(
            f"{path}: masks are {arrays['masks'].dtype} {list(masks.shape)} and y {list(y.shape)}; expected masks "
            f"[{M}, H, W], finite, with H = {h} K and W = {w} K for a block size K"
        )
    return Measurements(
        y=torch.from_numpy(y),
        sigma=torch.zeros(B),
        image_shape=(masks.shape[1], masks.shape[2]),
        operator="",
        noise="none",
        seed=0,
        drawn={"masks": torch.from_numpy(masks)},
        scale=Scale(torch.zeros(B, dtype=torch.float64), torch.ones(B, dtype=torch.float64)),
        pixel_size=(None,) * B,
        image_ids=tuple(map(str, range(B))),
    )


def _float32(array: np.ndarray) -> np.ndarray:
    """Real numbers in float32, others as NaN; values beyond float32 become infinite."""
    if array.dtype.kind not in "bfiu":
        return np.full(array.shape, np.nan, np.float32)
    with np.errstate(over="ignore"):
        return array.astype(np.float32)
