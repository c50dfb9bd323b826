"""The clean images of a source, from which the parameters of a distribution are measured."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from cryobench.core import Shape, Source
from cryobench.errors import DataError
from cryobench.file_state import FileState
from cryobench.io.fourier_crop import fourier_resize, square_crop


@dataclass(frozen=True)
class CleanImages:
    """The first `count` images of a source, without noise where it knows them so. Equal for equal states of its files.

    state: of its files; None if they are not known.
    """

    source: Source
    count: int
    state: tuple[FileState, ...] | None
    images: tuple[np.ndarray, ...] = field(compare=False, repr=False)

    def resampled(self, shape: Shape) -> torch.Tensor:
        """The images at `shape`, which must be square, float64 [n, 1, *S]. Raises `DataError` for another."""
        if len(set(shape)) != 1:
            raise DataError(
                f"a measured distribution is for square images, got {' x '.join(map(str, shape))}; give --size"
            )
        images = [fourier_resize(square_crop(image), shape[0]) for image in self.images]
        return torch.from_numpy(np.stack(images)).double()[:, None]

    @property
    def digest(self) -> str:
        """SHA-256 of the images."""
        digest = hashlib.sha256()
        for image in self.images:
            digest.update(np.ascontiguousarray(image).tobytes())
        return digest.hexdigest()


def read_clean(source: Source, count: int) -> CleanImages:
    """The images, read again after one of their files was edited. Raises `DataError` if there are none."""
    files = clean_files(source, count)
    return _read(source, count, None if files is None else tuple(FileState.of(path, "image file") for path in files))


@lru_cache(maxsize=8)
def clean_files(source: Source, count: int) -> Sequence[Path] | None:
    """The files that these images are read from; None if they are not known.

    Found once for each source, because opening some takes seconds.
    """
    stack = source.open()
    files = stack.files(range(min(count, len(stack))))
    return None if files is None else tuple(files)


@lru_cache(maxsize=2)
def _read(source: Source, count: int, state: tuple[FileState, ...] | None) -> CleanImages:
    stack = source.open()
    if not len(stack):
        raise DataError(f"{stack.label} has no images; give a source of images")
    found = []
    for index in range(min(count, len(stack))):
        clean = stack.clean(index)
        found.append(stack.read(index) if clean is None else clean)
    return CleanImages(source, count, state, tuple(found))
