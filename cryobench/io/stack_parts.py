"""A stack that processes write in place, chunk by chunk, and that appears when it is complete.

    FOLDER/job.json             what is written, so that only the same command continues
    FOLDER/images.mrcs          the stack, with its header written last
    FOLDER/deviation.mrcs       a second one of the same shape
    FOLDER/done/000012.json     the statistics of chunk 12: its images are on disk

A chunk is at a fixed offset, so that processes can write to one file in any order.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE

from cryobench.errors import DataError, ResultsError, described
from cryobench.files import discard, read_bounded, sync, whole_file
from cryobench.io.writing import Totals

IMAGES, DEVIATION = "images.mrcs", "deviation.mrcs"
_JOB, _DONE, _GIVING = "job.json", "done", "giving"
_LARGEST = 2**20
_WAITING = 2
"""Batches that wait to be written while the next one is computed."""


class _Part:
    """Images at their place in the file of a stack, whose path errors name. The file is created by the first ones."""

    def __init__(self, file: Path, start: int, stack: Path):
        self._file, self._next, self._stack = file, start, stack
        self._handle: int | None = None
        self.totals = Totals()

    def __enter__(self) -> _Part:
        return self

    def add(self, images: np.ndarray) -> None:
        """Write further images [n, H, W]."""
        block = np.ascontiguousarray(images, dtype="<f4")
        self.totals.add(block, self._stack)
        if self._handle is None:
            self._handle = os.open(self._file, os.O_WRONLY | os.O_CREAT, 0o666)
        data, offset = block.data.cast("B"), HEADER_DTYPE.itemsize + self._next * block[0].nbytes
        while data:
            written = os.pwrite(self._handle, data, offset)
            data, offset = data[written:], offset + written
        self._next += len(block)

    def sync(self) -> None:
        """Have the images on disk."""
        if self._handle is not None:
            os.fsync(self._handle)

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            os.close(self._handle)


class StackParts:
    """The unfinished stack in a hidden folder beside `path`. shape: (H, W) of all images."""

    def __init__(self, path: Path, shape: Sequence[int]):
        self.path, self.shape = path, tuple(shape)
        self.folder = path.with_name(f".{path.name}.parts")

    def start(self, job: Mapping[str, Any], *, force: bool = False) -> None:
        """Begin a stack, or continue one that was begun with the same `job`, plain data.

        force: discard one that was begun with another job. Raises `ResultsError` if that is so without `force`.
        """
        text = json.dumps(job, sort_keys=True, indent=1)
        with self._writing():
            try:
                begun = read_bounded(self.folder / _JOB, _LARGEST).decode(errors="replace")
            except FileNotFoundError:
                begun = None
            if begun is not None and begun != text:
                if self.done() and not force:
                    raise ResultsError(f"{self.folder} holds an unfinished stack of another command; run that command "
                                       "again to finish it, or give --force to discard it")  # fmt: skip
                discard(self.folder)
                begun = None
            if begun is None:
                (self.folder / _DONE).mkdir(parents=True, exist_ok=True)
                with whole_file(self.folder / _JOB) as beside:
                    beside.write_text(text)

    def done(self) -> set[int]:
        """The chunks that are on disk."""
        return {int(path.stem) for path in (self.folder / _DONE).glob("*.json")}

    def write(self, chunk: int, start: int, batches: Iterable[tuple[np.ndarray, np.ndarray | None]]) -> None:
        """Write the images of a chunk, of which the first is image `start` of the stack, and their deviation.

        batches: images [n, H, W] and their deviation, or None, in order. A batch is written while the next one is
        computed. Raises `DataError` for images that are not finite, `ResultsError` if they cannot be written.
        """
        with self._writing(), ExitStack() as files:
            written = {name: files.enter_context(_Part(self.folder / name, start, self.path))
                       for name in (IMAGES, DEVIATION)}  # fmt: skip
            thread = files.enter_context(ThreadPoolExecutor(1))
            count, pending = 0, deque[Future[None]]()
            for images, deviation in batches:
                count += len(images)
                for name, block in ((IMAGES, images), (DEVIATION, deviation)):
                    if block is not None:
                        pending.append(thread.submit(written[name].add, block))
                while len(pending) > _WAITING:
                    pending.popleft().result()
            for each in pending:
                each.result()
            complete = {name: part for name, part in written.items() if part.totals.count == count}
            for part in complete.values():
                part.sync()
            with whole_file(self.folder / _DONE / f"{chunk:06d}.json") as beside:
                beside.write_text(json.dumps({name: asdict(part.totals) for name, part in complete.items()}))

    def complete(self, chunks: int, header: Callable[[Totals], np.ndarray]) -> dict[str, Path]:
        """Write the headers. Returns the finished files by name: the images, and their deviation if every chunk has it.

        header: that of a file with these statistics. Raises `DataError` if one of the `chunks` is not on disk.
        """
        totals: dict[str, Totals] = {}
        counts: dict[str, int] = {}
        with self._writing():
            for chunk in range(chunks):
                try:
                    statistics = json.loads(read_bounded(self.folder / _DONE / f"{chunk:06d}.json", _LARGEST))
                    for name, values in statistics.items():
                        values["shape"] = tuple(values["shape"])
                        totals.setdefault(name, Totals()).merge(Totals(**values))
                        counts[name] = counts.get(name, 0) + 1
                except (OSError, ValueError, TypeError, KeyError) as error:
                    raise DataError(
                        f"{self.folder}: chunk {chunk} of the stack cannot be read: {described(error)}"
                    ) from error
            finished = {name: self.folder / name for name in totals if counts[name] == chunks}
            for name, file in finished.items():
                with file.open("r+b") as stack:
                    stack.write(header(totals[name]).tobytes())
                sync(file)
        return finished

    def give(self, finished: Path, place: Path) -> None:
        """Put a finished file at `place` too. It stays here until `remove`, so that a kill in between loses nothing."""
        with self._writing():
            place.unlink()
            try:
                place.hardlink_to(finished)
            except OSError:  # a file system without hard links
                shutil.copyfile(finished, place)

    def gave(self, place: Path) -> bool:
        """Whether the file at `place` is one that `give` put there before its process was killed, as a hard link."""
        files = [self.folder / name for name in (IMAGES, DEVIATION)]
        return place.exists() and any(file.exists() and file.samefile(place) for file in files)

    def begin_giving(self) -> None:
        """Note that files are put at their places from now on, so that what is there is of this command."""
        with self._writing():
            (self.folder / _GIVING).touch()

    @property
    def giving(self) -> bool:
        """Whether files may be at their places: the process was killed after `begin_giving` and before `remove`."""
        return (self.folder / _GIVING).exists()

    def remove(self) -> None:
        """Remove the folder."""
        discard(self.folder)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ResultsError(f"cannot write {self.path}: {error.strerror}; free space") from error
