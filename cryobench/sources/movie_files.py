"""Simulated movies as files: raw frames, gain reference, truths, and tables of micrographs and particles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from cryobench.errors import ParameterError, ResultsError
from cryobench.io.star_text import block_text
from cryobench.io.writing import split_optics, write_mrcs, written
from cryobench.sources.simulate_movies import SimulatedMicrographs, Truth

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image

MovieFormat = Literal["mrcs", "tif"]
_UINT16_MODE = 6
_TRUTHS: tuple[Truth, ...] = ("ice", "particles")


def write_movies(
    stack: SimulatedMicrographs,
    folder: Path,
    suffix: MovieFormat = "mrcs",
    *,
    force: bool = False,
    written_one: Callable[[Path], None] = lambda path: None,
) -> list[Path]:
    """Write every micrograph of a stack to a folder, which is created. Returns the two tables, which are written last.

        movies/NAME.mrcs              raw frames, uint16: MRC mode 6, or with suffix "tif" TIFF (deflate)
        gain.mrc                      gain reference, by which frames are multiplied
        truth/ice/NAME.mrc            expected sum of half of the frames, float32, counts: of particles in rough ice
        truth/particles/NAME.mrc      the same of the particles alone
        movies.star                   movies with CTF and dose
        particles.star                particles with micrograph, coordinates (pixels), poses and CTF

    written_one: called with each movie when it is complete; its truths are then there too. Each file appears whole or
    not at all. Raises `ParameterError` for a ratio other than 1, `ResultsError` for files that exist unless `force`,
    and `DataError` for files that cannot be written.
    """
    if stack.recipe.ratio != 1:
        raise ParameterError(f"the truths of movies are of half of the frames: give ratio=1, not {stack.recipe.ratio}")
    tables = [folder / "movies.star", folder / "particles.star"]
    movies = [folder / "movies" / f"{stack.name(index)}.{suffix}" for index in range(len(stack))]
    existing = [path for path in (*tables, folder / "gain.mrc", *movies) if path.exists()]
    if existing and not force:
        raise ResultsError(f"{existing[0]} exists; give another folder, or --force to replace it")
    places: dict[Truth, Path] = {truth: folder / "truth" / truth for truth in _TRUTHS}
    for place in (folder / "movies", *places.values()):
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResultsError(f"cannot create the folder {place}: {error.strerror}; choose another place") from error
    pixel = stack.recipe.pixel_size
    write_mrcs(folder / "gain.mrc", stack.gain[None], pixel)
    write = _write_mrcs if suffix == "mrcs" else _write_tif
    particles = []
    for index, movie in enumerate(movies):
        for truth, place in places.items():
            write_mrcs(place / f"{stack.name(index)}.mrc", stack.expected(index, truth)[None], pixel)
        with written(movie) as (temporary,):
            write(temporary, stack, stack.frames(index))
        particles.append(stack.particles(index))
        written_one(movie)
    _write_tables(stack, tables, [f"movies/{movie.name}" for movie in movies], particles)
    return tables


def _write_mrcs(path: Path, stack: SimulatedMicrographs, frames: Iterator[np.ndarray]) -> None:
    import mrcfile

    shape = (stack.recipe.frames, *stack.shape)
    with mrcfile.new_mmap(path, shape, mrc_mode=_UINT16_MODE, overwrite=True) as file:
        file.set_image_stack()
        file.voxel_size = stack.recipe.pixel_size
        assert file.data is not None
        for t, frame in enumerate(frames):
            file.data[t] = frame


def _write_tif(path: Path, stack: SimulatedMicrographs, frames: Iterator[np.ndarray]) -> None:
    from PIL import Image

    pages: Iterator[Image] = map(Image.fromarray, frames)
    next(pages).save(path, format="TIFF", save_all=True, append_images=pages, compression="tiff_adobe_deflate")


def _write_tables(
    stack: SimulatedMicrographs, paths: list[Path], names: list[str], particles: list[pd.DataFrame]
) -> None:
    import pandas as pd

    r = stack.recipe
    shared = {"rlnMicrographOriginalPixelSize": r.pixel_size, "rlnMicrographPixelSize": r.pixel_size}
    movies = stack.table.assign(rlnMicrographMovieName=names, rlnMicrographDoseRate=r.dose, **shared)
    found = pd.concat([table.assign(rlnMicrographName=name) for name, table in zip(names, particles, strict=True)],
                      ignore_index=True).assign(**shared)  # fmt: skip
    with written(*paths) as temporary:
        for path, name, table in zip(temporary, ("movies", "particles"), (movies, found), strict=True):
            optics, rows = split_optics(table)
            path.write_text(block_text("optics", optics) + "\n\n" + block_text(name, rows), encoding="utf-8")
