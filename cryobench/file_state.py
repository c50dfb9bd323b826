"""What tells, without reading it, that a file was edited or replaced."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryobench.errors import DataError, described


@dataclass(frozen=True)
class FileState:
    """Size in bytes, time of modification in ns and inode of a file."""

    path: Path
    size: int
    modified: int
    inode: int

    @staticmethod
    def of(path: str | Path, what: str) -> FileState:
        """The state of a file now. what: its name in errors. Raises `DataError` if there is none."""
        try:
            file = Path(path).expanduser()
            found = file.stat()
        except (OSError, ValueError, RuntimeError) as error:  # a NUL in the path, ~ of an unknown user
            reason = error.strerror if isinstance(error, OSError) else described(error)
            raise DataError(f"the {what} {path} cannot be read: {reason}; give an existing file") from error
        return FileState(file.absolute(), found.st_size, found.st_mtime_ns, found.st_ino)
