"""A mixture of Gaussians in a file: an .npz with the arrays

weights [K]          positive, sum 1
means [K, H, W]
factors [K, r, H, W] the part of a covariance that is not isotropic, C_k = sum_r f_kr f_kr^T + rest_k I
rest [K]             positive
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cryobench.errors import DataError
from cryobench.file_state import FileState
from cryobench.files import whole_file

NAMES = ("weights", "means", "factors", "rest")
_SUM = 1e-6
"""Largest difference of the sum of the weights from 1."""


@dataclass(frozen=True, eq=False)
class MixtureFile:
    """The content of a file. path: as it was given. arrays: float64, by `NAMES`."""

    path: str
    arrays: Mapping[str, np.ndarray]

    @property
    def digest(self) -> str:
        """SHA-256 of the arrays."""
        digest = hashlib.sha256()
        for name, values in self.arrays.items():
            digest.update(f"{name}{values.shape}".encode() + np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()


def read_mixture(path: str) -> MixtureFile:
    """The content of a file, cached until the file is edited. Raises `DataError` for another file."""
    return _read(path, FileState.of(path, "mixture"))


def write_mixture(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write a file that `read_mixture` reads, as a whole or not at all."""
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


@lru_cache(maxsize=8)
def _read(path: str, state: FileState) -> MixtureFile:
    """`state` is a cache key."""
    expected = "expected an .npz file with weights [K], means [K, H, W], factors [K, r, H, W] and rest [K]"
    try:
        with np.load(Path(path).expanduser(), allow_pickle=False) as stored:
            given = {name: np.asarray(stored[name]) for name in NAMES}
    except Exception as error:  # a damaged archive: zipfile, zlib and numpy raise many kinds of errors
        raise DataError(f"the mixture {path} cannot be read; {expected}") from error
    wrong = [f"{name} of type {values.dtype}" for name, values in given.items() if values.dtype.kind not in "fiu"]
    if wrong:
        raise DataError(f"the mixture {path} has {', '.join(wrong)}; give real numbers")
    found = {name: values.astype(np.float64) for name, values in given.items()}
    weights, means, factors, rest = found.values()
    K, shape = len(weights) if weights.ndim == 1 else 0, means.shape[1:]
    of_images = means.ndim > 1 and factors.shape[:1] + factors.shape[2:] == means.shape
    if K < 1 or not of_images or len(means) != K or rest.shape != (K,):
        shapes = ", ".join(f"{name} {list(values.shape)}" for name, values in found.items())
        raise DataError(f"the mixture {path} has {shapes}; {expected}")
    if not 1 <= factors.shape[1] < int(np.prod(shape)):
        raise DataError(f"the mixture {path} has {factors.shape[1]} factors; give 1 to {int(np.prod(shape)) - 1}")
    if not all(np.isfinite(values).all() for values in found.values()) or (weights <= 0).any() or (rest <= 0).any():
        raise DataError(f"the mixture {path} needs finite numbers, and positive weights and rest")
    if abs(weights.sum() - 1) > _SUM:
        raise DataError(f"the weights of the mixture {path} have the sum {weights.sum():g}; give weights of sum 1")
    return MixtureFile(path, found)
