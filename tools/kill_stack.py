"""Kill `measure` and `reconstruct` at random moments, and check that the same command completes them, bit for bit.

    python tools/kill_stack.py --reconstruct 40 --measure 20
    python tools/kill_stack.py --reconstruct 4 --measure 4 --executor processes:2

A command is killed again and again: SIGKILL to its whole process group, workers included, at a random moment, after
which the same command continues. A run that ends before it is killed often enough is followed by another. No finished
chunk may be lost, and every file of a finished run, hidden ones included, must be that of an undisturbed run.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import kills
import numpy as np
import torch

from cryobench.cli import progress  # noqa: F401 - imported before the forks
from cryobench.io.writing import write_mrcs
from cryobench.measuring import chunks  # noqa: F401
from cryobench.registry import installed

SIDE, CHUNK = 32, 64
PARTICLES, MEASURED, STACK = "particles.mrcs", "y", "x.mrcs"


@dataclass(frozen=True)
class Victim:
    """A command that is killed. outputs: what it writes. done: a pattern of files, one for each finished chunk."""

    command: tuple[str, ...]
    outputs: tuple[str, ...]
    done: str

    def run(self, folder: Path, *options: str, kill_after: float | None = None) -> int:
        """Run it in a folder; see `kills.run`."""
        return kills.run(folder, *self.command, "--quiet", *options, kill_after=kill_after)

    def contents(self, folder: Path) -> dict[str, str]:
        """The SHA-256 of all files in the folder but its inputs, by name; hidden files and locks included."""
        inputs = {PARTICLES, *((MEASURED,) if MEASURED not in self.outputs else ())}
        files = [file for file in folder.rglob("*") if file.relative_to(folder).parts[0] not in inputs]
        return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
                for file in files if file.is_file()}  # fmt: skip

    def chunks(self, folder: Path) -> int:
        """The number of finished chunks of an unfinished output."""
        return len(list(folder.glob(self.done)))

    def remove(self, folder: Path) -> None:
        """Remove what it wrote."""
        for name in self.outputs:
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)


VICTIMS = {
    "measure": Victim(
        ("measure", "-o", "sumpool:4", "-n", "gaussian:rel=0.1", "--data", PARTICLES, "--as-stack", "--chunk",
         str(CHUNK), "--out", MEASURED),
        (MEASURED,), f"{MEASURED}/chunks/[!.]*.npz",
    ),
    "reconstruct": Victim(
        ("reconstruct", MEASURED, "--solver", "dct:steps=20,tol=0", "--out", STACK),
        (STACK, "x.star"), f".{STACK}.parts/done/[!.]*.json",
    ),
}  # fmt: skip


def check(name: str, folder: Path, times: int, options: tuple[str, ...], expected: dict[str, str]) -> None:
    """Kill a command `times` times. Raises `SystemExit` if a finished chunk is lost or the output differs."""
    victim, chance = VICTIMS[name], random.Random(0)
    # a shard without chunks takes as long as the start; each attempt should then do its share of the work
    victim.remove(folder)
    start = timed(lambda: victim.run(folder, *options, "--shard", "1/1000000"))
    whole = timed(lambda: victim.run(folder, *options))
    longest = 2 * (start + max(0.0, whole - start) / times)
    victim.remove(folder)
    killed = amid = completed = 0
    while killed < times:
        before = victim.chunks(folder)
        code = victim.run(folder, *options, kill_after=chance.uniform(0, longest))
        if code not in (0, -signal.SIGKILL):
            raise SystemExit(f"{name}: exit code {code} after {killed} kills")
        if code != 0:
            killed += 1
            amid += victim.chunks(folder) > before
            lost = before - victim.chunks(folder)
            if lost > 0 and not (folder / victim.outputs[0]).is_file():
                raise SystemExit(f"{name}: {lost} finished chunks are gone after kill {killed}")
        if code == 0 or killed == times or (folder / victim.outputs[0]).is_file():
            if not (folder / victim.outputs[0]).is_file() and (code := victim.run(folder, *options)) != 0:
                raise SystemExit(f"{name}: exit code {code} after {killed} kills")
            found = victim.contents(folder)
            different = sorted(file for file in found.keys() | expected if found.get(file) != expected.get(file))
            if different:
                raise SystemExit(f"{name}: {', '.join(different)} differ after {killed} kills")
            victim.remove(folder)
            completed += 1
    what = " ".join((name, *options))
    print(f"{what}: {killed} kills in {completed} runs, {amid} of them after new chunks; every file is that of an "
          "undisturbed run", flush=True)  # fmt: skip


def timed(action: Callable[[], int]) -> float:
    """The seconds that a command takes, which must succeed."""
    start = time.perf_counter()
    if (code := action()) != 0:
        raise SystemExit(f"exit code {code} without a kill")
    return time.perf_counter() - start


def main() -> None:
    """Kill both commands; the exit code is 1 if a check fails."""
    parser = argparse.ArgumentParser(description="Kill `measure` and `reconstruct` at random moments.")
    parser.add_argument("--reconstruct", type=int, default=40, help="number of kills")
    parser.add_argument("--measure", type=int, default=20, help="number of kills")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--executor", default="local")
    given = parser.parse_args()
    torch.set_num_threads(1)
    installed()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = np.random.default_rng(0).normal(size=(given.images, SIDE, SIDE)).astype(np.float32)
        write_mrcs(folder / PARTICLES, images, 2.0)
        for command, times in (("measure", given.measure), ("reconstruct", given.reconstruct)):
            victim = VICTIMS[command]
            timed(lambda victim=victim: victim.run(folder))
            expected = victim.contents(folder)
            check(command, folder, times, ("--executor", given.executor), expected)
            timed(lambda victim=victim: victim.run(folder))


if __name__ == "__main__":
    main()
