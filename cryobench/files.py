"""Files appear whole or not at all; and where things are kept between runs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from cryobench.errors import ResultsError

CACHE_VARIABLE = "CRYOBENCH_CACHE"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends well, and vanishes when it does not.

    A link is followed; a device or a pipe is written to directly.
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
    """Raise `ResultsError` unless a file can be made at this path."""
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
    """Make a folder for `what` if need be; raise `ResultsError`, which names the option for another, when nothing can
    be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        raise ResultsError(
            f"cannot write {what} to {folder}: {error.strerror}; choose another folder with {option}"
        ) from error


def lock(file: IO[bytes], *, wait: bool = False) -> bool:
    """Whether this process has the file to itself until it is closed or the process ends, however it ends; never
    refused where there are no such locks. wait: until it is free."""
    try:
        import fcntl
    except ImportError:  # not POSIX
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


@contextmanager
def exclusively(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """This process alone in the block; `path` is a file for the `lock`, which goes with the block.

    wait: until it is free; else the block runs all the same, told False.
    """
    while True:
        with path.open("wb") as file:
            if not lock(file, wait=wait):
                yield False
                return
            if not _is_at(path, file.fileno()):
                continue  # whoever had it has removed it since
            try:
                yield True
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(path: Path, handle: int) -> bool:
    """Whether an open file is still the one at this path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def cache_folder() -> Path:
    """Where what is costly to make is kept: $CRYOBENCH_CACHE, else `cryobench` in the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cryobench"


def umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
