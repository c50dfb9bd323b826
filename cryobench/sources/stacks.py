"""The source `file`: images of a file in any format of `cryobench.io.formats`.

Opening reads only headers, and reading an image reads only the bytes of that image. Of a table's stacks, only those of
images that are used are searched and opened.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np

from cryobench.core.operator import Shape
from cryobench.core.source import Source, Stack, size_text
from cryobench.errors import DataError, DataWarning, ParameterError
from cryobench.io.formats import FORMATS, FileImages, open_images
from cryobench.io.fourier_crop import fourier_resize, square_crop
from cryobench.io.image_files import ImageFile, ReadImages, files_of
from cryobench.io.open_files import OpenFiles
from cryobench.io.streaming import CHUNK_BYTES, Chunk, stream
from cryobench.limits import check_memory
from cryobench.text import not_finite

if TYPE_CHECKING:
    import pandas as pd

_BYTES_PER_PIXEL = 48
"""Peak memory in bytes when an image is resampled, for each pixel stored and resampled: two complex128 spectra and
their copies."""
_PIECE_BYTES = 1 << 20
"""Bytes read in one request, small enough to be checked and resized in the processor's cache."""
_SAME_PIXEL_SIZE = 0.01
"""Relative difference between the pixel sizes of a table and of a header above which there is a warning."""


@dataclass(frozen=True)
class File(Source):
    """Images of an MRC, star, CryoSPARC, numpy or torch file, optionally resized and inverted."""

    path: Annotated[str, f"image file: {', '.join(FORMATS)}"]
    data_root: Annotated[str | None, "folder that is searched first for the stacks of a .star or .cs file"] = None
    as_stack: Annotated[bool, "read the sections of an MRC volume as images"] = False
    size: Annotated[
        int | None, "crop images to a square and resample them in Fourier space to this many pixels a side"
    ] = None
    invert: Annotated[bool, "multiply by -1: contrast inversion"] = False

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ParameterError(f"file: size must be at least 1 pixel, got {self.size}")

    def open(self) -> FileStack:
        """Open the file by its headers. Raises `DataError` for a file that cannot be read as images."""
        path = Path(self.path).expanduser()
        images = open_images(path, as_stack=self.as_stack, data_root=self.data_root)
        return FileStack(path.name, images, path, size=self.size, invert=self.invert)


class FileStack(Stack):
    """Images of one or more files.

    path: of the file that was opened, which may be a table of stacks; None if there is none. size: pixels a side to
    resample 2-D images to (`fourier_resize`), fewer or more than stored. invert: multiply by -1.
    """

    def __init__(
        self, label: str, images: FileImages, path: Path | None = None, *, size: int | None = None, invert: bool = False
    ):
        self.label, self._images, self._path = label, images, path
        self._file_of, self._page = images.file_of, images.page
        self._size, self._invert = size, invert
        self._first: ImageFile | None = None
        self._warned = False
        self._readers: OpenFiles[ReadImages] = OpenFiles(lambda file: file.open())

    @property
    def shape(self) -> Shape:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The shape of an image as returned by `read`: that of the first file used, else of the first that opens.

        Raises `DataError` if no file opens, and for a size with images that are not 2-D.
        """
        stored = self._stored()
        shape = stored if self._size is None else (self._size, self._size)
        size = "" if self._size is None else f" at size={self._size}"
        what = f"an image of {size_text(stored)} pixels of {self.label}{size}"
        needed = _BYTES_PER_PIXEL * (math.prod(stored) + math.prod(shape))
        check_memory(what, needed, "give a smaller size, or other images", DataError)
        return shape

    def __len__(self) -> int:
        return len(self._page)

    def read(self, index: int) -> np.ndarray:
        """Image `index`, float32 in the units of the file. Raises `DataError` if it is not finite."""
        return self.read_block([index])[0]

    def read_block(self, images: Sequence[int]) -> np.ndarray:
        """These images in this order, float32 [n, *shape]; neighbours in a file are read in one request of up to 1 MiB.

        Raises `DataError` for a stack that is missing or has images of another shape, for an image that is not in its
        stack, and for the first image that is not finite.
        """
        for index in images:
            self.check(index)
        chosen = np.asarray(images, dtype=np.int64)
        self._check_files(chosen)
        block = np.empty((len(chosen), *self.shape), np.float32)
        longest = max(1, _PIECE_BYTES // (4 * math.prod(self._stored())))
        for start, stop in _runs(self._file_of[chosen], self._page[chosen], longest):
            self._fill(block[start:stop], chosen[start:stop])
        return block

    def stream(self, images: Sequence[int] | None = None, *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
        """All images, or these, in chunks read in advance: see `cryobench.io.streaming.stream`."""
        return stream(self, images, chunk_bytes=chunk_bytes)

    def pixel_size(self, index: int) -> float | None:
        """Å per pixel of the image as returned by `read`, or None if neither table nor header states it."""
        stored = self.stored_pixel_size(index)
        return stored if stored is None or self._size is None else stored * min(self._stored()) / self._size

    def stored_pixel_size(self, index: int) -> float | None:
        """Å per pixel of the image in its file, before it is resized."""
        self.check(index)
        if self._images.pixel_sizes is not None:
            return float(self._images.pixel_sizes[index])
        return self._images.file(int(self._file_of[index])).pixel_size

    @property
    def path(self) -> Path | None:
        """The file that was opened, which may be a table of stacks."""
        return self._path

    @property
    def signs(self) -> np.ndarray | None:
        """1 or -1 [n], by which the pixels in the files are multiplied; None for 1."""
        return self._images.signs

    def place(self, index: int) -> tuple[ImageFile, int]:
        """The file of image `index` and its number there, from 0. Raises `DataError` if it is not found."""
        self.check(index)
        return self._images.file(int(self._file_of[index])), int(self._page[index])

    @property
    def table(self) -> pd.DataFrame | None:
        """The metadata of a .star or .cs file in RELION's columns, a row per image; None for other files.

        Its pixel sizes and lengths in pixels are those of the stored images; `pixel_size` is that of images as read.
        """
        return self._images.table

    def rows(self, images: Sequence[int]) -> pd.DataFrame | None:
        """The rows of these images; with the pixel sizes of the files' headers, for lengths in pixels, if the table has
        none and all of these files have one."""
        rows = super().rows(images)
        if rows is None or self._images.pixel_sizes is not None:
            return rows
        headers = [self.stored_pixel_size(index) for index in images]
        return rows if None in headers else rows.assign(rlnImagePixelSize=headers)

    def files(self, images: Sequence[int]) -> list[Path] | None:
        """The file that was opened, and the stacks of these images."""
        if self._path is None:
            return None
        numbers = np.unique(self._file_of[list(images)]).tolist()
        found = files_of(self._images.file(number) for number in numbers)
        return None if found is None else list(dict.fromkeys([self._path, *found]))

    def _stored(self) -> Shape:
        """The shape of the images in the files."""
        if self._first is None:
            self._first = self._first_file()
        shape = self._first.shape
        if self._size is not None and len(shape) != 2:
            raise DataError(
                f"size={self._size} resamples 2-D images, but {self.label} has {size_text(shape)}; leave it out"
            )
        return shape

    def _first_file(self) -> ImageFile:
        """The first file that opens."""
        refusal = DataError(f"{self.label} lists no images")
        for position, number in enumerate(dict.fromkeys(self._file_of.tolist())):
            try:
                return self._images.file(number)
            except DataError as error:
                refusal = error if position == 0 else refusal
        raise refusal

    def _check_files(self, images: np.ndarray) -> None:
        """Open the files of these images by their headers, and compare these with each other and with the table."""
        numbers, file_of = np.unique(self._file_of[images], return_inverse=True)
        files = [self._images.file(number) for number in numbers.tolist()]
        for file in files:
            self._first = self._first or file
            if file.shape != self._first.shape:
                raise DataError(
                    f"{self._first.path} has images of {size_text(self._first.shape)} and {file.path} of "
                    f"{size_text(file.shape)} pixels; expected one shape: split the list of particles"
                )
        page, count = self._page[images], np.array([file.count for file in files], dtype=np.int64)[file_of]
        absent = (page < 0) | (page >= count)
        if absent.any():
            row = int(np.argmax(absent))
            path = files[file_of[row]].path
            raise DataError(
                f"{self.label}: row {images[row] + 1} names image {page[row] + 1} of {path}, which has {count[row]}, "
                "counted from 1; give the stack that belongs to this file"
            )
        if self._images.pixel_sizes is not None and not self._warned:
            stated = self._images.pixel_sizes[images]
            header = np.array([file.pixel_size for file in files], dtype=np.float64)[file_of]  # NaN if unknown
            differs = np.abs(header / stated - 1) > _SAME_PIXEL_SIZE
            if differs.any():
                self._warned, row = True, int(np.argmax(differs))
                message = (
                    f"{self.label} states {stated[row]:.4g} Å per pixel, the header of {files[file_of[row]].path} "
                    f"{header[row]:.4g}; using the table: correct it if the header is right"
                )
                warnings.warn(DataWarning(message), stacklevel=2)

    def _fill(self, out: np.ndarray, images: np.ndarray) -> None:
        """Read consecutive images of one file into out, float32 [n, *shape]."""
        stored = out if self._size is None else np.empty((len(out), *self._stored()), np.float32)
        number = int(self._file_of[images[0]])
        self._readers.reader(number, lambda: self._images.file(number))(int(self._page[images[0]]), stored)
        self._check_finite(stored, images)
        if self._size is not None:
            for resized, image in zip(out, stored, strict=True):
                resized[...] = fourier_resize(square_crop(image), self._size)
        if self._images.signs is not None:
            out *= self._images.signs[images].astype(np.float32)[:, None, None]
        if self._invert:
            np.negative(out, out=out)

    def _check_finite(self, block: np.ndarray, images: np.ndarray) -> None:
        finite = np.isfinite(block)
        if finite.all():
            return
        row = int(np.argmin(finite.reshape(len(block), -1).all(axis=1)))
        raise DataError(
            f"image {images[row]} of {self.label} has {not_finite(int(np.sum(~finite[row])))}; "
            f"leave it out with --images{self._where(images[row])}"
        )

    def _where(self, index: int) -> str:
        """For a table, the stack of the image."""
        file = self._images.file(int(self._file_of[index]))
        return "" if file.path.name == self.label else f" (it is {self._page[index] + 1}@{file.path})"


def _runs(file_of: np.ndarray, page: np.ndarray, longest: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the parts of a list that are consecutive images of one file, at most `longest` each."""
    follows = (np.diff(file_of) == 0) & (np.diff(page) == 1)
    edges = [0, *(np.flatnonzero(~follows) + 1).tolist(), len(page)]
    for start, stop in pairwise(edges):
        for first in range(start, stop, longest):
            yield first, min(first + longest, stop)
