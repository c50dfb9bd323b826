"""Writing images: MRC stacks with their RELION 3.1 star files, and .npy."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import mrcfile.utils
import numpy as np
from mrcfile.constants import IMAGE_STACK_SPACEGROUP, MAP_ID, VOLUME_SPACEGROUP, VOLUME_STACK_SPACEGROUP
from mrcfile.dtypes import HEADER_DTYPE

from cryobench.core import Shape
from cryobench.core.source import Stack, size_text
from cryobench.errors import DataError, reason_of
from cryobench.files import sync, whole_files, whole_folder
from cryobench.io.particles import positive
from cryobench.io.star import PixelSize, lengths, origins_in_angstrom
from cryobench.io.star_text import block_text

if TYPE_CHECKING:
    import pandas as pd

_FLOAT32_MODE, _VERSION = 2, 20141
_AT_ONCE = 2**16
"""Pixels of the temporary arrays in float64, which fit in a cache."""
_GROUP, _GROUP_NAME, _PIXEL_SIZE = "rlnOpticsGroup", "rlnOpticsGroupName", "rlnImagePixelSize"
_OPTICS = (
    "rlnMtfFileName",
    "rlnMicrographOriginalPixelSize",
    "rlnMicrographPixelSize",
    "rlnVoltage",
    "rlnSphericalAberration",
    "rlnAmplitudeContrast",
    "rlnCtfDataAreCtfPremultiplied",
    "rlnBeamTiltX",
    "rlnBeamTiltY",
    "rlnOddZernike",
    "rlnEvenZernike",
    "rlnMagMat00",
    "rlnMagMat01",
    "rlnMagMat10",
    "rlnMagMat11",
    _PIXEL_SIZE,
)
"""The columns that RELION 3.1 reads only from the optics table, besides the size of the images."""
_OLD = [
    "rlnDetectorPixelSize",
    "rlnMagnification",
    "rlnPixelSize",
    _PIXEL_SIZE,
    "rlnImageSize",
    "rlnImageDimensionality",
]
"""Columns that describe the images as stored; replaced when they are written."""


# ------------------------------------------------------------------------------------------------------ images


def write_mrcs(path: Path, images: np.ndarray | Iterable[np.ndarray], pixel_size: float | None = None) -> int:
    """Write images [n, H, W], or an iterable of such chunks, as an MRC image stack of float32. Returns their number.

    pixel_size: Å, or None if unknown. One chunk is held in memory. The file is written atomically and replaces an
    existing one. Raises `DataError` for no images, for images that differ in shape or are not finite, and if the file
    cannot be written.
    """
    chunks = [images] if isinstance(images, np.ndarray) else images
    with written(path) as (temporary,):
        return _fill_mrcs(temporary, path, chunks, pixel_size)


def _fill_mrcs(temporary: Path, path: Path, chunks: Iterable[np.ndarray], pixel_size: float | None) -> int:
    """Write a stack to `temporary`, which will be moved to `path`. Returns the number of images."""
    with StackWriter(temporary, path, pixel_size) as stack:
        for chunk in chunks:
            stack.add(chunk)
    return stack.count


class StackWriter:
    """Writes an MRC stack of images, or an MRC2014 stack of volumes, of float32, chunk by chunk; its header is written
    at the end of the `with` block.

    file: to write. path: the place to which it will be moved, for messages. pixel_size: Å, None if unknown. depth: the
    sections of a volume; None for images. Raises `DataError` for no images, and for images that differ in shape or are
    not finite.
    """

    def __init__(self, file: Path, path: Path, pixel_size: float | None, *, depth: int | None = None):
        self._file, self._path, self._pixel_size, self._depth = file, path, pixel_size, depth
        self._totals = Totals()

    def __enter__(self) -> StackWriter:
        self._stream = self._file.open("wb")
        self._stream.seek(HEADER_DTYPE.itemsize)
        return self

    def add(self, chunk: np.ndarray) -> None:
        """Add images [n, H, W] or volumes [n, D, H, W]."""
        block = np.ascontiguousarray(chunk, dtype="<f4")
        if self._depth is not None:
            block = block.reshape(-1, *block.shape[2:])
        self._totals.add(block, self._path)
        self._stream.write(block.data)

    @property
    def count(self) -> int:
        """The number of sections that were written."""
        return self._totals.count

    def __exit__(self, kind: object, *_: object) -> None:
        with self._stream:
            if kind is None:
                header = self._totals.header(self._pixel_size, self._path, self._depth)
                self._stream.seek(0)
                self._stream.write(header.tobytes())


@dataclass
class Totals:
    """The statistics in the header of a stack, accumulated chunk by chunk. square: sum of squared deviations."""

    count: int = 0
    shape: tuple[int, ...] = (0, 0)
    low: float = np.inf
    high: float = -np.inf
    mean: float = 0.0
    square: float = 0.0

    def add(self, block: np.ndarray, path: Path) -> None:
        """Add float32 images [n, H, W]. Raises `DataError` for images that cannot be in one stack."""
        if block.ndim != 3 or 0 in block.shape[1:]:
            raise DataError(f"{path}: got images of shape {list(block.shape)}; expected [n, H, W]")
        if self.count and block.shape[1:] != self.shape:
            raise DataError(
                f"{path}: got images of {block.shape[1:]} after images of {self.shape}; write one file for each shape"
            )
        if len(block) == 0:
            return
        pixels = block.reshape(len(block), -1)
        low, high = pixels.min(axis=1), pixels.max(axis=1)  # NaN in an image with a NaN
        finite = np.isfinite(low) & np.isfinite(high)
        if not finite.all():
            raise DataError(f"{path}: image {self.count + int(np.argmin(finite))} is not finite; leave it out")
        at_once = max(1, _AT_ONCE // pixels.shape[1])
        mean, square = np.empty(len(pixels)), 0.0
        for start in range(0, len(pixels), at_once):
            part = slice(start, start + at_once)
            values = pixels[part].astype(np.float64)
            mean[part] = values.mean(axis=1)
            values -= mean[part, None]
            square += float(np.square(values, out=values).sum())
        square += pixels.shape[1] * float(np.square(mean - mean.mean()).sum())
        self.merge(Totals(len(block), block.shape[1:], float(low.min()), float(high.max()), float(mean.mean()), square))

    def merge(self, other: Totals) -> None:
        """Add the statistics of further images of the same shape (Chan, Golub & LeVeque 1983, eq. 1.5)."""
        count, step = self.count + other.count, other.mean - self.mean
        self.mean += step * other.count / count
        self.square += other.square + step**2 * math.prod(other.shape) * self.count * other.count / count
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.count, self.shape = count, other.shape

    def header(self, pixel_size: float | None, path: Path, depth: int | None = None) -> np.ndarray:
        """The header of an MRC2014 image stack (Cheng et al. 2015, J. Struct. Biol. 192:146), or of a stack of volumes
        of `depth` sections."""
        if self.count == 0:
            raise DataError(f"{path}: there are no images to write; choose at least one")
        header = stack_header(self.count, self.shape, pixel_size, _FLOAT32_MODE, depth)
        header["dmin"], header["dmax"], header["dmean"] = self.low, self.high, self.mean
        header["rms"] = np.sqrt(self.square / (self.count * math.prod(self.shape)))
        return header

    def volume_header(self, voxel: Sequence[float] | None, path: Path) -> np.ndarray:
        """The header of one MRC2014 volume. voxel: Å along z, y and x, None if unknown."""
        header = self.header(None, path, self.count)
        header["ispg"] = VOLUME_SPACEGROUP
        sides = (self.count, *self.shape)
        header["cella"] = tuple(n * size for n, size in zip(sides, voxel or (0, 0, 0), strict=True))[::-1]
        return header


def stack_header(
    count: int, shape: Sequence[int], pixel_size: float | None, mode: int, depth: int | None = None
) -> np.ndarray:
    """The header of an MRC2014 stack of `count` sections of `shape` (H, W), whose statistics are not known: images, or
    volumes of `depth` sections."""
    H, W = shape
    header = np.zeros((), HEADER_DTYPE.newbyteorder("<"))
    header["nx"], header["ny"], header["nz"] = W, H, count
    header["mx"], header["my"], header["mz"] = W, H, depth or 1
    header["cella"] = tuple((pixel_size or 0) * side for side in (W, H, depth or 1))
    header["cellb"] = (90, 90, 90)
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    header["dmin"], header["dmax"], header["dmean"], header["rms"] = 0, -1, -2, -1  # MRC2014: not known
    space_group = IMAGE_STACK_SPACEGROUP if depth is None else VOLUME_STACK_SPACEGROUP
    header["mode"], header["ispg"], header["nversion"] = mode, space_group, _VERSION
    header["map"], header["machst"] = MAP_ID, mrcfile.utils.machine_stamp_from_byte_order("<")
    return header


@contextlib.contextmanager
def written(*paths: Path) -> Iterator[list[Path]]:
    """Temporary paths of files that appear together when the block ends without an error, and not at all otherwise; see
    `files.whole_files`. Raises `DataError` if they cannot be written."""
    try:
        with whole_files(*paths) as temporary:
            yield temporary
    except OSError as error:
        reason = error.strerror or reason_of(error)
        raise DataError(f"cannot write {' and '.join(map(str, paths))}: {reason}; choose another place") from error


@contextlib.contextmanager
def written_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that replaces `path` if the block ends without an error; see `files.whole_folder`. Raises
    `DataError` if it cannot be written."""
    try:
        with whole_folder(path) as temporary:
            yield temporary
            for part in temporary.rglob("*"):
                sync(part)
    except OSError as error:
        reason = error.strerror or reason_of(error)
        raise DataError(f"cannot write {path}: {reason}; choose another place") from error


def write_particles(
    files: Sequence[Path], path: Path, chunks: Iterator[np.ndarray], stack: Stack, numbers: Sequence[int]
) -> None:
    """Write chunks [n, H, W], the images `numbers` of a stack, as a .mrcs, and its metadata as a .star.

    files: the two files to write, which will be moved to `path` and the .star beside it (`written`). Raises
    `DataError`, for an invalid table before the images are read.
    """
    if len(stack.shape) != 2:
        raise DataError(
            f"cannot write {path}: {stack.label} has volumes of {size_text(stack.shape)}; give a .npy, .tif or .zarr"
        )
    sizes = [stack.pixel_size(number) for number in numbers]
    known = [size for size in sizes if size is not None]
    if known and len(known) < len(sizes):
        raise DataError(f"{stack.label}: the pixel size of some images is unknown; write these images separately")
    images, star = files
    text = star_text(path.with_suffix(".star"), stack.rows(numbers), path.name, known or None, stack.shape[1],
                     count=len(numbers))  # fmt: skip
    _fill_mrcs(images, path, chunks, known[0] if known else None)
    star.write_bytes(text.encode())


def sections_shape(path: Path, stack: Stack, numbers: Sequence[int], kind: str) -> Shape:
    """The shape of an array of sections: one volume of a stack, or the images `numbers`. Raises `DataError` for several
    volumes, which `kind`, the format of `path`, cannot hold."""
    if len(stack.shape) != 3:
        return (len(numbers), *stack.shape)
    if len(numbers) != 1:
        raise DataError(f"{path}: {kind} holds one volume, got {len(numbers)}; choose one with --images")
    return tuple(stack.shape)


def write_npy(
    files: Sequence[Path], path: Path, chunks: Iterator[np.ndarray], stack: Stack, numbers: Sequence[int]
) -> None:
    """Write chunks [n, *shape], the images `numbers` of a stack, as one float32 array, to files[0]."""
    array = np.lib.format.open_memmap(files[0], mode="w+", dtype=np.float32, shape=(len(numbers), *stack.shape))
    start = 0
    for chunk in chunks:
        array[start : start + len(chunk)] = chunk
        start += len(chunk)
    array.flush()


# ------------------------------------------------------------------------------------------------------- table


def star_text(
    path: Path,
    table: pd.DataFrame | None,
    stack_name: str,
    pixel_size: PixelSize,
    image_size: int,
    *,
    count: int | None = None,
    stored_pixel_size: PixelSize = None,
    names: Sequence[str] | None = None,
) -> str:
    """The text of a RELION 3.1 star file: row i of `table` is image i of the stack `stack_name`, relative to the file.

    table: RELION's columns, or None for `count` images without metadata. pixel_size: Å per pixel of the images as
    written, for all or for each, None if unknown. image_size: pixels a side, as written. stored_pixel_size: Å per pixel
    of the table's origins in pixels, if the table does not state it. names: of the images (NUMBER@STACK), where they
    are not those of the stack in order.

    Optics columns go to the optics table, one group per combination of them; RELION 3.0's magnification and origins in
    pixels become pixel size and origins in Å; other columns are copied. Raises `DataError` if a conversion is not
    possible. path: of the file, for messages.
    """
    import pandas as pd

    if table is None:
        if count is None:
            raise DataError(f"{path}: neither a table nor a number of images was given; give one")
        table = pd.DataFrame(index=range(count))
    if count not in (None, len(table)):
        raise DataError(f"{path}: the table has {len(table)} rows for {count} images; expected one for each")
    if len(table) == 0:
        raise DataError(f"{path}: there are no images to list; choose at least one")
    table = origins_in_angstrom(table.reset_index(drop=True), stored_pixel_size, path).drop(
        columns=_OLD, errors="ignore"
    )
    sizes = lengths(pixel_size)
    if sizes is not None:
        table[_PIXEL_SIZE] = positive(np.broadcast_to(sizes, len(table)), path)
    table["rlnImageName"] = names or [f"{i + 1:06d}@{stack_name}" for i in range(len(table))]
    optics, particles = split_optics(table)
    optics["rlnImageSize"], optics["rlnImageDimensionality"] = image_size, 2
    return block_text("optics", optics) + "\n\n" + block_text("particles", particles)


def split_optics(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(optics table, particle table): one group for each combination of optics columns, numbered from 1."""
    import pandas as pd

    if _GROUP not in table.columns:
        table = table.assign(**{_GROUP: 1})
    own = [column for column in (_GROUP, _GROUP_NAME, *_OPTICS) if column in table.columns]
    number = table.groupby(own, sort=False, dropna=False).ngroup() + 1
    optics = pd.DataFrame(table[own]).drop_duplicates(ignore_index=True)
    optics[_GROUP] = optics.index + 1
    if _GROUP_NAME not in own or optics[_GROUP_NAME].duplicated().any():
        optics[_GROUP_NAME] = [f"opticsGroup{group}" for group in optics[_GROUP]]
    order = [_GROUP, _GROUP_NAME, *(column for column in own if column not in (_GROUP, _GROUP_NAME))]
    return pd.DataFrame(optics[order]), table.drop(columns=own).assign(**{_GROUP: number})
