"""Images from files: MRC volumes and stacks, RELION and CryoSPARC tables, numpy arrays and torch tensors.

Opening reads headers alone. Stacks are memory-mapped, and only the images asked for are read.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np

from cryobench.core import Shape, Source, Stack
from cryobench.errors import DataError, ParameterError, SelectionError
from cryobench.sources.cryosparc import read_cs
from cryobench.sources.formats import PACKED, ImageFile, ReadImage, check_file, open_mrc, open_npy, open_pt
from cryobench.sources.fourier_crop import fourier_crop, square_crop
from cryobench.sources.particles import Particles
from cryobench.sources.star import read_star

if TYPE_CHECKING:
    import pandas as pd

TABLES = {".star": read_star, ".cs": read_cs}
SUFFIXES = (".mrc", ".mrcs", *TABLES, ".pt", ".npy")
MAX_OPEN = 8
"""Stacks kept mapped at a time: a table may name thousands, and a process may only map so many."""


@dataclass(frozen=True)
class File(Source):
    """Images of a .mrc, .mrcs, .star, .cs, .npy or .pt file, as they are, or Fourier-cropped to `size` on request."""

    path: Annotated[str, "image file: .mrc, .mrcs (also .gz or .bz2), .star, .cs, .npy or .pt"]
    data_root: Annotated[str | None, "folder in which the stacks of a .star or .cs file are looked for first"] = None
    as_stack: Annotated[bool, "take the sections of an MRC volume as images"] = False
    size: Annotated[int | None, "Fourier-crop images to this many pixels a side, cutting them square first"] = None

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ParameterError(f"file: size must be at least 1 pixel, got {self.size}")

    def open(self) -> FileStack:
        """Open by headers alone. Raises `DataError`, in one line, for whatever cannot be read as images."""
        path = Path(self.path).expanduser()
        if path.suffix.lower() in TABLES:
            return _open_table(path, self.data_root, self.size)
        file = _open_file(path, self.as_stack)
        return FileStack(path.name, [file], np.zeros(file.count, int), np.arange(file.count), size=self.size)


class FileStack(Stack):
    """Images of one or more files: image k is number `page[k]` (0-based) of `files[file_of[k]]`.

    pixel_sizes: Å per pixel as stored [n], before `size`; None leaves it to the files' headers. ctf: a row per
    image. Raises `DataError` where the files differ in image shape or are smaller than `size`.
    """

    def __init__(
        self,
        label: str,
        files: list[ImageFile],
        file_of: np.ndarray,
        page: np.ndarray,
        *,
        size: int | None = None,
        pixel_sizes: np.ndarray | None = None,
        ctf: pd.DataFrame | None = None,
    ):
        self.label = label
        self._files, self._file_of, self._page = files, file_of, page
        self._size, self._pixel_sizes, self._ctf = size, pixel_sizes, ctf
        self._mapped: OrderedDict[int, ReadImage] = OrderedDict()
        stored = _common_shape(files)
        self._side = min(stored)
        if size is not None and size > self._side:
            raise DataError(
                f"{label} has images of {stored[0]} x {stored[1]} pixels, smaller than size={size}; "
                f"ask for at most {self._side}, or leave size out"
            )
        self.shape: Shape = stored if size is None else (size, size)

    def __len__(self) -> int:
        return len(self._page)

    def read(self, index: int) -> np.ndarray:
        """Image `index` as float32 [H, W] in the file's units. Raises `DataError` where it is not finite."""
        self._check(index)
        image = self._reader(int(self._file_of[index]))(int(self._page[index]))
        finite = np.isfinite(image)
        if not finite.all():
            raise DataError(
                f"image {index} of {self.label} holds {image.size - finite.sum()} values that are not finite (NaN or "
                f"infinite); leave it out with --images{self._where(index)}"
            )
        return image if self._size is None else fourier_crop(square_crop(image), self._size)

    def pixel_size(self, index: int) -> float | None:
        """Ångström per pixel of the image that `read` gives, or None where neither table nor header says."""
        self._check(index)
        stored = self._files[int(self._file_of[index])].pixel_size
        if self._pixel_sizes is not None:
            stored = float(self._pixel_sizes[index])
        return stored if stored is None or self._size is None else stored * self._side / self._size

    @property
    def table(self) -> pd.DataFrame | None:
        """The CTF of a .star or .cs file in RELION's columns, a row per image; None where no defocus is given.

        Pixel sizes in it are those of the stored images; `pixel_size` is that of the images as read.
        """
        return self._ctf

    def _reader(self, number: int) -> ReadImage:
        """What reads from file `number`; the least recently used maps are let go."""
        if number not in self._mapped:
            try:
                self._mapped[number] = self._files[number].open()
            except (OSError, ValueError) as error:  # gone, or cut, since its header was read
                raise DataError(f"{self._files[number].path} changed while it was in use; open it again") from error
        self._mapped.move_to_end(number)
        while len(self._mapped) > MAX_OPEN:
            self._mapped.popitem(last=False)
        return self._mapped[number]

    def _check(self, index: int) -> None:
        if not 0 <= index < len(self):
            raise SelectionError(f"image {index} of {self.label} does not exist; it has {len(self)}, from 0")

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


def _open_table(path: Path, data_root: str | None, size: int | None) -> FileStack:
    particles = TABLES[path.suffix.lower()](path, data_root)
    files = [open_mrc(stack, as_stack=True) for stack in particles.stacks]
    _check_pages(path, particles, files)
    return FileStack(
        path.name,
        files,
        particles.stack_of,
        particles.page,
        size=size,
        pixel_sizes=particles.pixel_sizes,
        ctf=particles.ctf,
    )


def _check_pages(path: Path, particles: Particles, files: list[ImageFile]) -> None:
    counts = np.array([file.count for file in files])[particles.stack_of]
    beyond = particles.page >= counts
    if beyond.any():
        row = int(np.argmax(beyond))
        raise DataError(
            f"{path}: row {row + 1} asks for image {particles.page[row] + 1} of {files[particles.stack_of[row]].path}, "
            f"which has {counts[row]}; give the stack this file was written for"
        )


def _common_shape(files: list[ImageFile]) -> Shape:
    first = files[0]
    for file in files:
        if file.shape != first.shape:
            raise DataError(
                f"{first.path} has images of {first.shape[0]} x {first.shape[1]} and {file.path} of "
                f"{file.shape[0]} x {file.shape[1]} pixels; wanted one shape, so split the list of particles"
            )
    return first.shape
