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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE

from cryobench.errors import DataError, ResultsError, described
from cryobench.files import discard, read_bounded, sync, whole_file
from cryobench.io.writing import Totals

IMAGES, DEVIATION = "images.mrcs", "deviation.mrcs"
_JOB, _DONE = "job.json", "done"
_LARGEST = 2**20


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

    def write(self, chunk: int, start: int, images: np.ndarray, deviation: np.ndarray | None) -> None:
        """Write the images [n, H, W] of a chunk, of which the first is image `start` of the stack, and their deviation.

        Raises `DataError` for images that are not finite, `ResultsError` if they cannot be written.
        """
        statistics = {}
        with self._writing():
            for name, block in ((IMAGES, images), (DEVIATION, deviation)):
                if block is not None:
                    statistics[name] = asdict(self._put(name, start, block))
            with whole_file(self.folder / _DONE / f"{chunk:06d}.json") as beside:
                beside.write_text(json.dumps(statistics))

    def _put(self, name: str, start: int, images: np.ndarray) -> Totals:
        block = np.ascontiguousarray(images, dtype="<f4")
        totals = Totals()
        totals.add(block, self.path)
        handle = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            data, offset = block.data.cast("B"), HEADER_DTYPE.itemsize + start * block[0].nbytes
            while data:
                written = os.pwrite(handle, data, offset)
                data, offset = data[written:], offset + written
            os.fsync(handle)
        finally:
            os.close(handle)
        return totals

    def complete(self, chunks: int, pixel_size: float | None) -> dict[str, Path]:
        """Write the headers. Returns the finished files by name: the images, and their deviation if every chunk has it.

        Raises `DataError` if one of the `chunks` is not on disk.
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
                    stack.write(totals[name].header(pixel_size, self.path).tobytes())
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

    def remove(self) -> None:
        """Remove the folder."""
        discard(self.folder)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ResultsError(f"cannot write {self.path}: {error.strerror}; free space") from error
