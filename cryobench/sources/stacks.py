"""Images from files: MRC volumes and stacks, RELION and CryoSPARC tables, numpy arrays and torch tensors.

Opening reads headers alone, and reading an image reads its bytes and no others. `FileStack.stream` goes through many.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Annotated

import numpy as np

from cryobench.core import Shape, Source, Stack
from cryobench.errors import DataError, ParameterError
from cryobench.io.cryosparc import read_cs
from cryobench.io.formats import PACKED, ImageFile, ReadImages, changed, check_file, open_mrc, open_npy, open_pt
from cryobench.io.fourier_crop import fourier_resize, square_crop
from cryobench.io.particles import Particles
from cryobench.io.star import read_star
from cryobench.io.streaming import CHUNK_BYTES, Chunk, stream

if TYPE_CHECKING:
    import pandas as pd

TABLES = {".star": read_star, ".cs": read_cs}
SUFFIXES = (".mrc", ".mrcs", *TABLES, ".pt", ".npy")
MAX_OPEN = 8
"""Stacks kept open at a time: a table may name thousands, and a process may only open so many."""
_PIECE_BYTES = 1 << 20
"""What is read in one request: small enough that it is checked and resized while it is in the processor's cache."""


@dataclass(frozen=True)
class File(Source):
    """Images of a .mrc, .mrcs, .star, .cs, .npy or .pt file, as they are, or resized and inverted on request."""

    path: Annotated[str, "image file: .mrc, .mrcs (also .gz or .bz2), .star, .cs, .npy or .pt"]
    data_root: Annotated[str | None, "folder in which the stacks of a .star or .cs file are looked for first"] = None
    as_stack: Annotated[bool, "take the sections of an MRC volume as images"] = False
    size: Annotated[
        int | None, "resample images to this many pixels a side in Fourier space, cutting them square first"
    ] = None
    invert: Annotated[bool, "multiply by -1: contrast inversion"] = False

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ParameterError(f"file: size must be at least 1 pixel, got {self.size}")

    def open(self) -> FileStack:
        """Open by headers alone. Raises `DataError`, in one line, for whatever cannot be read as images."""
        path = Path(self.path).expanduser()
        if path.suffix.lower() in TABLES:
            return _open_table(path, self)
        file = _open_file(path, self.as_stack)
        numbers = np.arange(file.count)
        return FileStack(path.name, [file], np.zeros_like(numbers), numbers, size=self.size, invert=self.invert)


class FileStack(Stack):
    """Images of one or more files: image k is number `page[k]` (0-based) of `files[file_of[k]]`.

    size: pixels a side to resample to (`fourier_resize`), fewer than stored or more. invert: multiply by -1.
    pixel_sizes: Å per pixel as stored [n], before `size`; None leaves it to the files' headers. table: a row per
    image. Raises `DataError` where the files differ in image shape.
    """

    def __init__(
        self,
        label: str,
        files: list[ImageFile],
        file_of: np.ndarray,
        page: np.ndarray,
        *,
        size: int | None = None,
        invert: bool = False,
        pixel_sizes: np.ndarray | None = None,
        table: pd.DataFrame | None = None,
    ):
        self.label = label
        self._files, self._file_of, self._page = files, file_of, page
        self._size, self._invert, self._pixel_sizes, self._table = size, invert, pixel_sizes, table
        self._open: OrderedDict[int, ReadImages] = OrderedDict()
        self._opening = Lock()
        self._stored: Shape = _common_shape(files)
        self.shape: Shape = self._stored if size is None else (size, size)

    def __len__(self) -> int:
        return len(self._page)

    def read(self, index: int) -> np.ndarray:
        """Image `index` as float32 [H, W] in the file's units. Raises `DataError` where it is not finite."""
        return self.read_block([index])[0]

    def read_block(self, images: Sequence[int]) -> np.ndarray:
        """These images in this order, float32 [n, H, W]; neighbours in a file are read together, up to 1 MiB a request.

        Raises `DataError` for the first that is not finite.
        """
        for index in images:
            self.check(index)
        chosen = np.asarray(images, dtype=np.int64)
        block = np.empty((len(chosen), *self.shape), np.float32)
        longest = max(1, _PIECE_BYTES // (4 * math.prod(self._stored)))
        for start, stop in _runs(self._file_of[chosen], self._page[chosen], longest):
            self._fill(block[start:stop], chosen[start:stop])
        return block

    def stream(self, images: Sequence[int] | None = None, *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
        """Go through all images, or these, in chunks read in advance: see `cryobench.io.streaming.stream`."""
        return stream(self, images, chunk_bytes=chunk_bytes)

    def pixel_size(self, index: int) -> float | None:
        """Ångström per pixel of the image that `read` gives, or None where neither table nor header says."""
        stored = self.stored_pixel_size(index)
        return stored if stored is None or self._size is None else stored * min(self._stored) / self._size

    def stored_pixel_size(self, index: int) -> float | None:
        """Ångström per pixel of the image in its file, before it is resized."""
        self.check(index)
        if self._pixel_sizes is not None:
            return float(self._pixel_sizes[index])
        return self._files[int(self._file_of[index])].pixel_size

    @property
    def table(self) -> pd.DataFrame | None:
        """All that a .star or .cs file says of its images, in RELION's columns, a row per image; None for other files.

        Pixel sizes in it, and lengths in pixels, are those of the stored images; `pixel_size` is that of the images
        as read.
        """
        return self._table

    def _fill(self, out: np.ndarray, images: np.ndarray) -> None:
        """Read images that follow each other in one file into out, float32 [n, H, W]."""
        stored = out if self._size is None else np.empty((len(out), *self._stored), np.float32)
        self._reader(int(self._file_of[images[0]]))(int(self._page[images[0]]), stored)
        self._check_finite(stored, images)
        if self._size is not None:
            for resized, image in zip(out, stored, strict=True):
                resized[...] = fourier_resize(square_crop(image), self._size)
        if self._invert:
            np.negative(out, out=out)

    def _check_finite(self, block: np.ndarray, images: np.ndarray) -> None:
        finite = np.isfinite(block)
        if finite.all():
            return
        row = int(np.argmin(finite.all(axis=(1, 2))))
        raise DataError(
            f"image {images[row]} of {self.label} holds {np.sum(~finite[row])} values that are not finite (NaN or "
            f"infinite); leave it out with --images{self._where(images[row])}"
        )

    def _reader(self, number: int) -> ReadImages:
        """What reads from file `number`; the least recently used is let go, and closes when its last use has ended."""
        with self._opening:
            if number not in self._open:
                try:
                    self._open[number] = self._files[number].open()
                except (OSError, ValueError) as error:  # gone since its header was read
                    raise changed(self._files[number].path) from error
            self._open.move_to_end(number)
            while len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
            return self._open[number]

    def _where(self, index: int) -> str:
        """For a table, the stack the image comes from."""
        file = self._files[int(self._file_of[index])]
        return "" if file.path.name == self.label else f" (it is {self._page[index] + 1}@{file.path})"


def _open_file(path: Path, as_stack: bool) -> ImageFile:
    suffix = path.suffix.lower()
    inner = Path(path.stem).suffix.lower() if suffix in PACKED else suffix
    if inner in (".mrc", ".mrcs"):
        return open_mrc(path, as_stack=as_stack or inner == ".mrcs")
    if suffix == ".npy":
        return open_npy(path)
    if suffix == ".pt":
        return open_pt(path)
    if path.is_dir():
        check_file(path)
    raise DataError(
        f"{path} has the unknown suffix {path.suffix!r}; known are {', '.join(SUFFIXES)}, MRC files also as .gz or .bz2"
    )


def _open_table(path: Path, source: File) -> FileStack:
    particles = TABLES[path.suffix.lower()](path, source.data_root)
    files = [open_mrc(stack, as_stack=True) for stack in particles.stacks]
    _check_pages(path, particles, files)
    return FileStack(
        path.name,
        files,
        particles.stack_of,
        particles.page,
        size=source.size,
        invert=source.invert,
        pixel_sizes=particles.pixel_sizes,
        table=_with_pixel_sizes(particles, files),
    )


def _with_pixel_sizes(particles: Particles, files: list[ImageFile]) -> pd.DataFrame | None:
    """The table, with the pixel sizes of the files' headers where it states none: its lengths in pixels need them."""
    headers = [files[number].pixel_size for number in particles.stack_of]
    if particles.table is None or particles.pixel_sizes is not None or None in headers:
        return particles.table
    return particles.table.assign(rlnImagePixelSize=headers)


def _check_pages(path: Path, particles: Particles, files: list[ImageFile]) -> None:
    counts = np.array([file.count for file in files])[particles.stack_of]
    absent = (particles.page < 0) | (particles.page >= counts)
    if absent.any():
        row = int(np.argmax(absent))
        raise DataError(
            f"{path}: row {row + 1} asks for image {particles.page[row] + 1} of {files[particles.stack_of[row]].path}, "
            f"which has {counts[row]}, counted from 1; give the stack this file was written for"
        )


def _runs(file_of: np.ndarray, page: np.ndarray, longest: int) -> Iterator[tuple[int, int]]:
    """Where to cut a list of images so that those of a part follow each other in one file: (start, stop) of each."""
    follows = (np.diff(file_of) == 0) & (np.diff(page) == 1)
    edges = [0, *(np.flatnonzero(~follows) + 1).tolist(), len(page)]
    for start, stop in pairwise(edges):
        for first in range(start, stop, longest):
            yield first, min(first + longest, stop)


def _common_shape(files: list[ImageFile]) -> Shape:
    first = files[0]
    for file in files:
        if file.shape != first.shape:
            raise DataError(
                f"{first.path} has images of {first.shape[0]} x {first.shape[1]} and {file.path} of "
                f"{file.shape[0]} x {file.shape[1]} pixels; wanted one shape, so split the list of particles"
            )
    return first.shape
