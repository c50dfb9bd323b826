"""Atomic and durable writes, bounded reads, locks, and the cache folder."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cryobench.errors import ResultsError, reason_of

if TYPE_CHECKING:
    from filelock import AcquireReturnProxy

CACHE_VARIABLE = "CRYOBENCH_CACHE"
PARTIAL = ".partial-"
"""Prefix of folders that are being written or removed."""
EARLIER = "~"
"""Separates the name of a folder that is being replaced from a random suffix."""
ATTEMPTS = 20
"""Attempts to move a folder into place while other processes write the same one."""
BUSY = (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST)
"""Errors of a rename that another process can cause that writes the same folder."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path in the folder of `path`. It replaces `path` if the block succeeds and is deleted if it fails.

    Links are followed; a device or a pipe is written to directly.
    """
    with whole_files(path) as (temporary,):
        yield temporary


@contextmanager
def whole_files(*paths: Path) -> Iterator[list[Path]]:
    """Temporary paths beside `paths`. If the block succeeds, they are written to disk and replace `paths` together; if
    it fails, or one of them cannot be moved, all earlier files are kept.

    List a file that describes others after them. If the process is killed while several files are replaced, new files
    are never beside earlier ones: some of `paths` are then missing, and earlier files have a suffix (`EARLIER`).
    Links are followed; a device or a pipe is written to directly.
    """
    targets = [path.resolve() for path in paths]
    with ExitStack() as stack:
        temporary = [_temporary(target, stack) for target in targets]
        yield temporary
        written = [(new, target) for new, target in zip(temporary, targets, strict=True) if new != target]
        for new, _ in written:
            new.chmod(0o666 & ~umask())
            sync(new)
        if len(written) == 1:
            new, target = written[0]
            new.replace(target)
        else:
            _replace_files(written)
        for folder in {target.parent for _, target in written}:
            sync(folder)


def _temporary(target: Path, stack: ExitStack) -> Path:
    """A new file in the folder of `target`, deleted at the end; `target` itself if it is a device or a pipe."""
    if target.exists() and not target.is_file():
        return target
    handle, name = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
    os.close(handle)
    stack.callback(Path(name).unlink, missing_ok=True)
    return Path(name)


def remove_unfinished(folder: Path, names: Collection[str]) -> None:
    """Remove the temporary files in a folder that killed processes left of `whole_files` for files of these names.

    Another process that is writing one of these files would fail.
    """
    for path in folder.glob(".*-*"):
        found = re.fullmatch(r"\.(.+)-[a-z0-9_]{8}", path.name)
        if found and found[1] in names:
            path.unlink(missing_ok=True)


def _replace_files(written: Sequence[tuple[Path, Path]]) -> None:
    """Move files to their targets: first the earlier files away, the last one first, then the new ones in order. All
    moves are undone if one fails."""
    moved: list[tuple[Path, Path]] = []  # (from, to)

    def move(source: Path, to: Path) -> None:
        source.rename(to)
        moved.append((source, to))

    try:
        for _, target in reversed(written):
            if target.exists():
                move(target, _aside(target))
        earlier = [to for _, to in moved]
        for new, target in written:
            move(new, target)
    except BaseException:
        for source, to in reversed(moved):
            to.rename(source)
        raise
    for file in earlier:
        file.unlink()


def _aside(path: Path) -> Path:
    """A new name for what `path` replaces."""
    return path.with_name(f"{path.name}{EARLIER}{secrets.token_hex(4)}")


@contextmanager
def whole_folder(path: Path, earlier: Path | None = None) -> Iterator[Path]:
    """A temporary folder next to `path`. If the block succeeds, it is written to disk and moved to `path`, where it
    replaces that folder and `earlier`. If the block fails, it is deleted.

    At every moment a complete folder is at `path`, at `earlier` or at `path` with a suffix (`EARLIER`); see
    `remove_leftovers`. If two processes write one folder, the later one wins.
    """
    with hidden_folder(path.parent) as temporary:
        yield temporary
        temporary.chmod(0o777 & ~umask())
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        _replace(temporary, path, earlier)
        sync(path.parent)


def _replace(folder: Path, path: Path, earlier: Path | None) -> None:
    """Move a folder to `path`. Replaced folders are first renamed, to readable names, and deleted afterwards."""
    moved: dict[Path, Path] = {}
    try:
        for attempt in range(ATTEMPTS):
            try:
                for old in {path, earlier} - {None}:
                    if old.exists():
                        aside = _aside(path)
                        old.rename(aside)
                        moved[aside] = old
                folder.rename(path)
                break
            except OSError as error:
                if attempt == ATTEMPTS - 1 or error.errno not in BUSY:
                    raise
    except OSError:
        for aside, old in moved.items():
            if not old.exists():
                aside.rename(old)
        raise
    finally:
        for aside in moved:
            discard(aside)


def discard(folder: Path) -> None:
    """Delete a folder if it exists. It is hidden first, so that a partly deleted folder is never visible."""
    hidden = folder.with_name(PARTIAL + secrets.token_hex(8))
    with suppress(FileNotFoundError):
        folder.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def remove_leftovers(root: Path) -> None:
    """Remove the temporary folders in `root` that killed processes left: those that no running process owns."""
    for folder in root.iterdir():
        if folder.name.startswith(PARTIAL):
            with suppress(OSError), _locked(folder):
                shutil.rmtree(folder, ignore_errors=True)
        elif re.search(rf"{EARLIER}[0-9a-f]{{8}}$", folder.name):
            replacement = folder.with_name(folder.name.rpartition(EARLIER)[0])
            try:
                folder.rename(replacement)  # the process was killed before it moved its own folder there
            except OSError as error:
                if error.errno not in BUSY:
                    raise
                discard(folder)


@contextmanager
def hidden_folder(parent: Path) -> Iterator[Path]:
    """A new hidden folder in `parent` that `remove_leftovers` of other processes does not remove. It is deleted at the
    end."""
    with ExitStack() as stack:
        while True:
            folder = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=parent))
            try:
                stack.enter_context(_locked(folder))
            except (BlockingIOError, FileNotFoundError):  # `remove_leftovers` was faster
                continue
            except OSError:  # no locks on this file system: `remove_leftovers` cannot lock it either
                pass
            if folder.exists():
                break
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a folder until the block or the process ends. Raises `OSError` if another process holds the lock."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def sync(path: Path) -> None:
    """Flush a file or folder to disk, so that it survives a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_bounded(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes. Raises `ValueError` for other files, such as pipes."""
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path.name} is not a regular file")
        if status.st_size > limit:
            raise ValueError(f"{path.name} has {status.st_size} bytes, more than {limit}")
        return file.read(limit)


@contextmanager
def output_file(path: Path) -> Iterator[Path]:
    """`whole_file` for a file that the user named. Raises `ResultsError` if it cannot be written."""
    try:
        with whole_file(path) as temporary:
            yield temporary
    except OSError as error:
        reason = error.strerror or reason_of(error)
        raise ResultsError(f"cannot write {path}: {reason}; free space or choose another path") from error


def check_writable_file(path: Path) -> None:
    """Raise `ResultsError` unless a file can be written at this path."""
    try:
        if path.is_dir():
            raise ResultsError(f"{path} is a folder; give the path of a file to write")
        if not path.parent.is_dir():
            raise ResultsError(f"cannot write {path}: the folder {path.parent} does not exist; create it first")
        if path.exists() and not path.is_file():
            return
        with tempfile.TemporaryFile(dir=path.parent):
            return
    except OSError as error:
        raise ResultsError(f"cannot write {path}: {error.strerror}; choose another path") from error


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
    """Lock a path, as a context manager. The lock is also released when the process ends, even if it is killed.

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
