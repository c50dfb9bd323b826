"""A power spectrum from a file, for a stationary field."""

from __future__ import annotations

import hashlib
import lzma
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from cryobench.errors import DataError
from cryobench.file_state import FileState


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The rows of a file: frequency in cycles per pixel, increasing, and power, positive, float64 [n, 2]."""

    rows: np.ndarray

    def at(self, frequency: torch.Tensor) -> torch.Tensor:
        """The power at frequencies in cycles per pixel, in the shape of these, float64.

        The logarithm of the power is linear between rows and constant outside.
        """
        logs = np.interp(frequency.numpy(), self.rows[:, 0], np.log(self.rows[:, 1]))
        return torch.from_numpy(np.exp(logs))

    @property
    def digest(self) -> str:
        """SHA-256 of the numbers."""
        return hashlib.sha256(np.ascontiguousarray(self.rows).tobytes()).hexdigest()


def read_spectrum(path: str) -> Spectrum:
    """The spectrum of a file, cached until the file is edited.

    The file has a row for each frequency: the frequency in cycles per pixel, increasing, and the power, positive;
    comments begin with #. Raises `DataError` for another file.
    """
    return _spectrum(path, FileState.of(path, "spectrum"))


@lru_cache(maxsize=8)
def _spectrum(path: str, state: FileState) -> Spectrum:
    """`state` is a cache key."""
    expected = "expected rows of a frequency in cycles per pixel and a power"
    try:
        rows = np.loadtxt(Path(path).expanduser(), ndmin=2)
    except (OSError, ValueError, EOFError, zlib.error, lzma.LZMAError) as error:  # numpy expands .gz, .bz2 and .xz
        raise DataError(f"the spectrum {path} is no table of numbers; {expected}") from error
    if rows.shape[1:] != (2,) or len(rows) < 2:
        raise DataError(f"the spectrum {path} has {' x '.join(map(str, rows.shape))} numbers; {expected}, two or more")
    if not np.isfinite(rows).all() or rows[0, 0] < 0 or (np.diff(rows[:, 0]) <= 0).any() or (rows[:, 1] <= 0).any():
        raise DataError(f"the spectrum {path} needs increasing frequencies from 0 on and finite, positive powers")
    return Spectrum(rows)
