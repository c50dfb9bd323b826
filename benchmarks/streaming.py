"""How fast a stack of images streams, against the disk itself and against mrcfile.

Four ways through one MRC stack of float32, in turn: `file.read` in requests of 16 MiB into one buffer, which is as fast
as a program can be given the bytes; dd; ours (`FileStack.stream`, which also checks that every pixel is finite); and
`mrcfile.mmap`, copying the same chunks. MB/s are medians over rounds; a ratio is that of the seconds of a round.

    uv run python benchmarks/streaming.py                  # makes a stack of 2 GB in the temporary folder
    uv run python benchmarks/streaming.py particles.mrcs --cold

Without --cold the file comes from the page cache after a first pass, which is the hard case: memory is faster than any
disk, and what a reader does beside reading shows. --cold drops the file from the cache before every pass (Linux).
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mrcfile
import numpy as np

from cryobench.io.streaming import CHUNK_BYTES
from cryobench.io.writing import write_mrcs
from cryobench.sources.stacks import File


def plain(path: Path) -> None:
    buffer = bytearray(CHUNK_BYTES)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def dd(path: Path) -> None:
    subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=16M"], check=True, stderr=subprocess.DEVNULL)


def ours(path: Path) -> None:
    for _ in File(str(path), as_stack=True).open().stream():
        pass


def mapped(path: Path) -> None:
    with mrcfile.mmap(path, permissive=True) as mrc:
        assert mrc.data is not None
        count = max(1, CHUNK_BYTES // mrc.data[0].nbytes)
        for start in range(0, len(mrc.data), count):
            np.array(mrc.data[start : start + count], dtype=np.float32)


def noise(gigabytes: float, side: int = 256) -> Iterator[np.ndarray]:
    """Chunks of images, written with `write_mrcs`; the same noise again and again, which no reader notices."""
    chunk = np.random.default_rng(0).normal(size=(64, side, side)).astype(np.float32)
    for _ in range(max(1, round(gigabytes * 1e9 / chunk.nbytes))):
        yield chunk


def seconds(way: Callable[[Path], None], path: Path, *, cold: bool) -> float:
    if cold:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    start = time.perf_counter()
    way(path)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, help="an MRC stack of float32; without one, it is made")
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the stack that is made")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="drop the file from the page cache before every pass")
    arguments = parser.parse_args()
    ways = {"file.read": plain, "dd": dd, "ours": ours, "mrcfile.mmap": mapped}
    if shutil.which("dd") is None:
        del ways["dd"]
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.path or Path(folder) / "noise.mrcs"
        if arguments.path is None:
            write_mrcs(path, noise(arguments.gigabytes), 1.0)
            with path.open("rb") as file:
                os.fsync(file.fileno())  # pages that are not on the disk yet cannot be dropped
        megabytes = path.stat().st_size / 1e6
        seconds(plain, path, cold=arguments.cold)
        rounds = [
            {name: seconds(way, path, cold=arguments.cold) for name, way in ways.items()}
            for _ in range(arguments.rounds)
        ]
    print(f"{megabytes:.0f} MB, {'cold' if arguments.cold else 'from the page cache'}, {arguments.rounds} rounds")
    print(f"{'':14}{'MB/s':>8}  speed over file.read")
    for name in ways:
        speed = statistics.median(megabytes / one[name] for one in rounds)
        ratio = statistics.median(one["file.read"] / one[name] for one in rounds)
        print(f"{name:14}{speed:8.0f}  {ratio:.2f}")


if __name__ == "__main__":
    main()
