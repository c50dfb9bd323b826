"""MRC, npy and torch files: opened by their headers, and read image by image."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import itertools
import math
import os
import shutil
import tempfile
import warnings
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from mrcfile.constants import IMAGE_STACK_SPACEGROUP

from cryobench.core.operator import Shape, Window
from cryobench.core.source import size_text
from cryobench.errors import DataError, reason_of
from cryobench.io.mrc_header import HEADER_BYTES, MrcHeader, parse_mrc_header
from cryobench.io.notices import warn_once
from cryobench.limits import bytes_text

ReadImages = Callable[[int, np.ndarray], None]
"""read(first, out) fills out, contiguous float32 [n, *shape], with images first to first + n - 1 of an open file."""
ReadWindow = Callable[[int, Window, np.ndarray], None]
"""read(number, window, out) fills out, float32 of the shape of the window, with a part of image `number`."""
Voxel = tuple[float | None, float | None, float | None]
"""Å per voxel along z, y and x, None where unknown."""

COMPRESSIONS: dict[str, Callable[[Path], Any]] = {".gz": gzip.GzipFile, ".bz2": bz2.BZ2File}
"""Compressed MRC files, by suffix: the function that decompresses them."""
MAX_TRAILING = 1 << 16
"""Bytes after the last image that are ignored in a compressed file; one that holds more is refused."""

_SKIPPED = 1 << 14
"""Bytes of a row of an MRC file outside a window from which the rows of the window are read one by one."""
_MAX_EXTENDED_HEADER = 1 << 30
"""Maximum size of an extended header in a compressed file, in bytes: 1000 for each of a million sections."""
_POINTERS = {b"version https://git-lfs.github.com/": "git lfs pull", b"/annex/objects/": "git annex get"}
"""How the files begin that stand for a large file in a git repository, and the command that fetches it."""
_EXPECTED = {
    2: "expected one image [H, W] or a stack [N, H, W] or [N, 1, H, W]",
    3: "expected one volume [D, H, W] or several, [N, D, H, W] or [N, 1, D, H, W]",
}


@dataclass(frozen=True)
class ImageFile:
    """A file of `count` images of one shape, with their pixel size along x in Å if known, according to its header.

    `open` returns the function that reads pixels. The file is closed when that function is garbage-collected. parts:
    the files that the pixels are in, if `path` is a folder and they are known. windows: returns the function that reads
    no more than a window, in a format that has one. voxel: of a volume.
    """

    path: Path
    count: int
    shape: Shape
    pixel_size: float | None
    open: Callable[[], ReadImages]
    parts: tuple[Path, ...] = ()
    windows: Callable[[], ReadWindow] | None = None
    voxel: Voxel = (None, None, None)

    def open_windows(self) -> ReadWindow:
        """The function that reads windows, from whole images where the format has no other."""
        if self.windows is not None:
            return self.windows()
        read = self.open()

        def read_window(number: int, window: Window, out: np.ndarray) -> None:
            image = np.empty((1, *self.shape), np.float32)
            read(number, image)
            out[...] = image[0][window]

        return read_window


ISOTROPIC = 1e-3
"""Relative difference of voxel sizes that counts as rounding: headers often have cells with three decimals."""


def cubic(path: Path, voxel: Sequence[float | None]) -> float | None:
    """Å per voxel of a volume from those along z, y and x, or None if one is unknown. Raises `DataError` unless they
    are the same."""
    sizes = [size for size in voxel if size is not None]
    if len(sizes) < 3:
        return None
    if max(sizes) - min(sizes) > ISOTROPIC * min(sizes):
        raise DataError(
            f"{path} has voxels of {' x '.join(f'{size:.4g}' for size in reversed(sizes))} Å along x, y and z; "
            "expected cubes: resample the volume, correct the voxel size in its header, or read its sections as images"
        )
    return sizes[2]


def files_of(files: Iterable[ImageFile]) -> list[Path] | None:
    """The files that the pixels of these are in, each once; None if one is a folder of unknown files."""
    found = [path for file in files for path in (file.parts or (file.path,))]
    return None if any(path.is_dir() for path in found) else list(dict.fromkeys(found))


def check_file(path: Path, what: str = "image file") -> None:
    """Raise `DataError` unless `path` is a readable file that is not empty."""
    try:
        if path.is_dir():
            raise DataError(f"{path} is a folder; give one {what}")
        if not path.exists():
            raise DataError(f"{path} does not exist; give an existing {what}")
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty (0 bytes); expected a {what}: copy or download it again")
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise DataError(f"{path} cannot be opened: {reason_of(error)}; give a readable {what}") from error
    for pointer, command in _POINTERS.items():
        if start.startswith(pointer):
            raise DataError(f"{path} is a pointer to a {what} in other storage; fetch the file with `{command}`")


# ------------------------------------------------------------------------------------------------------- MRC


def open_mrc(path: Path, *, as_stack: bool, axes: int = 2) -> ImageFile:
    """Open an MRC file, plain or .gz or .bz2, by its header. as_stack: read the sections of a volume as images.

    axes: number of axes of an image; with 3 the file is a volume or an MRC2014 stack of volumes. Arrays are in the
    order (z,) y, x, for any order of the axes in the header. A compressed file is decompressed when its first image is
    read, into a temporary file that is deleted after its last use. Warns of a header that does not follow the standard
    and of bytes after the last image. Raises `DataError` for a file that is not MRC, holds no real numbers or is
    truncated, for images whose sections are not along z, and for a volume without `as_stack`.
    """
    check_file(path, "MRC file")
    header = mrc_header(path)
    dtype, shape = header.dtype, header.shape
    count, image_shape = _stack_shape(path, shape, axes)
    packed = path.suffix.lower() in COMPRESSIONS
    size = None if packed else path.stat().st_size
    if packed and header.offset - HEADER_BYTES > _MAX_EXTENDED_HEADER:
        raise DataError(
            f"{path} states an extended header of {bytes_text(header.offset - HEADER_BYTES)}; expected at most "
            f"{bytes_text(_MAX_EXTENDED_HEADER)} in a compressed file: unpack it, or copy it again"
        )
    if size is not None:
        _check_mrc_size(path, size, header)
    if axes == 2 and count > 1 and not as_stack and header.space_group != IMAGE_STACK_SPACEGROUP:
        raise DataError(
            f"{path} is a volume of {count} sections by its header (space group {header.space_group}); expected a "
            f"stack of images: pass --data volume:{path} to read it as a volume, --as-stack (as_stack=true) to read "
            "its sections as images, or a star file that names it"
        )
    if axes == 2 and header.axes[2] != 3:
        columns, rows, sections = ("xyz"[axis - 1] for axis in header.axes)
        raise DataError(
            f"{path} has columns along {columns}, rows along {rows} and sections along {sections}; expected images, "
            f"with sections along z: pass --data volume:{path} to read it as a volume"
        )

    for kind, note in header.notes.items():
        warn_once(kind, path, note)

    def open_images() -> _MrcReader:
        stored = (count, *image_shape)
        if size is not None:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return _MrcReader(path, descriptor, dtype, header.offset, stored, size)
        with tempfile.TemporaryFile() as plain:
            unpacked = _unpack(path, plain, _expected_bytes(header) + MAX_TRAILING)
            _check_mrc_size(path, unpacked, header)
            return _MrcReader(path, os.dup(plain.fileno()), dtype, header.offset, stored, unpacked)

    along = header.axes[axes - 1 :: -1]  # of the axes of the stored array
    order = [along.index(axis) for axis in range(axes, 0, -1)]
    x, y, z = header.voxel
    file = ImageFile(path, count, image_shape, x, open_images, windows=lambda: open_images().window, voxel=(z, y, x))
    return _turned(file, order)


def _turned(file: ImageFile, order: list[int]) -> ImageFile:
    """The file with the axes of every image in this order."""
    if order == sorted(order):
        return file

    def open_turned() -> ReadImages:
        read = file.open()

        def read_turned(first: int, out: np.ndarray) -> None:
            images = np.empty((len(out), *file.shape), np.float32)
            read(first, images)
            out[...] = images.transpose(0, *[axis + 1 for axis in order])

        return read_turned

    def open_turned_windows() -> ReadWindow:
        read = file.open_windows()

        def read_turned(number: int, window: Window, out: np.ndarray) -> None:
            stored = tuple(window[order.index(axis)] for axis in range(len(order)))
            part = np.empty([side.stop - side.start for side in stored], np.float32)
            read(number, stored, part)
            out[...] = part.transpose(order)

        return read_turned

    shape = tuple(file.shape[axis] for axis in order)
    return dataclasses.replace(file, shape=shape, open=open_turned, windows=open_turned_windows)


class _MrcReader:
    """Reads consecutive images of an open file, one request per call, or a window of one image.

    Threads may share it, since the position is part of each request. The descriptor is closed with the last reference.
    """

    def __init__(self, path: Path, descriptor: int, dtype: np.dtype, offset: int, shape: tuple[int, ...], size: int):
        weakref.finalize(self, os.close, descriptor)
        self._path, self._descriptor, self._dtype, self._offset = path, descriptor, dtype, offset
        self._shape = shape[1:]
        self._image_bytes = math.prod(self._shape) * dtype.itemsize
        if os.fstat(descriptor).st_size != size:
            raise changed(path)

    def __call__(self, first: int, out: np.ndarray) -> None:
        same = self._dtype == out.dtype  # then no conversion, and no copy
        stored = out if same else np.empty(out.shape, self._dtype)
        self._fill(stored.reshape(-1).view(np.uint8).data, self._offset + first * self._image_bytes)
        if not same:
            out[...] = stored

    def window(self, number: int, window: Window, out: np.ndarray) -> None:
        """Read a window of an image into out: whole rows, unless most of each is outside the window."""
        *outer, rows, columns = window
        *_, height, width = self._shape
        whole = (width - (columns.stop - columns.start)) * self._dtype.itemsize < _SKIPPED
        first, last = (0, width) if whole else (columns.start, columns.stop)
        at_once = rows.stop - rows.start if whole else 1
        block = np.empty((at_once, last - first), self._dtype)
        for place in itertools.product(*(range(side.stop - side.start) for side in outer)):
            section = 0
            for n, side, i in zip(self._shape, outer, place, strict=False):
                section = section * n + side.start + i
            for row in range(rows.start, rows.stop, at_once):
                pixel = (section * height + row) * width + first
                start = self._offset + number * self._image_bytes + pixel * self._dtype.itemsize
                self._fill(block.reshape(-1).view(np.uint8).data, start)
                found = block[:, columns.start - first : columns.stop - first]
                out[(*place, slice(row - rows.start, row - rows.start + at_once))] = found

    def _fill(self, buffer: memoryview, offset: int) -> None:
        """Read len(buffer) bytes; the kernel may return fewer than requested."""
        done = 0
        while done < len(buffer):
            try:
                got = os.preadv(self._descriptor, [buffer[done:]], offset + done)
            except OSError as error:
                raise DataError(f"{self._path} cannot be read: {reason_of(error)}; copy it to another disk") from error
            if got == 0:
                raise changed(self._path)
            done += got


def changed(path: Path) -> DataError:
    """The error for a file that changed after its header was read."""
    return DataError(f"{path} changed while it was in use; open it again")


def mrc_header(path: Path, *, packed: bool = False) -> MrcHeader:
    """The header of an MRC file, plain or compressed. packed: see `parse_mrc_header`. Raises `DataError`."""
    try:
        unpack = COMPRESSIONS.get(path.suffix.lower())
        with path.open("rb") if unpack is None else unpack(path) as file:
            raw = file.read(HEADER_BYTES)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path} is not a readable MRC file: {reason_of(error)}; give one, or copy it again") from error
    return parse_mrc_header(path, raw, packed=packed)


def _unpack(path: Path, plain: IO[bytes], limit: int) -> int:
    """Decompress the file into `plain`, at most limit + 1 bytes. Returns the number of bytes."""
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if limit > free:
        raise DataError(
            f"{path} needs {bytes_text(limit)} of temporary disk space, more than the {bytes_text(free)} in "
            f"{tempfile.gettempdir()}; set TMPDIR to another folder, or unpack the file"
        )
    done = 0
    try:
        with COMPRESSIONS[path.suffix.lower()](path) as packed:
            while done <= limit and (part := packed.read(min(1 << 20, limit + 1 - done))):
                done += plain.write(part)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be decompressed: {reason_of(error)}; copy or download it again") from error
    plain.flush()
    return done


def _expected_bytes(header: MrcHeader) -> int:
    """The size of the file that the header requires."""
    return header.offset + math.prod(header.shape) * header.dtype.itemsize


def _check_mrc_size(path: Path, size: int, header: MrcHeader) -> None:
    """Raise `DataError` for a file that is shorter than its header says, and warn of one that is longer."""
    packed, expected = path.suffix.lower() in COMPRESSIONS, _expected_bytes(header)
    has = f"more than {size - 1}" if packed and size > expected + MAX_TRAILING else size  # not decompressed further
    sizes = f"its header ({size_text(header.shape)}) requires {expected} bytes, the file has {has}"
    if size < expected:
        raise DataError(f"{path} is truncated: {sizes}; copy or download it again")
    if size > expected and header.exact:
        raise DataError(
            f"{path} is not a readable MRC file: it has no map string, and {sizes}; give one, or copy it again"
        )
    if packed and size > expected + MAX_TRAILING:
        raise DataError(f"{path} is longer than its header says: {sizes}; correct the header, or write the file again")
    if size > expected:
        warn_once("longer", path, f"is longer than its header says: {sizes}; the rest was ignored")


# ------------------------------------------------------------------------------------------------------- npy


def open_npy(path: Path, *, axes: int = 2) -> ImageFile:
    """Open a numpy array file of real numbers, [*S], [N, *S] or [N, 1, *S], S of `axes` axes. Raises `DataError`."""
    check_file(path)
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # numpy evaluates the header as Python, which can raise anything
        raise DataError(
            f"{path} is not a readable .npy file of numbers: {reason_of(error)}; "
            "save one plain array with numpy.save, or copy it again"
        ) from error
    if array.dtype.kind not in "biuf":
        raise DataError(f"{path} holds values of type {array.dtype}; expected real numbers, such as float32")
    count, shape = _stack_shape(path, array.shape, axes)
    images = array.reshape(count, *shape)

    def read_window(number: int, window: Window, out: np.ndarray) -> None:
        with np.errstate(over="ignore"):
            out[...] = images[number][window]

    return ImageFile(path, count, shape, None, lambda: _array_reader(images), windows=lambda: read_window)


# ----------------------------------------------------------------------------------------------------- torch


def open_pt(path: Path) -> ImageFile:
    """Open a torch file that holds one real tensor [H, W], [N, H, W] or [N, 1, H, W]. Raises `DataError`."""
    import torch

    check_file(path)
    tensor = _load_tensor(path)
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.dtype not in _real_dtypes():
        raise DataError(
            f"{path} holds a {tensor.dtype} tensor ({tensor.layout}); expected real numbers, such as float32"
        )
    needed, stored = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if needed > stored:
        raise DataError(
            f"{path} holds a tensor of {bytes_text(needed)} but stores {bytes_text(stored)}; expected a tensor that "
            "stores every pixel: save tensor.contiguous()"
        )
    count, shape = _stack_shape(path, tuple(tensor.shape))
    stack = tensor.detach().reshape(count, *shape)

    def read(first: int, out: np.ndarray) -> None:
        torch.from_numpy(out).copy_(stack[first : first + len(out)])

    return ImageFile(path, count, shape, None, lambda: read)


@cache
def _real_dtypes() -> frozenset[Any]:
    import torch

    return frozenset({
        torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool, torch.uint8, torch.int8, torch.int16,
        torch.int32, torch.int64,
    })  # fmt: skip


def _load_tensor(path: Path) -> Any:
    """The tensor of a torch file, memory-mapped where the file allows it."""
    import pickle

    import torch

    try:
        zipped = zipfile.is_zipfile(path)  # torch < 1.6 wrote plain pickles, which cannot be memory-mapped
        with path.open("rb") as file:
            begins_zipped = file.read(4) == b"PK\x03\x04"
        if begins_zipped and not zipped:
            raise DataError(f"{path} is truncated: the end of the torch file is missing; copy or download it again")
        if zipped:
            with zipfile.ZipFile(path) as archive:
                packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
            if packed:
                raise DataError(f"{path} is compressed, which torch.save does not do; save the tensor again")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about torch's own storage classes, which users cannot act on
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except DataError:
        raise
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path} holds pickled Python objects, which could run code and are refused, or is not a torch file; "
            "expected one tensor, saved with torch.save(tensor, path)"
        ) from error
    except Exception as error:  # torch raises many kinds of errors for foreign files
        reason = type(error).__name__
        raise DataError(f"{path} is not a readable torch file ({reason}); save the tensor again") from error
    if not isinstance(loaded, torch.Tensor):
        kind = type(loaded).__name__
        raise DataError(f"{path} holds a {kind}; expected one tensor, saved with torch.save(tensor, path)")
    return loaded


# ---------------------------------------------------------------------------------------------------- shapes


def _stack_shape(path: Path, shape: tuple[int, ...], axes: int = 2) -> tuple[int, Shape]:
    """(number of images, image shape) of an array of this shape, where an image has `axes` axes."""
    said = f"[{', '.join(map(str, shape))}]"
    if len(shape) == axes + 2 and shape[1] == 1:
        shape = (shape[0], *shape[2:])
    if len(shape) not in (axes, axes + 1):
        volumes = f"; for volumes give --data volume:{path}" if axes == 2 and len(shape) == 4 else ""
        raise DataError(f"{path} holds an array of shape {said}; {_EXPECTED[axes]}{volumes}")
    if min(shape) < 1:
        raise DataError(f"{path} holds no pixels: its shape is {said}; {_EXPECTED[axes]}")
    return math.prod(shape[:-axes]), shape[-axes:]


def _array_reader(array: np.ndarray) -> ReadImages:
    """Reads copies of images of a memory-mapped [N, *shape]."""

    def read(first: int, out: np.ndarray) -> None:
        with np.errstate(over="ignore"):  # values beyond float32 become inf, which the stack rejects
            out[...] = array[first : first + len(out)]

    return read
