"""Kill a sweep at random moments and at every file event, and check that no finished cell is lost or left in pieces.

    python tools/kill_sweep.py --random 100

Each trial is a fork of this process, which has imported everything, so that a trial takes a fraction of a second. Three
forms of a sweep are killed at each of their writes, renames and removals (an audit hook does it): into an empty folder,
with --force and with --save. After each kill, all cells that were finished before are there and whole; after the sweep
is run again, every cell is there once, with the same numbers, and nothing else is in the folder.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import kills
import numpy as np
import torch

from cryobench.leaderboard import table  # noqa: F401 - imported before the forks
from cryobench.record import Record
from cryobench.registry import installed
from cryobench.results.store import Results
from cryobench.runner import cells  # noqa: F401
from cryobench.sweep import driver  # noqa: F401
from cryobench.workers import executors  # noqa: F401

SUITE = """data: images.npy
images: "0:2"
metrics: [psnr]
solvers: [pinv, dct, tikhonov]
operators: ["sumpool:4", "sumpool:2"]
"""
EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree", "tempfile.mkdtemp"}
State = dict[str, tuple[str, str]]


def sweep(folder: Path, *options: str, kill_at: int | None = None, kill_after: float | None = None) -> int:
    """Run the sweep into a folder in a child process, which is killed at a file event or after some seconds.

    Returns its exit code, negative for a signal.
    """

    def prepare() -> None:
        if kill_at is not None:
            sys.addaudithook(_killer(str(folder), kill_at))

    return kills.run(folder.parent, "sweep", "suite.yaml", "--out", str(folder), "--quiet", *options,
                     prepare=prepare, kill_after=kill_after)  # fmt: skip


def _killer(below: str, at: int):
    seen = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen
        paths = [os.fsdecode(each) for each in arguments if isinstance(each, str | bytes | os.PathLike)]
        reads = event == "open" and isinstance(arguments[2], int) and not arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in EVENTS and not reads and any(path.startswith(below) for path in paths):
            seen += 1
            if seen == at:
                os.kill(0, signal.SIGKILL)

    return hook


def state(folder: Path) -> State:
    """The finished cells of a folder, by hash: solver and numbers. Damaged folders are an error."""
    if not folder.exists():
        return {}
    reports: list[str] = []
    records = Results(folder).read_all(reports.append)
    if reports:
        raise SystemExit(f"{folder}: {reports}")
    return {record.hash: _content(record) for record in records if record.status == "ok"}


def _content(record: Record) -> tuple[str, str]:
    return record.solver, repr(record.values)


def check(folder: Path, before: State, whole: State, where: str) -> None:
    """Compare a folder after a kill with what was there before, and after another run with what must be there."""
    lost = before.items() - state(folder).items()
    if lost:
        raise SystemExit(f"{where}: lost {lost}")
    if (code := sweep(folder)) != 0:
        raise SystemExit(f"{where}: the sweep ends with {code} when it is run again")
    if state(folder) != whole:
        raise SystemExit(f"{where}: the cells differ after the sweep was run again")
    names = {path.name for path in folder.iterdir()} - {".cryobench-index.parquet"}
    if len(names) != len(whole) or any(name.startswith(".") for name in names):
        raise SystemExit(f"{where}: {sorted(names)} for {len(whole)} cells")


def main() -> None:
    """Run all trials; the exit code is 1 if one fails."""
    parser = argparse.ArgumentParser(description="Kill a sweep at random moments and at every file event.")
    parser.add_argument("--random", type=int, default=100, help="number of kills at random times")
    parser.add_argument("--every", type=int, default=1, help="kill at every n-th file event")
    options = parser.parse_args()
    torch.set_num_threads(1)
    installed()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        np.save(root / "images.npy", np.random.default_rng(0).normal(size=(2, 32, 32)).astype(np.float32))
        (root / "suite.yaml").write_text(SUITE)
        base, folder = root / "base", root / "runs"
        start = time.perf_counter()
        if (code := sweep(base)) != 0:
            raise SystemExit(f"the sweep ends with {code}")
        seconds = time.perf_counter() - start
        whole = state(base)
        for form, extra in {"empty": (), "--force": ("--force",), "--save": ("--save", "reconstructions")}.items():
            tried = 0
            for at in range(1, 10_000, options.every):
                _fresh(folder, None if form == "empty" else base)
                before = state(folder)
                if sweep(folder, *extra, kill_at=at) != -signal.SIGKILL:
                    break
                check(folder, before, whole, f"{form}, killed at event {at}")
                tried += 1
            print(f"{form}: killed at {tried} file events, no finished cell lost", flush=True)
        chance = random.Random(0)
        for trial in range(options.random):
            _fresh(folder, base if trial % 2 else None)
            before = state(folder)
            sweep(folder, *(("--force",) if trial % 2 else ()), kill_after=chance.uniform(0, seconds))
            check(folder, before, whole, f"random kill {trial}")
        print(f"killed {options.random} times at random, no finished cell lost")


def _fresh(folder: Path, template: Path | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if template is not None:
        shutil.copytree(template, folder)


if __name__ == "__main__":
    main()
