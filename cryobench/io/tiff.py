"""TIFF files: stacks of pages as images or as the sections of a volume, plain, BigTIFF and OME-TIFF."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np

from cryobench.core import Stack, Window
from cryobench.core.source import size_text
from cryobench.errors import DataError, DependencyError, described, reason_of
from cryobench.io.image_files import ImageFile, ReadImages, Voxel, check_file
from cryobench.io.writing import sections_shape

_CENTIMETRE = 3
_ANGSTROM_PER_CENTIMETRE = 1e8
PLAUSIBLE = (0.05, 1000.0)
"""Å per pixel: programs without a pixel size write resolutions such as 1 or 72."""
ANGSTROM = {
    **dict.fromkeys(("µm", "um", "micron", "microns", "micrometer", "\\u00B5m"), 1e4),
    **dict.fromkeys(("nm", "nanometer"), 10.0),
    **dict.fromkeys(("Å", "A", "angstrom"), 1.0),
    **dict.fromkeys(("mm", "millimeter"), 1e7),
}
"""Å in the units of length of OME and ImageJ."""
_BIG = 2**32 - 2**25
"""Bytes of pixels above which a file is BigTIFF."""


def tifffile(path: Path) -> ModuleType:
    """The module that reads TIFF and EER files. Raises `DependencyError`, which names the file, without it."""
    try:
        import imagecodecs  # noqa: F401 - tifffile imports it when a page is decoded
        import tifffile
    except ImportError as error:
        raise DependencyError(f"{path}: TIFF and EER files need tifffile and imagecodecs: pip install "
                              "'cryobench[movies]'") from error  # fmt: skip
    return tifffile


class _Complaints(logging.Handler):
    """Collects what tifffile logs instead of raising."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """A block that reads a TIFF file. Raises `DataError` for what tifffile raises, or logs, of a damaged file."""
    logger, complaints = logging.getLogger("tifffile"), _Complaints()
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(complaints)
    try:
        yield
    except (DataError, DependencyError):
        raise
    except MemoryError as error:
        raise DataError(f"{path} is damaged: it states pages that do not fit in memory; copy it again") from error
    except Exception as error:  # tifffile and its decoders raise many kinds
        raise DataError(f"{path} is damaged or truncated: {described(error)}; copy or download it again") from error
    finally:
        logger.removeHandler(complaints)
        logger.propagate = propagate
    if complaints.messages:
        message = reason_of(ValueError(complaints.messages[0]))
        raise DataError(f"{path} is damaged or truncated: {message}; copy or download it again")


def check_whole(path: Path, pages: Sequence[Any]) -> None:
    """Raise `DataError` unless the pixels of all pages lie within the file."""
    size = path.stat().st_size
    for number, page in enumerate(pages):
        ends = [offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if ends and max(ends) > size:
            raise DataError(f"{path} is truncated: page {number + 1} ends at byte {max(ends)}, the file has {size}; "
                            "copy or download it again")  # fmt: skip


def gray_image(path: Path, page: Any) -> tuple[int, int]:
    """Height and width of a page. Raises `DataError` unless it is an image of real numbers."""
    palette = page.photometric is not None and int(page.photometric) == 3
    if palette or len(page.shape) != 2 or page.dtype is None or page.dtype.kind not in "biuf" or min(page.shape) < 1:
        of = "a palette of colours" if palette else f"pages of shape {tuple(page.shape)} and type {page.dtype}"
        raise DataError(f"{path} has {of}; expected a real number for each pixel: write it without colours")
    return int(page.shape[0]), int(page.shape[1])


def gray_pages(path: Path, file: Any, what: str) -> tuple[int, tuple[int, int]]:
    """The number of pages of an open file and their shape. what: a page in messages. Raises `DataError`."""
    pages = list(file.pages)
    if not pages:
        raise DataError(f"{path} is damaged or truncated: it has no pages; copy or download it again")
    check_whole(path, pages)
    shapes = [gray_image(path, page) for page in pages]
    for number, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise DataError(f"{path}: {what} {number + 1} has {size_text(shape)} pixels, the first "
                            f"{size_text(shapes[0])}; expected {what}s of one shape")  # fmt: skip
    return len(pages), shapes[0]


# ----------------------------------------------------------------------------------------------------- reading


def open_tiff(path: Path, *, axes: int = 2) -> ImageFile:
    """Open a TIFF by its headers: its pages as images, or with axes=3 as the sections of one volume.

    Any type of real numbers, compressed or not, BigTIFF and OME-TIFF too. A window of a volume reads the pages that it
    is in. Raises `DataError` for colours, pages of different shapes and a damaged file; `DependencyError` without
    tifffile.
    """
    check_file(path, "TIFF file")
    library = tifffile(path)
    with reading(path), library.TiffFile(path) as file:
        count, shape = gray_pages(path, file, "page")
        stored = (file.imagej_metadata or {}).get("images", 1) if file.is_imagej else 1
        if count == 1 and stored > 1:
            raise DataError(
                f"{path} has {stored} images and one page, as ImageJ writes large stacks; save it as BigTIFF"
            )
        voxel = _voxel(file)
    if axes == 2:
        return ImageFile(path, count, shape, voxel[2], lambda: _PageReader(path))

    def open_volume() -> ReadImages:
        read = _PageReader(path)
        return lambda first, out: read(0, out[0])

    return ImageFile(path, 1, (count, *shape), voxel[2], open_volume, windows=lambda: _PageReader(path).window,
                     voxel=voxel)  # fmt: skip


class _PageReader:
    """Reads consecutive pages of an open file; threads may share it."""

    def __init__(self, path: Path):
        self._path, self._lock = path, threading.Lock()
        with reading(path):
            self._file = tifffile(path).TiffFile(path)
        weakref.finalize(self, self._file.close)

    def __call__(self, first: int, out: np.ndarray) -> None:
        with self._lock, reading(self._path):
            for number, image in enumerate(out):
                image[...] = self._file.pages[first + number].asarray()

    def window(self, number: int, window: Window, out: np.ndarray) -> None:
        """Read a window of the volume of all pages."""
        sections, rows, columns = window
        with self._lock, reading(self._path):
            for page, image in zip(range(sections.start, sections.stop), out, strict=True):
                image[...] = self._file.pages[page].asarray()[rows, columns]


def open_tiff_image(path: Path) -> ImageFile:
    """Open a TIFF of one image by its header. Raises `DataError` for several pages and as `open_tiff` does."""
    file = open_tiff(path)
    if file.count != 1:
        raise DataError(f"{path} has {file.count} pages; expected one image in a file: split it")
    return file


def read_tiff_image(path: Path) -> np.ndarray:
    """The first page of a TIFF file, [H, W]. Raises `DataError`, `DependencyError`."""
    check_file(path, "TIFF file")
    library = tifffile(path)
    with reading(path), library.TiffFile(path) as file:
        page = file.pages[0]
        check_whole(path, [page])
        gray_image(path, page)
        return page.asarray()


def _voxel(file: Any) -> Voxel:
    """Å per voxel along z, y and x of an open file, by OME's or ImageJ's metadata or the resolution of the first page;
    None where it is not stated."""
    if file.is_ome:
        pixels = ElementTree.fromstring(file.ome_metadata).find(".//{*}Pixels")
        if pixels is None:
            return None, None, None
        z, y, x = ((pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "ZYX")
        return _length(*z), _length(*y), _length(*x)
    page = file.pages[0]
    if file.is_imagej and (unit := (file.imagej_metadata or {}).get("unit")) in ANGSTROM:
        spacing = file.imagej_metadata.get("spacing")
        z = None if spacing is None else float(spacing) * ANGSTROM[unit]
        sides = (page.tags.valueof(f"{axis}Resolution") for axis in "YX")
        y, x = (ANGSTROM[unit] * side[1] / side[0] if side and all(side) else None for side in sides)
        return z, y, x
    size = pixel_size(page)
    return None, size, size


def _length(value: str | None, unit: str) -> float | None:
    """A length of OME's metadata in Å, None if it is not stated in a known unit."""
    return None if value is None or unit not in ANGSTROM else float(value) * ANGSTROM[unit]


def pixel_size(page: Any) -> float | None:
    """Å per pixel by the resolution in pixels per centimetre, which SerialEM and IMOD write; None if implausible."""
    resolution = page.tags.valueof("XResolution")
    if page.tags.valueof("ResolutionUnit") != _CENTIMETRE or not resolution or not all(resolution):
        return None
    size = _ANGSTROM_PER_CENTIMETRE * resolution[1] / resolution[0]
    return float(size) if PLAUSIBLE[0] <= size <= PLAUSIBLE[1] else None


# ----------------------------------------------------------------------------------------------------- writing


def write_tiff(
    files: Sequence[Path], path: Path, chunks: Iterator[np.ndarray], stack: Stack, numbers: Sequence[int]
) -> None:
    """Write chunks [n, *shape] as the float32 pages of one TIFF, to files[0]: images, or the sections of one volume.

    The pixel size is its resolution, and for names that end in .ome.tif the voxel size its OME metadata too. More than
    4 GB are a BigTIFF. Raises `DataError` for several volumes, `DependencyError` without tifffile.
    """
    library = tifffile(path)
    volume = len(stack.shape) == 3
    shape = sections_shape(path, stack, numbers, "a TIFF")
    voxel = stack.voxel_size(numbers[0])
    metadata: dict[str, Any] | None = None
    if path.name.lower().endswith((".ome.tif", ".ome.tiff")):
        metadata = {"axes": "ZYX" if volume else "TYX"}
        for axis, size in zip("ZYX" if volume else "YX", voxel or (), strict=voxel is not None):
            metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "Å"}
    pages = (page for chunk in chunks for page in chunk.reshape(-1, *shape[1:]))
    big = 4 * int(np.prod(shape, dtype=np.int64)) > _BIG
    with library.TiffWriter(files[0], bigtiff=big, ome=metadata is not None) as writer:
        writer.write(pages, shape=shape, dtype=np.float32, photometric="minisblack", metadata=metadata,
                     **_resolution(voxel))  # fmt: skip


def write_tiff_image(file: Path, path: Path, image: np.ndarray, pixel_size: float | None) -> None:
    """Write an image [H, W] in its type to `file`, with its pixel size in Å, if known, as resolution. path: the place
    to which the file will be moved. Raises `DependencyError` without tifffile."""
    tifffile(path).imwrite(file, image, photometric="minisblack", metadata=None,
                           **_resolution(None if pixel_size is None else (pixel_size, pixel_size)))  # fmt: skip


def _resolution(voxel: Sequence[float] | None) -> dict[str, Any]:
    """The tags of the size of pixels in Å, of which the last two are along y and x."""
    if voxel is None:
        return {}
    resolution = tuple(_ANGSTROM_PER_CENTIMETRE / size for size in (voxel[-1], voxel[-2]))
    return {"resolution": resolution, "resolutionunit": _CENTIMETRE}
