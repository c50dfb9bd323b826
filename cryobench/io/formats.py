"""The table of file formats: how the images of each are read, and how `convert` writes them.

A new format is one entry of `FORMATS`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cryobench.core import Stack
from cryobench.errors import DataError
from cryobench.io.cryosparc import read_cs
from cryobench.io.image_files import COMPRESSIONS, ImageFile, check_file, open_mrc, open_npy, open_pt
from cryobench.io.particles import Particles
from cryobench.io.star import read_star
from cryobench.io.tiff import open_tiff, write_tiff
from cryobench.io.writing import write_npy, write_particles
from cryobench.io.zarr_files import open_zarr, write_zarr

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class FileImages:
    """The n images of one or more files: image k is number `page[k]` (0-based) of `file(file_of[k])`.

    file: finds and opens a file by its header when it is first used; raises `DataError`. pixel_sizes: Å per pixel as
    stored [n]; None: those in the headers of the files. table: a row per image, or None. signs: 1 or -1 [n], by which
    the pixels are multiplied; None for 1.
    """

    file: Callable[[int], ImageFile]
    file_of: np.ndarray
    page: np.ndarray
    pixel_sizes: np.ndarray | None = None
    table: pd.DataFrame | None = None
    signs: np.ndarray | None = None

    @staticmethod
    def from_file(file: ImageFile) -> FileImages:
        """All images of one file."""
        numbers = np.arange(file.count)
        return FileImages(lambda _: file, np.zeros_like(numbers), numbers)


@dataclass(frozen=True)
class Format:
    """A file format.

    read(path, as_stack, data_root) opens a file by its headers, with the parameters of the source `file`.
    write(files, path, chunks, stack, numbers) writes chunks [n, *shape], the images `numbers` of a stack, to files that
    will be moved to `path` and to its companions; None: read only. companions: the suffixes of further files. folder:
    whether it is a folder, without companions.
    """

    read: Callable[[Path, bool, str | None], FileImages]
    write: Callable[[Sequence[Path], Path, Iterator[np.ndarray], Stack, Sequence[int]], None] | None = None
    companions: tuple[str, ...] = ()
    folder: bool = False


def _read_mrc(path: Path, as_stack: bool, data_root: str | None) -> FileImages:
    return FileImages.from_file(open_mrc(path, as_stack=as_stack))


def _read_mrcs(path: Path, as_stack: bool, data_root: str | None) -> FileImages:
    return FileImages.from_file(open_mrc(path, as_stack=True))


FORMATS: dict[str, Format] = {
    ".mrc": Format(_read_mrc),
    ".map": Format(_read_mrc),
    ".mrcs": Format(_read_mrcs, write_particles, companions=(".star",)),
    **{f".mrc{packed}": Format(_read_mrc) for packed in COMPRESSIONS},
    **{f".map{packed}": Format(_read_mrc) for packed in COMPRESSIONS},
    **{f".mrcs{packed}": Format(_read_mrcs) for packed in COMPRESSIONS},
    ".star": Format(lambda path, as_stack, data_root: _listed(read_star(path, data_root))),
    ".cs": Format(lambda path, as_stack, data_root: _listed(read_cs(path, data_root))),
    ".npy": Format(lambda path, as_stack, data_root: FileImages.from_file(open_npy(path)), write_npy),
    **dict.fromkeys(
        (".tif", ".tiff"),
        Format(lambda path, as_stack, data_root: FileImages.from_file(open_tiff(path)), write_tiff),
    ),
    ".zarr": Format(lambda path, as_stack, data_root: FileImages.from_file(open_zarr(path)), write_zarr, folder=True),
    ".pt": Format(lambda path, as_stack, data_root: FileImages.from_file(open_pt(path))),
}
"""The file formats by suffix; if several match a name, the longest is used."""


def open_images(path: Path, *, as_stack: bool = False, data_root: str | None = None) -> FileImages:
    """Open a file by its headers. Raises `DataError` for an unknown suffix and for a file that cannot be read.

    as_stack: read the sections of an MRC volume as images. data_root: the first folder in which the stacks of a table
    are searched.
    """
    matching = [suffix for suffix in FORMATS if path.name.lower().endswith(suffix)]
    if not matching:
        if path.is_dir():
            check_file(path)
        raise DataError(f"{path} has the unknown suffix {path.suffix!r}; expected {', '.join(FORMATS)}")
    return FORMATS[max(matching, key=len)].read(path, as_stack, data_root)


def _listed(particles: Particles) -> FileImages:
    """The images that a table lists; its stacks are MRC files."""

    @functools.cache
    def file(number: int) -> ImageFile:
        return open_mrc(particles.stacks.find(number), as_stack=True)

    return FileImages(file, particles.stack_of, particles.page, particles.pixel_sizes, particles.table, particles.signs)
