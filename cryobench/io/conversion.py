"""A stack of images written in another format, size, contrast or normalisation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cryobench.core import Stack
from cryobench.errors import DataError, ParameterError
from cryobench.io.formats import FORMATS
from cryobench.io.scaling import scaling_of
from cryobench.io.streaming import stream
from cryobench.io.writing import written, written_folder

if TYPE_CHECKING:
    import pandas as pd


def written_files(path: Path) -> list[Path]:
    """The files that `convert` writes for this path. Raises `ParameterError` for a suffix that it cannot write."""
    known = {suffix: format for suffix, format in FORMATS.items() if format.write is not None}
    suffix = path.suffix.lower()
    if suffix not in known:
        raise ParameterError(f"cannot write {path}: its suffix is {suffix!r}; expected one of {', '.join(known)}")
    return [path, *(path.with_suffix(other) for other in known[suffix].companions)]


def convert(
    stack: Stack,
    path: Path,
    *,
    images: Sequence[int] | None = None,
    normalize: str = "none",
    radius: float | None = None,
    invert: bool = False,
) -> list[Path]:
    """Write images of a stack as a .mrcs, with a RELION 3.1 .star beside it, or as a .npy, .tif or .zarr. Returns the
    files written.

    normalize: a name of `scaling.NORMALISATIONS`, applied image by image; radius: of the particle in pixels, for
    relion. invert: multiply by -1. Memory is bounded; the files appear together, or not at all. Raises `DataError` or
    `ParameterError`.
    """
    chosen = list(range(len(stack))) if images is None else list(images)
    return _write({path: stack}, chosen, lambda each: _chunks(each, chosen, normalize, radius, invert))


def write_together(stacks: Mapping[Path, Stack]) -> list[Path]:
    """`convert` of several stacks with the same number of images: all files appear together, or none."""
    chosen = list(range(len(next(iter(stacks.values())))))
    return _write(stacks, chosen, lambda each: _chunks(each, chosen, "none", None, False))


def _write(
    stacks: Mapping[Path, Stack], chosen: Sequence[int], chunks: Callable[[Stack], Iterator[np.ndarray]]
) -> list[Path]:
    def fill(path: Path, temporary: list[Path]) -> None:
        write = FORMATS[path.suffix.lower()].write
        assert write is not None
        write(temporary, path, chunks(stacks[path]), stacks[path], chosen)

    targets = {path: written_files(path) for path in stacks}
    for path in [path for path in targets if FORMATS[path.suffix.lower()].folder]:
        with written_folder(path) as folder:
            fill(path, [folder])
        del targets[path]
    files = sorted((file for own in targets.values() for file in own), key=lambda file: file not in stacks)
    with written(*files) as temporary:  # tables last
        place = dict(zip(files, temporary, strict=True))
        for path, own in targets.items():
            fill(path, [place[file] for file in own])
    return [file for path in stacks for file in written_files(path)]


def _chunks(
    stack: Stack, chosen: Sequence[int], normalize: str, radius: float | None, invert: bool
) -> Iterator[np.ndarray]:
    def scaled(number: int, image: np.ndarray) -> np.ndarray:
        where = f"image {number} of {stack.label}"
        return scaling_of(normalize, image, where, radius=radius, invert=invert).apply(image)

    for numbers, images in stream(stack, chosen):
        yield np.stack([scaled(number, image) for number, image in zip(numbers, images, strict=True)])


class OneImage(Stack):
    """An image in memory, as a stack. pixel_size: Å, None if unknown."""

    def __init__(self, label: str, image: np.ndarray, pixel_size: float | None = None):
        self.label, self.shape, self._image, self._pixel_size = label, image.shape, image, pixel_size

    def __len__(self) -> int:
        return 1

    def read(self, index: int) -> np.ndarray:
        """A copy of the image, float32."""
        self.check(index)
        return self._image.astype(np.float32)

    def pixel_size(self, index: int) -> float | None:
        return self._pixel_size


class CleanStack(Stack):
    """The clean images of a stack, as a stack. Reading raises `DataError` if they are not known."""

    def __init__(self, stack: Stack):
        self._stack, self.shape, self.label = stack, stack.shape, f"{stack.label} without noise"

    def __len__(self) -> int:
        return len(self._stack)

    def read(self, index: int) -> np.ndarray:
        """Image `index` without noise."""
        return self.read_block([index])[0]

    def read_block(self, images: Sequence[int]) -> np.ndarray:
        """These images without noise, float32 [n, *shape]."""
        block = self._stack.clean_block(images)
        if block is None:
            raise DataError(f"the clean images of {self._stack.label} are not known; use the images as they are")
        return block

    def pixel_size(self, index: int) -> float | None:
        return self._stack.pixel_size(index)

    @property
    def table(self) -> pd.DataFrame | None:
        return self._stack.table

    @property
    def origin(self) -> Mapping[str, str]:
        return self._stack.origin
