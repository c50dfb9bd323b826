"""What tells, without reading it, that a file was edited or replaced."""

from __future__ import annotations

from pathlib import Path

from cryobench.errors import DataError, described

State = tuple[int, int, int]


def file_state(path: str | Path, what: str) -> State:
    """Size, time of modification and inode of a file. what: its name in errors. Raises `DataError` if there is none."""
    try:
        found = Path(path).expanduser().stat()
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in the path, ~ of an unknown user
        reason = error.strerror if isinstance(error, OSError) else described(error)
        raise DataError(f"the {what} {path} cannot be read: {reason}; give an existing file") from error
    return found.st_size, found.st_mtime_ns, found.st_ino
