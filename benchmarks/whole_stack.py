"""Memory and time of `measure` and `reconstruct` on a whole stack, and how much faster two workers are.

    uv run python benchmarks/whole_stack.py                  # 200,000 particles of 64 x 64, 10 GB on the disk
    uv run python benchmarks/whole_stack.py --particles 5000 --solved 128
    uv run python benchmarks/whole_stack.py --part workers   # needs two cores that nothing else uses

Part `memory`: `measure` with sum pooling and `reconstruct` with `pinv`, each a process of its own with one thread.
"peak" is the largest resident set of one process, children included. A bare loop with the same operator, solver and
batches reads the images, measures them and writes y, then reads y, solves and writes the images, with numpy and nothing
else: no tables, checks, checksums or chunks. "ratio" is the time of the command, start-up included, over that of the
loop.

Part `workers`: `reconstruct` of `--solved` of these particles with `--solver`, in one process and on two workers, one
thread of torch in each. The stacks must have the same SHA-256.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import psutil
import torch

import cryobench as cb
from cryobench.core import Problem, Scale
from cryobench.io.writing import Totals
from cryobench.measuring.container import default_chunk
from cryobench.measuring.reconstruct import default_batch
from cryobench.registry import installed
from cryobench.rng import Rng

SIDE, OPERATOR, HEADER = 64, "sumpool:4", 1024
MEASURED_AT_ONCE = 64
"""Images that `measure` measures at once."""
REPEATED = 2000
"""Different images; the stack repeats them."""
EXECUTORS = ("local", "processes:2", "dask:2")
COMMAND = (sys.executable, "-c", "from cryobench.cli import command; command()")


@dataclass(frozen=True)
class Cost:
    """seconds: wall time. cpu: processor seconds, children included. peak: largest resident set of a process, GiB."""

    seconds: float
    cpu: float
    peak: float

    def __str__(self) -> str:
        return f"{self.seconds:9.1f}{self.cpu:9.1f}{self.peak:11.2f}"


def write_stack(path: Path, count: int) -> None:
    """A stack of white noise."""
    block = np.random.default_rng(0).normal(size=(min(count, REPEATED), SIDE, SIDE)).astype("<f4")
    totals = Totals()
    totals.add(block, path)
    header = totals.header(2.0, path)
    header["nz"] = count
    with path.open("wb") as file:
        file.write(header.tobytes())
        for start in range(0, count, len(block)):
            file.write(block[: count - start].data)


def run(*command: str | Path) -> Cost:
    """The cost of a process and its children, in a session of one thread each."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    before, start = os.times(), time.perf_counter()
    process = psutil.Popen([*map(str, command)], env=os.environ | one)
    peaks = [0.0]
    watcher = threading.Thread(target=_watch, args=(process, peaks))
    watcher.start()
    code = process.wait()
    seconds, after = time.perf_counter() - start, os.times()
    watcher.join()
    if code != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: exit code {code}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Cost(seconds, cpu, max(peaks))


def _watch(process: psutil.Process, peaks: list[float]) -> None:
    """Append the peaks so far of a process and its children, in GiB, until it ends."""
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        with contextlib.suppress(psutil.NoSuchProcess, OSError):  # one has just ended
            peaks += [_peak(each.pid) for each in (process, *process.children(recursive=True))]
        time.sleep(0.05)


def _peak(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith("VmHWM:")), 0.0)


def bare(images: Path, y: Path, out: Path, count: int) -> None:
    """Print the seconds, wall and processor, of reading, measuring and writing, and of reading, solving and writing."""
    operator, solver = cb.operator(OPERATOR, shape=(SIDE, SIDE)), cb.solver("pinv")
    operator.prepare()
    noise = installed().make("noises", "none")
    chunk, batch = default_chunk((SIDE, SIDE)), default_batch((SIDE, SIDE))
    offsets, factors = [], []

    def measure() -> None:
        for x, file in _blocks(images, y, count, (SIDE, SIDE), chunk, HEADER):
            for start in range(0, len(x), MEASURED_AT_ONCE):
                part = x[start : start + MEASURED_AT_ONCE]
                low, high = (find((1, 2))[:, None, None].astype(np.float64) for find in (part.min, part.max))
                offsets.append((low + high) / 2)
                factors.append((high - low) / 2)
                scaled = ((part - offsets[-1]) / factors[-1]).astype(np.float32)
                file.write(operator.A(torch.from_numpy(scaled).unsqueeze(1)).numpy().tobytes())

    def reconstruct() -> None:
        offset, factor = (torch.from_numpy(np.concatenate(found).ravel()) for found in (offsets, factors))
        first = 0
        for block, file in _blocks(y, out, count, operator.measurement_shape, chunk, 0):
            for start in range(0, len(block), batch):
                given = torch.from_numpy(block[start : start + batch])
                own = slice(first, first + len(given))
                ids = tuple(map(str, range(own.start, own.stop)))
                scale = Scale(offset[own], factor[own], (-1, 1), "minmax")
                sigma = torch.zeros(len(given), 1, 1, 1)
                x = solver.solve(Problem(operator, given, noise, sigma, scale), rng=Rng(0, ids)).x
                file.write(scale.to_file(x).float().numpy().tobytes())
                first += len(given)

    times = {}
    for part in (measure, reconstruct):
        start, busy = time.perf_counter(), time.process_time()
        part()
        times[part.__name__] = time.perf_counter() - start, time.process_time() - busy
    print(json.dumps(times))


def _blocks(
    source: Path, to: Path, count: int, shape: tuple[int, ...], chunk: int, header: int
) -> Iterator[tuple[np.ndarray, BinaryIO]]:
    """Arrays [n, *shape] of a file of float32, and the file to write to, which is on disk at the end."""
    with source.open("rb") as file, to.open("wb") as written:
        file.seek(header)
        for start in range(0, count, chunk):
            n = min(chunk, count - start)
            yield np.fromfile(file, "<f4", n * math.prod(shape)).reshape(n, *shape), written
        written.flush()
        os.fsync(written.fileno())


def memory(folder: Path, count: int) -> None:
    """Print peak memory and time of both commands, and their ratio to a bare loop."""
    stack, y, x = folder / "particles.mrcs", folder / "y", folder / "x.mrcs"
    print(f"{count} particles of {SIDE} x {SIDE}, {OPERATOR}, pinv, one thread")
    print(f"{'':14}{'wall, s':>9}{'CPU, s':>9}{'peak, GiB':>11}{'ratio':>8}{'of CPU':>8}", flush=True)
    own = (folder / "y.raw", folder / "x.raw")
    command = (sys.executable, __file__, "--bare", stack, *own, "--particles", count)
    found = subprocess.run([*map(str, command)], check=True, stdout=subprocess.PIPE, text=True,
                           env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    alone = json.loads(found.stdout)
    costs = {
        "measure": run(*COMMAND, "measure", "-o", OPERATOR, "-d", stack, "--as-stack", "--out", y, "--quiet"),
        "reconstruct": run(*COMMAND, "reconstruct", y, "-s", "pinv", "--out", x, "--quiet"),
    }
    written = np.memmap(x, "<f4", "r", HEADER, (count, SIDE, SIDE))[-REPEATED:]
    expected = np.memmap(own[1], "<f4", "r", 0, (count, SIDE, SIDE))[-REPEATED:]
    assert np.allclose(written, expected, atol=1e-5), "the bare loop gives other images"
    for name, cost in costs.items():
        seconds, cpu = alone[name]
        print(f"{name:14}{cost}{cost.seconds / seconds:8.2f}{cost.cpu / cpu:8.2f}")
    seconds, cpu = (sum(values) for values in zip(*alone.values(), strict=True))
    total = [sum(getattr(cost, what) for cost in costs.values()) for what in ("seconds", "cpu")]
    print(f"{'both':14}{total[0]:9.1f}{total[1]:9.1f}{'':11}{total[0] / seconds:8.2f}{total[1] / cpu:8.2f}")
    print(f"{'bare loop':14}{seconds:9.1f}{cpu:9.1f}", flush=True)


def workers(folder: Path, solved: int, chunk: int, solver: str) -> None:
    """Print the time of a stack in one process and on two workers. Raises `SystemExit` for stacks that differ."""
    y = folder / "few"
    run(*COMMAND, "measure", "-o", OPERATOR, "-n", "gaussian:rel=0.1", "-d", folder / "particles.mrcs", "--as-stack",
        "--images", f"0:{solved}", "--chunk", str(chunk), "--out", y, "--quiet")  # fmt: skip
    print(f"\n{solved} particles, chunks of {chunk}, {solver}, one thread in each process")
    print(f"{'':14}{'wall, s':>9}{'CPU, s':>9}{'peak, GiB':>11}{'speed':>8}", flush=True)
    first: tuple[float, str] | None = None
    for executor in EXECUTORS:
        out = folder / f"{executor.partition(':')[0]}.mrcs"
        cost = run(*COMMAND, "reconstruct", y, "-s", solver, "--executor", executor, "--threads", "1", "--out", out,
                   "--quiet")  # fmt: skip
        with out.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        first = first or (cost.seconds, digest)
        if digest != first[1]:
            raise SystemExit(f"{executor} gives another stack: SHA-256 {digest}, not {first[1]}")
        print(f"{executor:14}{cost}{first[0] / cost.seconds:8.2f}", flush=True)
    print(f"the same stack each time, SHA-256 {first[1] if first else ''}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--particles", type=int, default=200_000)
    parser.add_argument("--part", choices=("memory", "workers"), help="default: both")
    parser.add_argument("--solver", default="tv:steps=200,tol=0", help="of the part `workers`")
    parser.add_argument("--solved", type=int, default=2048, help="images of the part `workers`")
    parser.add_argument("--chunk", type=int, default=64, help="images of a chunk in the part `workers`")
    parser.add_argument("--folder", type=Path, help="for the files; default: that of temporary files")
    parser.add_argument("--bare", type=Path, nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.bare:
        images, y, out = given.bare
        bare(images, y, out, given.particles)
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        write_stack(folder / "particles.mrcs", max(given.particles if given.part != "workers" else 0, given.solved))
        if given.part != "workers":
            memory(folder, given.particles)
        if given.part != "memory":
            workers(folder, given.solved, given.chunk, given.solver)


if __name__ == "__main__":
    main()
