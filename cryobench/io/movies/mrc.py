"""MRC movies: modes 0, 1, 2, 6 and 12, and the packed 4-bit integers of mode 101."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cryobench.errors import DataError
from cryobench.io.image_files import COMPRESSIONS, changed, check_file, mrc_header, open_mrc
from cryobench.io.movies.movie import Movie


class MrcMovie(Movie):
    """The sections of an MRC file, plain or compressed, as frames of float32. Raises `DataError`."""

    def __init__(self, path: Path):
        self._file = open_mrc(path, as_stack=True)
        height, width = self._file.shape
        self.path, self.frames, self.shape = path, self._file.count, (height, width)
        self.pixel_size = self._file.pixel_size

    def read(self) -> Iterator[np.ndarray]:
        read = self._file.open()
        for number in range(self.frames):
            frame = np.empty((1, *self.shape), np.float32)
            read(number, frame)
            yield frame[0]


class PackedMovie(Movie):
    """The sections of an MRC file of mode 101 as frames of uint8.

    Two pixels share a byte, the first in its low 4 bits; a row of nx pixels has (nx + 1) // 2 bytes (IMOD,
    https://bio3d.colorado.edu/imod/doc/mrc_format.txt). Raises `DataError`.
    """

    def __init__(self, path: Path):
        header = mrc_header(path, packed=True)
        *sections, height, width = header.shape
        self.path, self.frames, self.shape = path, int(np.prod(sections)), (height, width)
        self.pixel_size = header.voxel[0]
        self._offset, self._row = header.offset, (width + 1) // 2
        size, expected = path.stat().st_size, header.offset + self.frames * height * self._row
        if size < expected:
            raise DataError(
                f"{path} is truncated: its header ({self.frames} frames of {height} x {width} pixels of 4 bits) "
                f"requires {expected} bytes, the file has {size}; copy or download it again"
            )

    def read(self) -> Iterator[np.ndarray]:
        height, width = self.shape
        with self.path.open("rb") as file:
            file.seek(self._offset)
            for _ in range(self.frames):
                packed = np.fromfile(file, np.uint8, height * self._row)
                if len(packed) < height * self._row:
                    raise changed(self.path)
                packed = packed.reshape(height, self._row)
                frame = np.empty(self.shape, np.uint8)
                frame[:, 0::2] = packed & 15
                frame[:, 1::2] = packed[:, : width // 2] >> 4
                yield frame


def open_mrc_movie(path: Path) -> Movie:
    """The movie in an MRC file."""
    check_file(path, "MRC file")
    packed = path.suffix.lower() not in COMPRESSIONS and mrc_header(path, packed=True).packed
    return PackedMovie(path) if packed else MrcMovie(path)
