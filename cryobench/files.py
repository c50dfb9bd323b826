"""Files appear whole or not at all; and where things are kept between runs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
