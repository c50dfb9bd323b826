"""The source `em_pairs`: noisy electron micrographs with a longer exposure of each, in folders of TIFF files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from cryobench.core import Source, Stack
from cryobench.core.source import size_text
from cryobench.errors import DataError
from cryobench.io.em_pairs import PairFiles, find_pairs
from cryobench.io.image_files import ImageFile, changed
from cryobench.io.tiff import open_tiff_image
from cryobench.text import not_finite


@dataclass(frozen=True)
class EmPairs(Source):
    """Registered pairs of electron micrographs, PATH/CELL/LEVEL/wf_NAME.tif and gt_NAME.tif, as EMDiffuse has them.

    The images are the noisy ones (`wf`), or ones of low resolution on the same pixels. Their clean images are the
    longer exposures of the same places (`gt`), which have some noise too. All have one shape.
    """

    path: Annotated[str, "folder of the cells"]
    level: Annotated[tuple[str, ...], "folders of noise levels; several in double quotes; none: all"] = ()
    cell: Annotated[tuple[str, ...], "folders of cells; several in double quotes; none: all"] = ()

    def open(self) -> EmPairStack:
        """Open all files by their headers. Raises `DataError` for an image without partner, or of another shape."""
        root = Path(self.path).expanduser()
        chosen = [name for names in (self.cell, self.level) for name in names]
        label = "/".join([root.resolve().name, *chosen])
        return EmPairStack(label, find_pairs(root, self.cell, self.level))


class EmPairStack(Stack):
    """The noisy images of pairs, and the longer exposures as their clean images. Raises `DataError` unless all files
    have one image of one shape."""

    def __init__(self, label: str, pairs: Sequence[PairFiles]):
        self.label = label
        self._pairs = [(open_tiff_image(pair.noisy), open_tiff_image(pair.clean)) for pair in pairs]
        first = self._pairs[0][0]
        self.shape = first.shape
        for noisy, clean in self._pairs:
            if clean.shape != noisy.shape:
                raise DataError(
                    f"{noisy.path} has {size_text(noisy.shape)} pixels and {clean.path} {size_text(clean.shape)}; "
                    "expected a registered pair: use `cryobench data register`"
                )
            if noisy.shape != first.shape:
                raise DataError(
                    f"{first.path} has {size_text(first.shape)} pixels and {noisy.path} {size_text(noisy.shape)}; "
                    "choose images of one shape with cell= and level="
                )

    def __len__(self) -> int:
        return len(self._pairs)

    def read(self, index: int) -> np.ndarray:
        """The noisy image of pair `index`, float32, in the units of its file."""
        return self._read(index, 0)

    def clean(self, index: int) -> np.ndarray:
        """The longer exposure of pair `index`, float32, in the units of its file."""
        return self._read(index, 1)

    def files(self, images: Sequence[int]) -> list[Path]:
        """Both files of each of these pairs."""
        return [file.path for index in images for file in self._pairs[index]]

    def pixel_size(self, index: int) -> float | None:
        """Å per pixel by the file of the noisy image."""
        self.check(index)
        return self._pairs[index][0].pixel_size

    def _read(self, index: int, which: int) -> np.ndarray:
        self.check(index)
        file: ImageFile = self._pairs[index][which]
        image = np.empty(file.shape, np.float32)
        try:
            file.open()(0, image[None])
        except (OSError, ValueError) as error:  # deleted or replaced since its header was read
            raise changed(file.path) from error
        bad = image.size - int(np.count_nonzero(np.isfinite(image)))
        if bad:
            raise DataError(f"{file.path} has {not_finite(bad)}; leave the pair out")
        return image
