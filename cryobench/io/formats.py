"""Image files, one at a time: MRC, npy and torch files, opened by their headers, and read where they are asked."""

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

from cryobench.core import Shape
from cryobench.errors import DataError, said

ReadImages = Callable[[int, np.ndarray], None]
"""read(first, out) fills out, float32 [n, H, W] and contiguous, with images first to first + n - 1 of an open file."""

PACKED = (".gz", ".bz2")
"""Endings of compressed MRC files."""

_MRC_HEADER_BYTES = 1024
_MRC_READERS = {".gz": mrcfile.gzipmrcfile.GzipMrcFile, ".bz2": mrcfile.bzip2mrcfile.Bzip2MrcFile}
_UNPACK = {".gz": gzip.open, ".bz2": bz2.open}
_WANTED = {
    2: "wanted one image [H, W] or a stack [N, H, W] or [N, 1, H, W]",
    3: "wanted one volume [D, H, W] or several, [N, D, H, W] or [N, 1, D, H, W]",
}


@dataclass(frozen=True)
class ImageFile:
    """What the header of a file says: so many images of one shape, and their pixel size in Å where it is known.

    `open` reads no pixels, and gives the function that does. The file is closed when that function is let go.
    """

    path: Path
    count: int
    shape: Shape
    pixel_size: float | None
    open: Callable[[], ReadImages]


def check_file(path: Path, what: str = "image file") -> None:
    """Raise `DataError` unless `path` is a file with something in it."""
    try:
        if path.is_dir():
            raise DataError(f"{path} is a folder; give one {what}")
        if not path.exists():
            raise DataError(f"{path} does not exist; give an existing {what}")
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty (0 bytes), and no {what}; copy or download it again")
        with path.open("rb"):
            pass
    except OSError as error:
        raise DataError(f"{path} cannot be opened: {said(error)}; give a readable {what}") from error


# ------------------------------------------------------------------------------------------------------- MRC


def open_mrc(path: Path, *, as_stack: bool, axes: int = 2) -> ImageFile:
    """Open an MRC file, plain or .gz or .bz2, by its header. `as_stack`: a volume's sections are taken as images.

    axes: of an image; with 3 the file holds a volume, or several of one shape (an MRC2014 volume stack).

    A compressed file is unpacked when its first image is read, into a temporary file that vanishes with its last use.

    Raises `DataError` where the file is not an MRC file, is complex, truncated, longer than its header says, or a
    volume that nobody said to read as a stack.
    """
    check_file(path, "MRC file")
    header = _mrc_header(path)
    try:
        dtype = mrcfile.utils.data_dtype_from_header(header)
        shape = mrcfile.utils.data_shape_from_header(header)
    except (ValueError, ZeroDivisionError) as error:
        raise DataError(f"{path} has a damaged MRC header: {said(error)}; wanted mode 0, 1, 2, 6 or 12") from error
    if dtype.kind == "c":
        raise DataError(f"{path} holds complex values (MRC mode {header.mode}), a transform; wanted real images")
    count, image_shape = _stack_shape(path, shape, axes)
    offset = _MRC_HEADER_BYTES + int(header.nsymbt)
    packed = path.suffix.lower() in PACKED
    if not packed:
        _check_mrc_size(path, path.stat().st_size, shape, dtype.itemsize, offset)
    if axes == 2 and count > 1 and not as_stack and header.ispg != IMAGE_STACK_SPACEGROUP:
        raise DataError(
            f"{path} is a volume of {count} sections by its header (space group {header.ispg}), wanted a stack of "
            f"images; pass --data volume:{path} to take it as a volume, --as-stack (as_stack=true) to take its "
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
    """Reads images by their position in an open file: as many bytes as they have, in one request a call.

    Any number of threads may share it, and a file descriptor has no position that they could disturb. It closes the
    descriptor when nobody holds it any more.
    """

    def __init__(self, path: Path, descriptor: int, dtype: np.dtype, offset: int, shape: tuple[int, ...]):
        weakref.finalize(self, os.close, descriptor)
        self._path, self._descriptor, self._dtype, self._offset = path, descriptor, dtype, offset
        self._image_bytes = math.prod(shape[1:]) * dtype.itemsize
        if os.fstat(descriptor).st_size != offset + shape[0] * self._image_bytes:
            raise changed(path)

    def __call__(self, first: int, out: np.ndarray) -> None:
        same = self._dtype == out.dtype  # then it is read where it is wanted, without a copy
        stored = out if same else np.empty(out.shape, self._dtype)
        self._fill(stored.reshape(-1).view(np.uint8).data, self._offset + first * self._image_bytes)
        if not same:
            out[...] = stored

    def _fill(self, buffer: memoryview, offset: int) -> None:
        """Read len(buffer) bytes; the kernel may give fewer than it was asked for."""
        done = 0
        while done < len(buffer):
            try:
                got = os.preadv(self._descriptor, [buffer[done:]], offset + done)
            except OSError as error:
                raise DataError(f"{self._path} cannot be read: {said(error)}; copy it to a disk that works") from error
            if got == 0:
                raise changed(self._path)
            done += got


def changed(path: Path) -> DataError:
    """The error of a file that is not what it was when its header was read."""
    return DataError(f"{path} changed while it was in use; open it again")


def _mrc_header(path: Path) -> Any:
    """The header as mrcfile's record array, its checks and warnings turned into `DataError`."""
    suffix, size = path.suffix.lower(), path.stat().st_size
    if suffix not in PACKED and size < _MRC_HEADER_BYTES:
        raise DataError(f"{path} is truncated: it has {size} bytes, and an MRC header alone has 1024; copy it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecations inside mrcfile
            warnings.simplefilter("error", RuntimeWarning)  # mrcfile's own, about the file
            with _MRC_READERS.get(suffix, mrcfile.mrcfile.MrcFile)(path, header_only=True) as mrc:
                header: Any = mrc.header  # typed as None before reading
                return header.copy().view(np.recarray)
    except (ValueError, OverflowError, MemoryError, Warning, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a readable MRC file: {said(error)}; give one, or copy it again") from error


def _unpack(path: Path, plain: IO[bytes]) -> int:
    """Decompress the file into `plain`. Returns the number of bytes it has."""
    try:
        with _UNPACK[path.suffix.lower()](path, "rb") as packed:
            shutil.copyfileobj(packed, plain, 1 << 20)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be unpacked: {said(error)}; copy or download it again") from error
    plain.flush()
    return plain.tell()


def _check_mrc_size(path: Path, size: int, shape: tuple[int, ...], itemsize: int, offset: int) -> None:
    wanted = offset + math.prod(shape) * itemsize
    said = f"its header ({' x '.join(map(str, shape))}) asks for {wanted} bytes, the file has {size}"
    if size < wanted:
        raise DataError(f"{path} is truncated: {said}; copy or download it again")
    if size > wanted:
        raise DataError(f"{path} is longer than its header says: {said}; correct the header, or write the file again")


def _mrc_pixel_size(header: Any) -> float | None:
    """Å per pixel along x: the cell over its intervals, where the header gives both."""
    length, intervals = float(header.cella.x), int(header.mx)
    pixel_size = length / intervals if intervals > 0 else 0.0
    return pixel_size if math.isfinite(pixel_size) and pixel_size > 0 else None


# ------------------------------------------------------------------------------------------------------- npy


def open_npy(path: Path, *, axes: int = 2) -> ImageFile:
    """Open a numpy array file of real numbers, [*S], [N, *S] or [N, 1, *S] with so many axes S. Raises `DataError`."""
    check_file(path)
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a damaged header is evaluated as Python, and can fail in any way that can
        raise DataError(
            f"{path} is not a readable .npy file of numbers: {said(error)}; "
            "save one plain array with numpy.save, or copy it again"
        ) from error
    if array.dtype.kind not in "biuf":
        raise DataError(f"{path} holds values of type {array.dtype}; wanted real numbers, such as float32")
    count, shape = _stack_shape(path, array.shape, axes)
    return ImageFile(path, count, shape, None, lambda: _array_reader(array.reshape(count, *shape)))


# ----------------------------------------------------------------------------------------------------- torch


def open_pt(path: Path) -> ImageFile:
    """Open a torch file that holds one real tensor [H, W], [N, H, W] or [N, 1, H, W]. Raises `DataError`."""
    import torch

    check_file(path)
    tensor = _load_tensor(path)
    if tensor.is_complex() or tensor.is_quantized or tensor.layout != torch.strided:
        raise DataError(f"{path} holds a {tensor.dtype} tensor ({tensor.layout}); wanted real numbers, such as float32")
    count, shape = _stack_shape(path, tuple(tensor.shape))
    stack = tensor.detach().reshape(count, *shape)

    def read(first: int, out: np.ndarray) -> None:
        torch.from_numpy(out).copy_(stack[first : first + len(out)])

    return ImageFile(path, count, shape, None, lambda: read)


def _load_tensor(path: Path) -> Any:
    """The tensor of a torch file, mapped rather than read where the file allows it."""
    import pickle

    import torch

    zipped = zipfile.is_zipfile(path)  # torch < 1.6 wrote plain pickles, which cannot be mapped
    with path.open("rb") as file:
        begins_zipped = file.read(4) == b"PK\x03\x04"
    if begins_zipped and not zipped:
        raise DataError(f"{path} is truncated: a torch file without its end; copy or download it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about torch's own storage classes: nothing a user could act on
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path} holds pickled Python objects, which could run code and are refused, or is not a torch file; "
            "wanted one tensor, saved with torch.save(tensor, path)"
        ) from error
    except Exception as error:  # the many ways in which torch meets a file that is not its own
        reason = type(error).__name__
        raise DataError(f"{path} is not a readable torch file ({reason}); save the tensor again") from error
    if not isinstance(loaded, torch.Tensor):
        kind = type(loaded).__name__
        raise DataError(f"{path} holds a {kind}; wanted one tensor, saved with torch.save(tensor, path)")
    return loaded


# ---------------------------------------------------------------------------------------------------- shapes


def _stack_shape(path: Path, shape: tuple[int, ...], axes: int = 2) -> tuple[int, Shape]:
    """(number of images, image shape) of an array of this shape, where an image has so many axes."""
    said = f"[{', '.join(map(str, shape))}]"
    if len(shape) == axes + 2 and shape[1] == 1:
        shape = (shape[0], *shape[2:])
    if len(shape) not in (axes, axes + 1):
        volumes = f"; for volumes give --data volume:{path}" if axes == 2 and len(shape) == 4 else ""
        raise DataError(f"{path} holds an array of shape {said}; {_WANTED[axes]}{volumes}")
    if min(shape) < 1:
        raise DataError(f"{path} holds no pixels: its shape is {said}; {_WANTED[axes]}")
    return math.prod(shape[:-axes]), shape[-axes:]


def _array_reader(array: np.ndarray) -> ReadImages:
    """Read copies of images from a mapped [N, H, W]."""

    def read(first: int, out: np.ndarray) -> None:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf, which the stack refuses by name
            out[...] = array[first : first + len(out)]

    return read
