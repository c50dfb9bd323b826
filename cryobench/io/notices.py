"""Warnings about files that were read with an assumption."""

from __future__ import annotations

import warnings
from pathlib import Path

from cryobench.errors import DataWarning

_SHOWN: set[tuple[str, Path]] = set()


def warn_once(kind: str, path: Path, message: str) -> None:
    """Warn of a file with a `DataWarning`, "PATH MESSAGE", once in a process for each kind of warning and folder.

    A table may list thousands of stacks of one folder, all written by the same software.
    """
    key = kind, path.absolute().parent
    if key not in _SHOWN:
        _SHOWN.add(key)
        warnings.warn(f"{path} {message}", DataWarning, stacklevel=3)
