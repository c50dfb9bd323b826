"""Atomic writes, locks, and the cache folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cryobench.errors import ResultsError

if TYPE_CHECKING:
    from filelock import AcquireReturnProxy

CACHE_VARIABLE = "CRYOBENCH_CACHE"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`. It replaces `path` when the block succeeds and is deleted when it fails.

    Links are followed; a device or a pipe is written to directly.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        yield path
        return
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        beside.chmod(0o666 & ~umask())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def check_writable_file(path: Path) -> None:
    """Raise `ResultsError` unless a file can be written at this path."""
    try:
        if path.is_dir():
            raise ResultsError(f"{path} is a folder; give the path of a file to write")
        if not path.parent.is_dir():
            raise ResultsError(f"cannot write {path}: the folder {path.parent} does not exist; make it first")
        if path.exists() and not path.is_file():
            return
        with tempfile.TemporaryFile(dir=path.parent):
            return
    except OSError as error:
        raise ResultsError(f"cannot write {path}: {error.strerror}; choose another place") from error


def check_writable_folder(folder: Path, what: str, option: str) -> None:
    """Create a folder for `what` if needed. Raises `ResultsError`, which names the option that sets the folder, when it
    is not writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        raise ResultsError(
            f"cannot write {what} to {folder}: {error.strerror}; choose another folder with {option}"
        ) from error


def acquire_lock(path: Path, *, busy: str = "") -> AcquireReturnProxy:
    """Lock a path, as a context. The lock also ends with the process, however that ends.

    busy: message of the `ResultsError` that is raised when another process holds the lock; '' waits for the lock.
    """
    from filelock import FileLock, Timeout

    try:
        return FileLock(path, blocking=not busy).acquire()
    except Timeout:
        raise ResultsError(busy) from None
    except OSError as error:
        raise ResultsError(f"cannot lock {path}: {error.strerror}; choose another folder") from error


def cache_folder() -> Path:
    """The folder of cached files: $CRYOBENCH_CACHE, else `cryobench` in the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cryobench"


def umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
