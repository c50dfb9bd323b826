"""MRC, npy and torch files: opened by their headers, and read image by image."""

from __future__ import annotations

import bz2
import gzip
import math
import os
import shutil
import tempfile
import warnings
import weakref
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import mrcfile.bzip2mrcfile
import mrcfile.gzipmrcfile
import mrcfile.mrcfile
import mrcfile.utils
import numpy as np
from mrcfile.constants import IMAGE_STACK_SPACEGROUP

from cryobench.core.operator import Shape
from cryobench.core.source import size_text
from cryobench.errors import DataError, reason_of

ReadImages = Callable[[int, np.ndarray], None]
"""read(first, out) fills out, contiguous float32 [n, *shape], with images first to first + n - 1 of an open file."""

COMPRESSIONS = {
    ".gz": (gzip.open, mrcfile.gzipmrcfile.GzipMrcFile),
    ".bz2": (bz2.open, mrcfile.bzip2mrcfile.Bzip2MrcFile),
}
"""Compressed MRC files, by suffix: the function that decompresses them and the class that reads their headers."""

_POINTERS = {b"version https://git-lfs.github.com/": "git lfs pull", b"/annex/objects/": "git annex get"}
"""How the files begin that stand for a large file in a git repository, and the command that fetches it."""
_MRC_HEADER_BYTES = 1024
_EXPECTED = {
    2: "expected one image [H, W] or a stack [N, H, W] or [N, 1, H, W]",
    3: "expected one volume [D, H, W] or several, [N, D, H, W] or [N, 1, D, H, W]",
}


@dataclass(frozen=True)
class ImageFile:
    """A file of `count` images of one shape, with their pixel size in Å if known, according to its header.

    `open` returns the function that reads pixels. The file is closed when that function is garbage-collected.
    """

    path: Path
    count: int
    shape: Shape
    pixel_size: float | None
    open: Callable[[], ReadImages]


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

    axes: number of axes of an image; with 3 the file is a volume or an MRC2014 stack of volumes. A compressed file is
    decompressed when its first image is read, into a temporary file that is deleted after its last use. Raises
    `DataError` for a file that is not MRC, is complex, truncated or longer than its header says, and for a volume
    without `as_stack`.
    """
    check_file(path, "MRC file")
    header = _mrc_header(path)
    try:
        dtype = mrcfile.utils.data_dtype_from_header(header)
        shape = mrcfile.utils.data_shape_from_header(header)
    except (ValueError, ZeroDivisionError) as error:
        raise DataError(
            f"{path} has a damaged MRC header: {reason_of(error)}; expected mode 0, 1, 2, 6 or 12"
        ) from error
    if dtype.kind == "c":
        raise DataError(f"{path} holds complex values (MRC mode {header.mode}), a transform; expected real images")
    count, image_shape = _stack_shape(path, shape, axes)
    offset = _MRC_HEADER_BYTES + int(header.nsymbt)
    packed = path.suffix.lower() in COMPRESSIONS
    if not packed:
        _check_mrc_size(path, path.stat().st_size, shape, dtype.itemsize, offset)
    if axes == 2 and count > 1 and not as_stack and header.ispg != IMAGE_STACK_SPACEGROUP:
        raise DataError(
            f"{path} is a volume of {count} sections by its header (space group {header.ispg}); expected a stack of "
            f"images: pass --data volume:{path} to read it as a volume, --as-stack (as_stack=true) to read its "
            "sections as images, or a star file that names it"
        )

    def open_images() -> ReadImages:
        if not packed:
            return _MrcReader(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC), dtype, offset, (count, *image_shape))
        with tempfile.TemporaryFile() as plain:
            _check_mrc_size(path, _unpack(path, plain), shape, dtype.itemsize, offset)
            return _MrcReader(path, os.dup(plain.fileno()), dtype, offset, (count, *image_shape))

    return ImageFile(path, count, image_shape, _mrc_pixel_size(header), open_images)


class _MrcReader:
    """Reads consecutive images of an open file, one request per call.

    Threads may share it, since the position is part of each request. The descriptor is closed with the last reference.
    """

    def __init__(self, path: Path, descriptor: int, dtype: np.dtype, offset: int, shape: tuple[int, ...]):
        weakref.finalize(self, os.close, descriptor)
        self._path, self._descriptor, self._dtype, self._offset = path, descriptor, dtype, offset
        self._image_bytes = math.prod(shape[1:]) * dtype.itemsize
        if os.fstat(descriptor).st_size != offset + shape[0] * self._image_bytes:
            raise changed(path)

    def __call__(self, first: int, out: np.ndarray) -> None:
        same = self._dtype == out.dtype  # then no conversion, and no copy
        stored = out if same else np.empty(out.shape, self._dtype)
        self._fill(stored.reshape(-1).view(np.uint8).data, self._offset + first * self._image_bytes)
        if not same:
            out[...] = stored

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


def _mrc_header(path: Path) -> Any:
    """The header as mrcfile's record array; mrcfile's errors and warnings become `DataError`."""
    suffix, size = path.suffix.lower(), path.stat().st_size
    if suffix not in COMPRESSIONS and size < _MRC_HEADER_BYTES:
        raise DataError(f"{path} is truncated: it has {size} bytes, less than an MRC header (1024); copy it again")
    reader = COMPRESSIONS[suffix][1] if suffix in COMPRESSIONS else mrcfile.mrcfile.MrcFile
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside mrcfile
            warnings.simplefilter("error", RuntimeWarning)  # mrcfile's warnings about the file
            with reader(path, header_only=True) as mrc:
                header: Any = mrc.header  # typed as None before reading
                return header.copy().view(np.recarray)
    except (ValueError, OverflowError, MemoryError, Warning, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a readable MRC file: {reason_of(error)}; give one, or copy it again") from error


def _unpack(path: Path, plain: IO[bytes]) -> int:
    """Decompress the file into `plain`. Returns the number of bytes."""
    try:
        with COMPRESSIONS[path.suffix.lower()][0](path, "rb") as packed:
            shutil.copyfileobj(packed, plain, 1 << 20)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be decompressed: {reason_of(error)}; copy or download it again") from error
    plain.flush()
    return plain.tell()


def _check_mrc_size(path: Path, size: int, shape: tuple[int, ...], itemsize: int, offset: int) -> None:
    expected = offset + math.prod(shape) * itemsize
    sizes = f"its header ({size_text(shape)}) requires {expected} bytes, the file has {size}"
    if size < expected:
        raise DataError(f"{path} is truncated: {sizes}; copy or download it again")
    if size > expected:
        raise DataError(f"{path} is longer than its header says: {sizes}; correct the header, or write the file again")


def _mrc_pixel_size(header: Any) -> float | None:
    """Å per pixel along x: the cell divided by its intervals; None where the header lacks either."""
    length, intervals = float(header.cella.x), int(header.mx)
    pixel_size = length / intervals if intervals > 0 else 0.0
    return pixel_size if math.isfinite(pixel_size) and pixel_size > 0 else None


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
    return ImageFile(path, count, shape, None, lambda: _array_reader(array.reshape(count, *shape)))


# ----------------------------------------------------------------------------------------------------- torch


def open_pt(path: Path) -> ImageFile:
    """Open a torch file that holds one real tensor [H, W], [N, H, W] or [N, 1, H, W]. Raises `DataError`."""
    import torch

    check_file(path)
    tensor = _load_tensor(path)
    if tensor.is_complex() or tensor.is_quantized or tensor.layout != torch.strided:
        raise DataError(
            f"{path} holds a {tensor.dtype} tensor ({tensor.layout}); expected real numbers, such as float32"
        )
    count, shape = _stack_shape(path, tuple(tensor.shape))
    stack = tensor.detach().reshape(count, *shape)

    def read(first: int, out: np.ndarray) -> None:
        torch.from_numpy(out).copy_(stack[first : first + len(out)])

    return ImageFile(path, count, shape, None, lambda: read)


def _load_tensor(path: Path) -> Any:
    """The tensor of a torch file, memory-mapped where the file allows it."""
    import pickle

    import torch

    zipped = zipfile.is_zipfile(path)  # torch < 1.6 wrote plain pickles, which cannot be memory-mapped
    with path.open("rb") as file:
        begins_zipped = file.read(4) == b"PK\x03\x04"
    if begins_zipped and not zipped:
        raise DataError(f"{path} is truncated: the end of the torch file is missing; copy or download it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about torch's own storage classes, which users cannot act on
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
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
