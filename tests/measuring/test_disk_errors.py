"""`measure` and `reconstruct` on a full disk and in a read-only folder: one line, and what was finished stays."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from kills import EVENTS

from cryobench.io.writing import write_mrcs
from cryobench.measuring.container import CHUNKS

MEASURE = ("measure", "-o", "sumpool:4", "-d", "s.mrcs", "--as-stack", "--chunk", "8", "--out", "y")
RECONSTRUCT = ("reconstruct", "y", "-s", "pinv", "--out", "out/x.mrcs")
KEPT = "8 of 24 images are finished and kept; the same command continues from there"
_read_only: list[str] = []


def _refuse(event: str, arguments: tuple) -> None:
    """An audit hook: writing below a folder in `_read_only` fails, as on a file system that is mounted read-only.

    (The permissions of a folder would not do: root may write everywhere.)
    """
    if not _read_only or event not in EVENTS:
        return
    reads = event == "open" and isinstance(arguments[2], int) and not arguments[2] & (os.O_WRONLY | os.O_RDWR)
    paths = [
        str(Path(os.fsdecode(each)).absolute()) for each in arguments if isinstance(each, str | bytes | os.PathLike)
    ]
    if not reads and any(path.startswith(folder) for path in paths for folder in _read_only):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), paths[0])


sys.addaudithook(_refuse)


@contextmanager
def read_only(monkeypatch, folder: str) -> Iterator[None]:
    _read_only.append(str(Path(folder).resolve()))
    try:
        yield
    finally:
        _read_only.clear()


@contextmanager
def full(monkeypatch, folder: str, after: int = 0) -> Iterator[None]:
    """The disk is full after some chunks: half of the next one fits."""
    pwrite, savez, left = os.pwrite, np.savez, [after]

    def failing(write: Callable) -> Callable:
        def wrapped(*arguments, **named):
            left[0] -= 1
            if left[0] < 0:
                if write is pwrite and left[0] == -1:
                    return pwrite(arguments[0], arguments[1][: len(arguments[1]) // 2], arguments[2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(*arguments, **named)

        return wrapped

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", failing(pwrite))
        patched.setattr(np, "savez", failing(savez))
        yield


@pytest.fixture
def stack(cli) -> Callable:
    """24 images in three chunks; the whole measurements and the whole stack are in `whole`."""
    write_mrcs(Path("s.mrcs"), np.random.default_rng(0).normal(size=(24, 16, 16)).astype(np.float32), 2.0)
    for folder in ("whole", "out"):
        Path(folder).mkdir()
    assert cli(*MEASURE[:-1], "whole/y", "--quiet")[0] == 0
    assert cli("reconstruct", "whole/y", "-s", "pinv", "--out", "whole/x.mrcs", "--quiet")[0] == 0
    return cli


def same(one: str, two: str) -> bool:
    return Path(one).read_bytes() == Path(two).read_bytes()


@pytest.mark.parametrize(("fault", "reason"), [(read_only, "Read-only file system"), (full, "No space left on device")])
def test_measure_keeps_its_chunks(stack, monkeypatch, fault, reason):
    assert stack(*MEASURE, "--shard", "1/3", "--quiet")[0] == 0
    with fault(monkeypatch, "y"):
        code, out, err = stack(*MEASURE)
    assert (code, out) == (1, "")
    assert err == f"error: cannot write y/{CHUNKS}/000001.npz: {reason}; free space or choose another path; {KEPT}\n"
    assert stack(*MEASURE, "--quiet") == (0, "", "")
    for chunk in range(3):
        assert same(f"y/{CHUNKS}/{chunk:06d}.npz", f"whole/y/{CHUNKS}/{chunk:06d}.npz")


@pytest.mark.parametrize(("fault", "reason"), [(read_only, "Read-only file system"), (full, "No space left on device")])
def test_reconstruct_keeps_its_chunks(stack, monkeypatch, fault, reason):
    Path("whole/y").rename("y")
    assert stack(*RECONSTRUCT, "--shard", "1/3", "--quiet")[0] == 0
    with fault(monkeypatch, "out/.x.mrcs.parts"):
        code, out, err = stack(*RECONSTRUCT)
    assert (code, out) == (1, "")
    assert err == f"error: cannot write out/x.mrcs: {reason}; free space; {KEPT}\n"
    assert stack(*RECONSTRUCT, "--quiet") == (0, "", "")
    assert same("out/x.mrcs", "whole/x.mrcs")


def test_a_read_only_folder_is_refused_before_any_work(stack, monkeypatch):
    Path("whole/y").rename("y")
    with read_only(monkeypatch, "out"):
        code, out, err = stack(*RECONSTRUCT)
        assert (code, out, err) == (
            2, "", "error: cannot write out/x.mrcs: Read-only file system; choose another path\n"
        )  # fmt: skip
        code, out, err = stack(*MEASURE[:-1], "out/y")
        assert (code, out, err) == (
            2, "", "error: cannot write measurements to out/y/chunks: Read-only file system; choose another folder "
            "with --out\n"
        )  # fmt: skip
    assert list(Path("out").iterdir()) == []


def test_a_disk_that_is_full_at_the_end_keeps_all_chunks(stack, monkeypatch):
    Path("whole/y").rename("y")
    for shard in ("1/2", "2/2"):
        with read_only(monkeypatch, "out/x.star"):  # where the finished files are put
            code, out, err = stack(*RECONSTRUCT, "--shard", shard, "--quiet")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "cannot write out/x.mrcs and out/x.star: Read-only file system" in err
    assert not Path("out/x.mrcs").exists()
    assert stack(*RECONSTRUCT, "--quiet") == (0, "", "")
    assert same("out/x.mrcs", "whole/x.mrcs")
    assert {path.name for path in Path("out").iterdir()} == {"x.mrcs", "x.star"}
