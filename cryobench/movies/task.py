"""Sums movies into a folder of pairs. A chunk is a movie."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from cryobench.io.movies.pair_folder import PairWriter, read_manifest
from cryobench.io.movies.settings import MovieSettings
from cryobench.io.movies.summing import Summer, open_movie
from cryobench.measuring.tasks import Report, Work
from cryobench.sources.movies import found_movies


@dataclass(frozen=True)
class SumTask:
    """Sum movies into the folder `out`. inputs: paths, folders and patterns; if empty, the movies of the folder."""

    inputs: tuple[str, ...]
    settings: MovieSettings
    out: str

    def open(self) -> Summing:
        """Find the movies. Raises a `CryobenchError` for an invalid request before one is summed."""
        return Summing(self)


class Summing(Work):
    """Sums movies into a folder of pairs. task: the same work, for other processes."""

    def __init__(self, task: SumTask):
        out = Path(task.out)
        if task.inputs:
            movies = [os.path.abspath(path) for path in found_movies(task.inputs)]  # noqa: PTH100 - links are kept
        else:
            movies = read_manifest(out)["movies"]
        self.task = replace(task, inputs=())
        self.writer, self._summer = PairWriter(out, movies), Summer(task.settings)
        self.parts = self._parts()

    def _parts(self) -> list[slice]:
        return [slice(number, number + 1) for number in range(len(self.writer.movies))]

    def start(self, *, force: bool = False) -> None:
        """Begin the folder, or continue it; see `PairWriter.start`. Raises `DataError` if the first movie cannot be
        summed by its header."""
        first = open_movie(Path(self.writer.movies[0]))
        self._summer.gain(first)
        self._summer.frames(first)
        self.writer.start(self._summer.settings, force=force)
        self.parts = self._parts()  # those of an earlier run come first

    def todo(self) -> list[int]:
        return self.writer.missing()

    def run(self, chunk: int, report: Report) -> None:
        movie = open_movie(Path(self.writer.movies[chunk]))
        self.writer.write(chunk, self._summer.sum(movie, report), self._summer.settings.dose)

    def finish(self) -> list[Path]:
        """Remove what killed processes left; the pairs are already in their places."""
        self.writer.remove_unfinished()
        return [self.writer.folder]
