"""A stack of images written in another format, size, contrast or normalisation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cryobench.core import Stack
from cryobench.errors import DataError, ParameterError
from cryobench.files import whole_file
from cryobench.io.scaling import scaling_of
from cryobench.io.streaming import stream
from cryobench.io.writing import write_mrcs, write_star

if TYPE_CHECKING:
    import pandas as pd

WRITTEN = (".mrcs", ".npy")


def convert(
    stack: Stack,
    path: Path,
    *,
    images: Sequence[int] | None = None,
    normalize: str | None = None,
    radius: float | None = None,
    invert: bool = False,
) -> list[Path]:
    """Write images of a stack as a .mrcs, with a RELION 3.1 .star beside it, or as a .npy. Returns what was written.

    normalize: minmax, meanstd, relion (with the particle's `radius` in pixels) or p95, image by image; None leaves the
    values. invert: multiply by -1. Bounded memory; files appear whole or not at all. Raises `DataError` or
    `ParameterError`.
    """
    suffix = path.suffix.lower()
    if suffix not in WRITTEN:
        raise ParameterError(f"cannot write {path}: its suffix is {suffix!r}; give one of {', '.join(WRITTEN)}")
    chosen = list(range(len(stack))) if images is None else list(images)
    chunks = _chunks(stack, chosen, normalize, radius, invert)
    if suffix == ".npy":
        _write_npy(path, chunks, (len(chosen), *stack.shape))
        return [path]
    return _write_particles(path, chunks, stack, chosen)


def _write_particles(path: Path, chunks: Iterator[np.ndarray], stack: Stack, chosen: Sequence[int]) -> list[Path]:
    """Write chunks [n, H, W], one image for each of the `chosen` ones, as a .mrcs and a .star with what is known."""
    sizes = [stack.pixel_size(index) for index in chosen]
    known = [size for size in sizes if size is not None]
    if known and len(known) < len(sizes):
        raise DataError(f"{stack.label}: some images have a pixel size and some have none; write them one by one")
    star = path.with_suffix(".star")
    write_mrcs(path, chunks, known[0] if known else None)
    write_star(star, stack.rows(chosen), path.name, known or None, stack.shape[1], count=len(chosen))
    return [path, star]


def _chunks(
    stack: Stack, chosen: Sequence[int], normalize: str | None, radius: float | None, invert: bool
) -> Iterator[np.ndarray]:
    if radius is not None and normalize != "relion":
        raise ParameterError(f"a radius belongs to the normalisation relion, got {normalize}")

    def scaled(number: int, image: np.ndarray) -> np.ndarray:
        if normalize is None:
            return -image if invert else image
        where = f"image {number} of {stack.label}"
        return scaling_of(normalize, image, where, radius=radius, invert=invert).apply(image)

    for numbers, images in stream(stack, chosen):
        yield np.stack([scaled(number, image) for number, image in zip(numbers, images, strict=True)])


def _write_npy(path: Path, chunks: Iterator[np.ndarray], shape: tuple[int, ...]) -> None:
    try:
        with whole_file(path) as beside:
            array = np.lib.format.open_memmap(beside, mode="w+", dtype=np.float32, shape=shape)
            start = 0
            for chunk in chunks:
                array[start : start + len(chunk)] = chunk
                start += len(chunk)
            array.flush()
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; choose another place") from error


class Clean(Stack):
    """The clean images of a stack, as a stack. Raises `DataError` where nobody knows them."""

    def __init__(self, stack: Stack):
        self._stack, self.shape, self.label = stack, stack.shape, f"{stack.label} without noise"

    def __len__(self) -> int:
        return len(self._stack)

    def read(self, index: int) -> np.ndarray:
        """Image `index` without its noise."""
        image = self._stack.clean(index)
        if image is None:
            raise DataError(f"nobody knows image {index} of {self._stack.label} without its noise")
        return image

    def pixel_size(self, index: int) -> float | None:
        return self._stack.pixel_size(index)

    @property
    def table(self) -> pd.DataFrame | None:
        return self._stack.table

    @property
    def origin(self) -> Mapping[str, str]:
        return self._stack.origin
