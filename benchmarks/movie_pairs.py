"""Speed of random windows of pairs: from a folder of pairs, from a bare memory-mapped read of the same bytes, and from
the frames.

    uv run python benchmarks/movie_pairs.py                        # 4 movies of 40 frames of 4096 x 4096 pixels, 3 GB
    uv run python benchmarks/movie_pairs.py --cold                 # drops the files from the cache before every pass
    uv run python benchmarks/movie_pairs.py --side 1024 --frames 4 # a quick look

Each method reads the same random windows of 1024 x 1024 pixels of both halves, in turn, in one process with one thread.
"folder" is `PairFolder.read`. "bare" reads the same bytes from mapped arrays and converts both halves to float32, which
every network needs; "bare copy" leaves them as stored. "frames" sums the window over the mapped frames of a plain
movie, without corrections. Pairs per second and ratios are medians over rounds; a ratio compares the times of a round.
From the page cache the times are processor times, which other processes disturb less; with --cold they are wall times.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import torch

from cryobench.io.movies.pair_folder import PairFolder
from cryobench.io.movies.settings import MovieSettings
from cryobench.io.mrc_header import HEADER_BYTES
from cryobench.movies.task import SumTask

WINDOW = 1024
Windows = list[tuple[int, tuple[slice, slice]]]
Method = Callable[[Windows], None]


def write_movie(path: Path, frames: int, side: int, seed: int) -> None:
    """Frames of counts of mean 1: one random frame, moved along by another number of pixels for each."""
    base = np.random.default_rng(seed).poisson(1.0, side * side).astype(np.int8)
    with mrcfile.new_mmap(path, (frames, side, side), mrc_mode=0) as file:
        for number in range(frames):
            file.data[number] = np.roll(base, 977 * number).reshape(side, side)
        file.set_image_stack()


def sums(movies: Path, out: Path, **settings: object) -> float:
    """Write a folder of pairs; the seconds for each movie."""
    work = SumTask((str(movies / "*.mrc"),), MovieSettings(**settings), str(out)).open()  # pyright: ignore
    work.start()
    start = time.perf_counter()
    for chunk in work.todo():
        work.run(chunk, lambda fraction: None)
    return (time.perf_counter() - start) / len(work.parts)


def folder(path: Path) -> Method:
    def read(windows: Windows) -> None:
        pairs = PairFolder(path)
        for index, window in windows:
            pairs.read(index, window)

    return read


def mapped(path: Path, side: int, *, convert: bool = True) -> Method:
    """The bare read of a folder: windows of mapped arrays, those of counts and gain as they are, float16 by torch."""

    def read(windows: Windows) -> None:
        dtype = np.dtype("<f2" if path.name == "float16" else "<u2")
        files = sorted(path.glob("*.mrcs"))
        arrays = [np.memmap(file, dtype, "r", HEADER_BYTES, (2, side, side)) for file in files]
        gains = [np.memmap(file, "<f4", "r", HEADER_BYTES, (side, side)) for file in path.glob("gain-*.mrc")]
        for index, (rows, columns) in windows:
            part = arrays[index][:, rows, columns]
            if not convert:
                np.array(part)
            elif dtype == "<f2":
                torch.from_numpy(np.array(part)).float()
            else:
                part.astype(np.float32)
            for gain in gains:
                np.array(gain[rows, columns])

    return read


def frames(movies: Path, count: int, side: int) -> Method:
    def read(windows: Windows) -> None:
        arrays = [
            np.memmap(file, "i1", "r", HEADER_BYTES, (count, side, side)) for file in sorted(movies.glob("*.mrc"))
        ]
        for index, (rows, columns) in windows:
            part = arrays[index][:, rows, columns]
            np.stack([part[half::2].sum(axis=0, dtype=np.float32) for half in (0, 1)])

    return read


def drop(path: Path) -> None:
    """Drop the files of a folder from the page cache."""
    for file in path.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--movies", type=int, default=4)
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--windows", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="drop the files from the page cache before every pass")
    parser.add_argument("--folder", type=Path, help="folder for the files; default: a temporary one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    side, rng = arguments.side, np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        root = Path(name)
        movies = root / "movies"
        movies.mkdir()
        for number in range(arguments.movies):
            write_movie(movies / f"{number}.mrc", arguments.frames, side, number)
        gain = root / "gain.mrc"
        with mrcfile.new(gain) as file:
            file.set_data(rng.normal(1, 0.05, (side, side)).astype(np.float32))
        made = {"counts": {"hot": 0.0}, "counts, gain": {"gain": str(gain)}, "float16": {"bin": 1.0001}}
        seconds = {what: sums(movies, root / what, **settings) for what, settings in made.items()}
        methods: dict[str, tuple[Method, str, Path]] = {}
        for what in made:
            where = root / what
            methods[f"bare copy, {what}"] = mapped(where, side, convert=False), f"bare, {what}", where
            methods[f"bare, {what}"] = mapped(where, side), f"bare, {what}", where
            methods[f"folder, {what}"] = folder(where), f"bare, {what}", where
        methods["frames"] = frames(movies, arguments.frames, side), "bare, counts", movies
        clock = time.perf_counter if arguments.cold else time.process_time
        times: list[dict[str, float]] = []
        for _ in range(arguments.rounds + 1):
            corners = rng.integers(0, side - WINDOW + 1, (arguments.windows, 2)).tolist()
            windows = [(number % arguments.movies, (slice(top, top + WINDOW), slice(left, left + WINDOW)))
                       for number, (top, left) in enumerate(corners)]  # fmt: skip
            one = {}
            for what, (method, _, where) in methods.items():
                chosen = windows[: max(1, len(windows) // 10)] if what == "frames" else windows
                if arguments.cold:
                    drop(where)
                start = clock()
                method(chosen)
                one[what] = (clock() - start) / len(chosen)
            times.append(one)
    print(f"{arguments.movies} movies of {arguments.frames} frames, {side} x {side} pixels, "
          f"{'cold' if arguments.cold else 'from the page cache'}, {arguments.rounds} rounds")  # fmt: skip
    for what, spent in seconds.items():
        print(f"sum to {what}: {spent:.1f} s a movie")
    print(f"{'':28}{'pairs/s':>8}  ratio")
    for what, (_, against, _) in methods.items():
        speed = statistics.median(1 / one[what] for one in times[1:])
        ratio = statistics.median(one[against] / one[what] for one in times[1:])
        print(f"{what:28}{speed:8.0f}  {ratio:.2f}")


if __name__ == "__main__":
    main()
