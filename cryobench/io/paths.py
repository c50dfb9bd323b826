"""The files that the user's paths name: files, folders and patterns."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from cryobench.errors import DataError
from cryobench.io.image_files import COMPRESSIONS


def matching_files(text: str, suffixes: Sequence[str], what: str) -> list[Path]:
    """The file at a path, or the files in a folder or of a pattern, sorted by name. what: in plural, for messages.

    Of a folder, the files with these suffixes. Raises `DataError` if there are none.
    """
    path = Path(text).expanduser()
    if path.is_dir() and path.suffix.lower() != ".zarr":  # a Zarr is a folder
        found = [file for file in path.iterdir() if suffix_of(file) in suffixes]
        missing = f"the folder {path} has no {what} ({', '.join(suffixes)}); give another folder, or a file"
    elif path.exists() or not glob.has_magic(text):
        return [path]
    else:
        found = [Path(file) for file in glob.glob(str(path), recursive=True)]  # noqa: PTH207 - takes absolute patterns
        missing = f"no file matches {text}; give another pattern, or a file"
    if not found:
        raise DataError(missing)
    return sorted(found)


def suffix_of(path: Path) -> str:
    """The suffix in lower case, without that of compression."""
    return Path(path.stem if path.suffix.lower() in COMPRESSIONS else path.name).suffix.lower()


def stem_of(path: Path) -> str:
    """The name without folder and suffix, and without that of compression."""
    return Path(path.stem if path.suffix.lower() in COMPRESSIONS else path.name).stem
