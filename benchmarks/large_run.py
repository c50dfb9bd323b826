"""Memory and time of `cryobench run` on a stack that is read chunk by chunk.

For each number of images a stack of white noise is written to a temporary folder, and
`cryobench run -s pinv -o sumpool:16` runs on all of it, twice, as a process of its own: in the second run the digest of
the images is known from the first, so that the finished cell is found without reading them. Times are wall times, with
processor time in brackets. "first" is the time from the start of the process to the first solved batch, "read" the time
of one pass over the file by `FileStack.stream`.

    uv run python benchmarks/large_run.py                  # 2,000 and 20,000 images of 128 x 128 pixels
    uv run python benchmarks/large_run.py --images 500 --size 64
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cryobench.io.writing import write_mrcs
from cryobench.sources.stacks import File

RUN = """
import json, resource, sys, time
from cryobench.cli import main
from cryobench.cli.progress import ProgressObserver

start, first = float(sys.argv[1]), []
progress = ProgressObserver.cell_progress

def noted(self, fraction):
    if not first:
        first.append((time.time() - start, time.process_time()))
    progress(self, fraction)

ProgressObserver.cell_progress = noted
sys.argv = ["cryobench", *sys.argv[2:]]
try:
    main()
finally:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    total = time.time() - start, time.process_time()
    print("measured", json.dumps({"first": first, "total": total, "peak": peak}), file=sys.stderr)
"""


def noise(images: int, size: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    for start in range(0, images, 500):
        yield rng.normal(size=(min(500, images - start), size, size)).astype(np.float32)


def run(stack: Path, images: int, folder: Path) -> dict[str, Any]:
    """first: [(wall, processor)], empty if no batch was solved. total: (wall, processor). peak: resident set, MiB."""
    command = ["run", "-s", "pinv", "-o", "sumpool:16", "--data", str(stack), "--images", f"0:{images}",
               "--format", "csv"]  # fmt: skip
    environment = os.environ | {"CRYOBENCH_CACHE": str(folder / "cache")}
    done = subprocess.run([sys.executable, "-c", RUN, str(time.time()), *command], cwd=folder, env=environment,
                          check=False, capture_output=True, text=True)  # fmt: skip
    found = re.search(r"^measured (.*)$", done.stderr, re.MULTILINE)
    if done.returncode or found is None:
        raise SystemExit(done.stderr)
    return json.loads(found[1])


def seconds(times: Sequence[float]) -> str:
    wall, processor = times
    return f"{wall:.1f} ({processor:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[2_000, 20_000])
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels")
    arguments = parser.parse_args()
    heads = ("images", "read, s", "first, s", "total, s", "peak, MiB", "second run, s", "peak, MiB")
    print("".join(f"{head:>17}" for head in heads))
    for images in arguments.images:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            stack = folder / "noise.mrcs"
            write_mrcs(stack, noise(images, arguments.size), 1.0)
            start = time.perf_counter(), time.process_time()
            for _ in File(str(stack), as_stack=True).open().stream():
                pass
            read = time.perf_counter() - start[0], time.process_time() - start[1]
            one, two = (run(stack, images, folder) for _ in range(2))
            if not one["first"] or two["first"]:
                raise SystemExit("expected that the first run solves the images, and that the second finds the cell")
            row = (
                str(images), seconds(read), seconds(one["first"][0]), seconds(one["total"]), f"{one['peak']:.0f}",
                seconds(two["total"]), f"{two['peak']:.0f}",
            )  # fmt: skip
            print("".join(f"{cell:>17}" for cell in row), flush=True)


if __name__ == "__main__":
    main()
