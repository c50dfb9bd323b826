"""TIFF files as movies, one frame a page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cryobench.io.image_files import check_file
from cryobench.io.movies.movie import Movie
from cryobench.io.tiff import gray_pages, pixel_size, reading, tifffile


class TiffMovie(Movie):
    """The pages of a TIFF file as frames, of the type that is stored. Raises `DataError`, `DependencyError`."""

    def __init__(self, path: Path):
        check_file(path, "TIFF file")
        library = tifffile(path)
        with reading(path), library.TiffFile(path) as file:
            self.frames, self.shape = gray_pages(path, file, "frame")
            self.pixel_size = pixel_size(file.pages[0])
        self.path = path

    def read(self) -> Iterator[np.ndarray]:
        with tifffile(self.path).TiffFile(self.path) as file:
            for number in range(self.frames):
                with reading(self.path):
                    frame = file.pages[number].asarray()
                yield frame
