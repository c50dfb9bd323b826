"""The clean images of a source, from which the parameters of a distribution are measured."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import torch

from cryobench.core import Shape, Source
from cryobench.errors import DataError
from cryobench.io.fourier_crop import fourier_resize, square_crop


def clean_images(source: Source, count: int, shape: Shape) -> torch.Tensor:
    """The first `count` images of a source, without noise where it knows them so, float64 [n, 1, *S].

    Resampled to `shape`, which must be square. Raises `DataError` for another.
    """
    if len(set(shape)) != 1:
        raise DataError(f"a measured distribution is for square images, got {' x '.join(map(str, shape))}; give --size")
    images = [fourier_resize(square_crop(image), shape[0]) for image in _read(source, count)]
    return torch.from_numpy(np.stack(images)).double()[:, None]


def images_digest(source: Source, count: int) -> str:
    """SHA-256 of these images."""
    digest = hashlib.sha256()
    for image in _read(source, count):
        digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()


@lru_cache(maxsize=2)
def _read(source: Source, count: int) -> tuple[np.ndarray, ...]:
    stack = source.open()
    if not len(stack):
        raise DataError(f"{stack.label} has no images; give a source of images")
    found = []
    for index in range(min(count, len(stack))):
        clean = stack.clean(index)
        found.append(stack.read(index) if clean is None else clean)
    return tuple(found)
