"""The source `movies`: micrographs summed from the frames of movies when they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np

from cryobench.core import Source
from cryobench.core.operator import Window
from cryobench.core.pairs import Pairs
from cryobench.errors import ParameterError
from cryobench.io.movies.movie import Movie
from cryobench.io.movies.pair_folder import names_of
from cryobench.io.movies.settings import MovieSettings
from cryobench.io.movies.summing import READERS, Summer, open_movie
from cryobench.io.movies.windows import checked
from cryobench.io.paths import matching_files
from cryobench.io.scaling import digest_of
from cryobench.sources.pairs import PairStack


@dataclass(frozen=True, kw_only=True)
class Movies(MovieSettings, Source):
    """Micrographs in two halves: the sums of the odd and of the even frames of movies.

    A micrograph is summed when it is read, from all frames. To read windows of many, sum them once: `cryobench movies
    sum`.
    """

    paths: Annotated[
        tuple[str, ...],
        f"movies ({', '.join(READERS)}), folders of them, or patterns; several in double quotes, with commas",
    ]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.paths:
            raise ParameterError('movies: no path was given; expected movies, such as movies:"data/*.tif"')

    def open(self) -> PairStack:
        """Find the movies. Raises `DataError` if there are none, or the first or the gain reference cannot be read."""
        settings = MovieSettings(**{field.name: getattr(self, field.name) for field in fields(MovieSettings)})
        return PairStack(MoviePairs(found_movies(self.paths), settings))


def found_movies(paths: Sequence[str]) -> list[Path]:
    """The movies that paths, folders and patterns name. Raises `DataError` if there are none."""
    return [path for text in paths for path in matching_files(text, tuple(READERS), "movies")]


class MoviePairs(Pairs):
    """The halves of movies, each summed when it is read; the last is kept."""

    def __init__(self, movies: Sequence[Path], settings: MovieSettings):
        self._movies, self._settings = list(movies), settings
        self._names = names_of([str(movie) for movie in movies])
        self.label = movies[0].name + (f" and {len(movies) - 1} more" if len(movies) > 1 else "")
        self._summer = Summer(settings)
        self._movie = lru_cache(maxsize=None)(self._opened)
        self._images = lru_cache(maxsize=1)(self._summed)
        first = self._movie(0)
        self._summer.gain(first)
        self._summer.frames(first)

    def __reduce__(self):
        return MoviePairs, (self._movies, self._settings)

    def __len__(self) -> int:
        return len(self._movies)

    def name(self, index: int) -> str:
        return self._names[index]

    def shape(self, index: int) -> tuple[int, int]:
        return self._summer.shape(self._movie(index))

    def pixel_size(self, index: int) -> float | None:
        return self._summer.pixel_size(self._movie(index))

    def read(self, index: int, window: Window | None = None) -> np.ndarray:
        rows, columns = checked(window, self.shape(index))
        return self._images(index)[:, rows, columns].copy()

    def files(self, index: int) -> list[Path]:
        corrections = [self._settings.gain, self._settings.defects]
        return [self._movies[index], *(Path(path).expanduser() for path in corrections if path is not None)]

    def digests(self, index: int) -> tuple[str, str]:
        odd, even = self._images(index)
        path = self._movies[index]
        return digest_of(odd, f"the odd half of {path}"), digest_of(even, f"the even half of {path}")

    def _opened(self, index: int) -> Movie:
        return open_movie(self._movies[index])

    def _summed(self, index: int) -> np.ndarray:
        return self._summer.sum(self._movie(index)).images
