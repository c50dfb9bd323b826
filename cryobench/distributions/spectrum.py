"""A power spectrum from a file, for a stationary field."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from cryobench.errors import DataError

State = tuple[int, int, int]


def spectrum_at(path: str, frequency: torch.Tensor) -> torch.Tensor:
    """The power of a file at frequencies in cycles per pixel, in the shape of these, float64.

    The file has a row for each frequency: the frequency in cycles per pixel, increasing, and the power, positive;
    comments begin with #. The logarithm of the power is linear between rows and constant outside. Raises `DataError`
    for another file.
    """
    rows = _rows(path, file_state(path))
    logs = np.interp(frequency.numpy(), rows[:, 0], np.log(rows[:, 1]))
    return torch.from_numpy(np.exp(logs))


def spectrum_digest(path: str) -> str:
    """SHA-256 of the numbers of the file."""
    return hashlib.sha256(np.ascontiguousarray(_rows(path, file_state(path))).tobytes()).hexdigest()


def file_state(path: str, what: str = "spectrum") -> State:
    """What changes when the file of `what` is edited or replaced."""
    try:
        found = Path(path).expanduser().stat()
    except OSError as error:
        raise DataError(f"the {what} {path} cannot be read: {error.strerror}; give an existing file") from error
    return found.st_size, found.st_mtime_ns, found.st_ino


@lru_cache(maxsize=8)
def _rows(path: str, state: State) -> np.ndarray:
    """The rows of a file, float64 [n, 2]; `state` is a cache key."""
    expected = "expected rows of a frequency in cycles per pixel and a power"
    try:
        rows = np.loadtxt(Path(path).expanduser(), ndmin=2)
    except (OSError, ValueError) as error:
        raise DataError(f"the spectrum {path} is no table of numbers; {expected}") from error
    if rows.shape[1:] != (2,) or len(rows) < 2:
        raise DataError(f"the spectrum {path} has {' x '.join(map(str, rows.shape))} numbers; {expected}, two or more")
    if not np.isfinite(rows).all() or rows[0, 0] < 0 or (np.diff(rows[:, 0]) <= 0).any() or (rows[:, 1] <= 0).any():
        raise DataError(f"the spectrum {path} needs increasing frequencies from 0 on and finite, positive powers")
    return rows
