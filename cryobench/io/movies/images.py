"""Single images of a detector: gain references and masks of defects."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cryobench.errors import DataError
from cryobench.io.image_files import open_mrc
from cryobench.io.paths import suffix_of
from cryobench.io.tiff import read_tiff_image

_MRC, _TIFF = (".mrc", ".mrcs", ".map"), (".tif", ".tiff", ".gain")
SUFFIXES = (*_MRC, *_TIFF)
_REFUSED = {
    ".dm4": "convert it with `dm2mrc` of IMOD",
    ".dm3": "convert it with `dm2mrc` of IMOD",
    ".raw": "convert it to MRC",
}


def read_image(path: Path) -> np.ndarray:
    """The image in an MRC or TIFF file, float32 [H, W]; `.gain` is the TIFF of a Falcon detector.

    Raises `DataError` for another format, which it names, and for a file of several images.
    """
    suffix = suffix_of(path)
    if suffix in _TIFF:
        return read_tiff_image(path).astype(np.float32)
    if suffix not in _MRC:
        advice = _REFUSED.get(suffix, "convert it to MRC or TIFF")
        raise DataError(f"{path}: the format {suffix or 'without a suffix'} is not read; {advice} (read are "
                        f"{', '.join(SUFFIXES)})")  # fmt: skip
    file = open_mrc(path, as_stack=True)
    if file.count != 1:
        raise DataError(f"{path} holds {file.count} images; expected one: write their mean")
    image = np.empty((1, *file.shape), np.float32)
    file.open()(0, image)
    return image[0]
