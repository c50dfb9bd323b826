"""EER movies: electron events of a Falcon detector, one hardware frame a page.

Source of the format: Guo et al. 2020, IUCrJ 7:860, and https://github.com/fei-company/EerReaderLib. Events are counted
at the physical pixels (4096 a side), not at their sub-pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cryobench.errors import DataError
from cryobench.io.image_files import check_file
from cryobench.io.movies.movie import Movie
from cryobench.io.tiff import check_whole, gray_image, reading, tifffile

_EVENTS = (65000, 65001, 65002)
"""Values of the tag Compression for electron events: 8 + 4 bits, 7 + 4 bits, stated widths."""
_ANGSTROM = {"m": 1e10, "nm": 10.0, "Å": 1.0, "A": 1.0}


class EerMovie(Movie):
    """The hardware frames of an EER file, counts as uint8. Raises `DataError`, `DependencyError`."""

    divided_by_gain = True

    def __init__(self, path: Path):
        check_file(path, "EER file")
        library = tifffile(path)
        with reading(path), library.TiffFile(path) as file:
            pages = list(file.pages)
            self._pages = [number for number, page in enumerate(pages) if int(page.compression) in _EVENTS]
            if not self._pages:
                raise DataError(f"{path} has no pages of electron events; expected an EER file")
            check_whole(path, pages)
            first = pages[self._pages[0]]
            self.shape = gray_image(path, first)
            if any(pages[number].shape != first.shape for number in self._pages):
                raise DataError(f"{path} has frames of different shapes; expected one: copy it again")
            metadata = pages[0].eer_tags or first.eer_tags or {}
            self.pixel_size = _pixel_size(metadata)
        self.path, self.frames = path, len(self._pages)

    def read(self) -> Iterator[np.ndarray]:
        with tifffile(self.path).TiffFile(self.path) as file:
            for number in self._pages:
                with reading(self.path):
                    frame = file.pages[number].asarray()
                yield frame.astype(np.uint8)


def _pixel_size(metadata: dict) -> float | None:
    """Å per physical pixel by the metadata of the acquisition, or None."""
    size, unit = metadata.get("sensorPixelSize.width"), metadata.get("sensorPixelSize.width.unit")
    if not isinstance(size, int | float) or unit not in _ANGSTROM or not size > 0:
        return None
    return float(size) * _ANGSTROM[unit]
