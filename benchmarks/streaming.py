"""Speed of streaming a stack of images, compared with reading the file and with mrcfile.

Four methods read one MRC stack of float32, in turn: `file.read` in requests of 16 MiB into one buffer, an upper bound
on the speed; dd; ours (`FileStack.stream`, which also checks that every pixel is finite); and `mrcfile.mmap`, copying
chunks of the same size. MB/s and ratios are medians over rounds; a ratio compares the times of one round.

    uv run python benchmarks/streaming.py                  # writes a stack of 2 GB to the temporary folder
    uv run python benchmarks/streaming.py particles.mrcs --cold

Without --cold the file is read from the page cache after a first pass. This is the hard case: memory is faster than any
disk, so the overhead of a reader is visible. --cold drops the file from the cache before every pass (Linux).
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


def file_read(path: Path) -> None:
    buffer = bytearray(CHUNK_BYTES)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def dd(path: Path) -> None:
    subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=16M"], check=True, stderr=subprocess.DEVNULL)


def ours(path: Path) -> None:
    for _ in File(str(path), as_stack=True).open().stream():
        pass


def mrcfile_mmap(path: Path) -> None:
    with mrcfile.mmap(path, permissive=True) as mrc:
        assert mrc.data is not None
        count = max(1, CHUNK_BYTES // mrc.data[0].nbytes)
        for start in range(0, len(mrc.data), count):
            np.array(mrc.data[start : start + count], dtype=np.float32)


def noise(gigabytes: float, side: int = 256) -> Iterator[np.ndarray]:
    """Chunks of images, [64, side, side] each, the same noise repeated."""
    chunk = np.random.default_rng(0).normal(size=(64, side, side)).astype(np.float32)
    for _ in range(max(1, round(gigabytes * 1e9 / chunk.nbytes))):
        yield chunk


def seconds(method: Callable[[Path], None], path: Path, *, cold: bool) -> float:
    if cold:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    start = time.perf_counter()
    method(path)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, help="an MRC stack of float32; default: a synthetic one")
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the synthetic stack")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="drop the file from the page cache before every pass")
    arguments = parser.parse_args()
    methods = {"file.read": file_read, "dd": dd, "ours": ours, "mrcfile.mmap": mrcfile_mmap}
    if shutil.which("dd") is None:
        del methods["dd"]
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.path or Path(folder) / "noise.mrcs"
        if arguments.path is None:
            write_mrcs(path, noise(arguments.gigabytes), 1.0)
            with path.open("rb") as file:
                os.fsync(file.fileno())  # pages not yet on the disk cannot be dropped
        megabytes = path.stat().st_size / 1e6
        seconds(file_read, path, cold=arguments.cold)
        rounds = [
            {name: seconds(method, path, cold=arguments.cold) for name, method in methods.items()}
            for _ in range(arguments.rounds)
        ]
    print(f"{megabytes:.0f} MB, {'cold' if arguments.cold else 'from the page cache'}, {arguments.rounds} rounds")
    print(f"{'':14}{'MB/s':>8}  speed relative to file.read")
    for name in methods:
        speed = statistics.median(megabytes / one[name] for one in rounds)
        ratio = statistics.median(one["file.read"] / one[name] for one in rounds)
        print(f"{name:14}{speed:8.0f}  {ratio:.2f}")


if __name__ == "__main__":
    main()
