"""TIFF files: movies of one frame a page, and single images such as gain references."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from cryobench.core.source import size_text
from cryobench.errors import DataError, DependencyError, described, reason_of
from cryobench.io.image_files import check_file
from cryobench.io.movies.movie import Movie

_CENTIMETRE = 3
_ANGSTROM_PER_CENTIMETRE = 1e8
_PLAUSIBLE = (0.05, 100.0)
"""Å per pixel: programs without a pixel size write resolutions such as 1 or 72."""


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
    if len(page.shape) != 2 or page.dtype is None or page.dtype.kind not in "biuf" or min(page.shape) < 1:
        raise DataError(f"{path} has pages of shape {tuple(page.shape)} and type {page.dtype}; expected a real number "
                        "for each pixel: write it without colours")  # fmt: skip
    return int(page.shape[0]), int(page.shape[1])


class TiffMovie(Movie):
    """The pages of a TIFF file as frames, of the type that is stored. Raises `DataError`, `DependencyError`."""

    def __init__(self, path: Path):
        check_file(path, "TIFF file")
        library = tifffile(path)
        with reading(path), library.TiffFile(path) as file:
            pages = list(file.pages)
            if not pages:
                raise DataError(f"{path} is damaged or truncated: it has no pages; copy or download it again")
            check_whole(path, pages)
            shapes = [gray_image(path, page) for page in pages]
            self.pixel_size = _pixel_size(pages[0])
        self.path, self.frames, self.shape = path, len(pages), shapes[0]
        for number, shape in enumerate(shapes):
            if shape != shapes[0]:
                raise DataError(f"{path}: frame {number + 1} has {size_text(shape)} pixels, the first "
                                f"{size_text(shapes[0])}; expected frames of one shape")  # fmt: skip

    def read(self) -> Iterator[np.ndarray]:
        with tifffile(self.path).TiffFile(self.path) as file:
            for number in range(self.frames):
                with reading(self.path):
                    frame = file.pages[number].asarray()
                yield frame


def read_tiff_image(path: Path) -> np.ndarray:
    """The first page of a TIFF file, [H, W]. Raises `DataError`, `DependencyError`."""
    check_file(path, "TIFF file")
    library = tifffile(path)
    with reading(path), library.TiffFile(path) as file:
        page = file.pages[0]
        check_whole(path, [page])
        gray_image(path, page)
        return page.asarray()


def _pixel_size(page: Any) -> float | None:
    """Å per pixel by the resolution in pixels per centimetre, which SerialEM and IMOD write; None if implausible."""
    resolution = page.tags.valueof("XResolution")
    if page.tags.valueof("ResolutionUnit") != _CENTIMETRE or not resolution or not all(resolution):
        return None
    size = _ANGSTROM_PER_CENTIMETRE * resolution[1] / resolution[0]
    return float(size) if _PLAUSIBLE[0] <= size <= _PLAUSIBLE[1] else None
