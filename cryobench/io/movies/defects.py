"""Files of defects: pixels of a detector that measure nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cryobench.core.source import size_text
from cryobench.errors import DataError, reason_of
from cryobench.files import read_bounded
from cryobench.io.image_files import check_file
from cryobench.io.movies.images import SUFFIXES, read_image
from cryobench.io.paths import suffix_of

_LARGEST = 1 << 24
"""Bytes of the largest text file that is read."""
_SERIALEM = "CameraSizeX"


def read_defects(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """The pixels that a file of defects lists, bool [H, W].

    An image (MRC or TIFF) in which they are not zero, or text with a rectangle "x y width height" in each line, x along
    columns and y along rows, from 0 (MotionCor2's -DefectFile). Raises `DataError` for another format.
    """
    check_file(path, "file of defects")
    if suffix_of(path) in SUFFIXES:
        mask = read_image(path) != 0
        if mask.shape != shape:
            raise DataError(f"{path} has {size_text(mask.shape)} pixels, the movie {size_text(shape)}; give the "
                            "defects of this detector")  # fmt: skip
        return mask
    try:
        text = read_bounded(path, _LARGEST).decode()
    except (OSError, ValueError) as error:
        expected = f"lines x y width height, or an image ({', '.join(SUFFIXES)})"
        raise DataError(f"{path} cannot be read as text: {reason_of(error)}; expected {expected}") from error
    if text.lstrip().startswith(_SERIALEM):
        raise DataError(f"{path} is a file of defects of SerialEM, which is not read; make an image of it with IMOD's "
                        "`clip defect`")  # fmt: skip
    bad = np.zeros(shape, bool)
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 4 or not all(word.isascii() and word.isdigit() for word in words):
            raise DataError(f"{path}, line {number}: expected x y width height, four integers")
        x, y, width, height = map(int, words)
        if x + width > shape[1] or y + height > shape[0]:
            raise DataError(f"{path}, line {number}: the rectangle ends at column {x + width} and row {y + height}, "
                            f"the movie has {shape[1]} columns and {shape[0]} rows")  # fmt: skip
        bad[y : y + height, x : x + width] = True
    return bad
