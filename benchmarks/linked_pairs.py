"""Memory and time of training on 2 TB of pairs: links to two simulated micrographs of 4096 x 4096 pixels.

    uv run python benchmarks/linked_pairs.py                          # 2 minutes of a core, 0.3 GB of disk
    uv run python benchmarks/linked_pairs.py --terabytes 0.1 --steps 2

The micrographs are simulated ones of 1024 x 1024 pixels side by side, summed to a folder of pairs. Folders with links
to their files hold 100, and as many as --terabytes. `cryobench train --objective noise2noise --preload none` runs
on each in a process of its own: "peak" is its largest resident set, which includes torch and mapped pages of the files.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mrcfile
import numpy as np

from cryobench.io.movies.pair_folder import MANIFEST
from cryobench.io.movies.settings import MovieSettings
from cryobench.movies.task import SumTask
from cryobench.sources.simulate_movies import SimulateMovies

SIDE, PART, MICROGRAPHS = 4096, 1024, 2
FEW = 100
"""Pairs of the small set: more than are open at once, since mapped pages count as memory of the process."""


def write_pairs(root: Path) -> Path:
    """A folder of `MICROGRAPHS` pairs."""
    stack = SimulateMovies("3mht", count=MICROGRAPHS, size=PART, frames=4, dose=12.5, gain=0.0).open()
    for index in range(MICROGRAPHS):
        with mrcfile.new_mmap(root / f"{index}.mrc", (4, SIDE, SIDE), mrc_mode=6) as file:
            for number, frame in enumerate(stack.frames(index)):
                file.data[number] = np.tile(frame, (SIDE // PART, SIDE // PART))
            file.set_image_stack()
    work = SumTask((str(root / "*.mrc"),), MovieSettings(), str(root / "pairs")).open()
    work.start()
    for chunk in work.todo():
        work.run(chunk, lambda fraction: None)
    return root / "pairs"


def link(pairs: Path, folder: Path, count: int) -> None:
    """A folder of `count` pairs that are links to those of another."""
    folder.mkdir()
    manifest = json.loads((pairs / MANIFEST).read_text())
    manifest["movies"] = [f"{number:06d}.mrc" for number in range(count)]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    for number in range(count):
        for suffix in (".mrcs", ".json"):
            (folder / f"{number:06d}{suffix}").symlink_to(pairs / f"{number % MICROGRAPHS}{suffix}")


def train(folder: Path, out: Path, steps: int) -> tuple[float, float, float]:
    """Peak memory in MiB, seconds and processor seconds of a run."""
    command = [sys.executable, "-m", "cryobench", "train", "--objective", "noise2noise", "--data", folder, "--out", out,
               "--steps", steps, "--batch", 2, "--patch", 64, "--preload", "none"]  # fmt: skip
    start = time.perf_counter()
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(list(map(str, command)), text=True, **pipes) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(said)
    return usage.ru_maxrss / 1024, time.perf_counter() - start, usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--terabytes", type=float, default=2.0)
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        pairs = write_pairs(root)
        size = (pairs / "0.mrcs").stat().st_size
        for count in (FEW, round(arguments.terabytes * 1e12 / size)):
            folder = root / f"links-{count}"
            link(pairs, folder, count)
            peak, seconds, processor = train(folder, root / f"network-{count}", arguments.steps)
            stored = f"{count} pairs, {count * size / 1e12:.4f} TB"
            print(f"{stored}: peak {peak:.0f} MiB, {seconds:.1f} s, {processor:.1f} s of a processor", flush=True)


if __name__ == "__main__":
    main()
