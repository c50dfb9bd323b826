"""Solvers that log their runs, and fail, wait or die on request, in every process of a sweep."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cryobench.hooks import Hooks
from cryobench.plan import grid
from cryobench.record import Record
from cryobench.registry import installed
from cryobench.results.store import Results
from cryobench.sweep.driver import SweepObserver, SweepOptions, run
from cryobench.workers.executors import parse_executor

STRANGE = """
import os, signal, time
from dataclasses import dataclass
from pathlib import Path
from cryobench.core import Reconstruction, Solver

HERE = Path(os.environ["STRANGE"])

@dataclass(frozen=True)
class Draws(Solver):
    number: int = 0

    def solve(self, problem, *, rng, progress=None):
        with open(HERE / "log", "a") as file:
            file.write(f"{type(self).__name__.lower()} {self.number}\\n")
        self.act()
        noise = rng.stream("x").normal((1, *problem.operator.image_shape))
        return Reconstruction(problem.operator.A_dagger(problem.y) + 0.01 * noise)

    def act(self): pass

@dataclass(frozen=True)
class Dies(Draws):
    def act(self):
        try:
            (HERE / f"died {self.number}").touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

@dataclass(frozen=True)
class Deadly(Draws):
    def act(self): os.kill(os.getpid(), signal.SIGKILL)

@dataclass(frozen=True)
class Sleeps(Draws):
    def act(self): time.sleep(self.number)

@dataclass(frozen=True)
class Eats(Draws):
    def act(self):
        held = bytearray(2**20 * self.number)
        time.sleep(60)

@dataclass(frozen=True)
class Waits(Draws):
    def act(self):
        (HERE / f"waits {self.number} {os.getpid()}").touch()
        while not (HERE / f"go {self.number}").exists():
            time.sleep(0.05)

@dataclass(frozen=True)
class Fails(Draws):
    def act(self):
        if not (HERE / "fixed").exists():
            raise ValueError("not yet")
"""
NAMES = ("Draws", "Dies", "Deadly", "Sleeps", "Eats", "Waits", "Fails")


def runs(strange: Path) -> Counter[str]:
    """The number of runs of each solver, by name and number."""
    return Counter((strange / "log").read_text().splitlines()) if (strange / "log").exists() else Counter()


class Listener(SweepObserver):
    def __init__(self):
        self.warnings: list[str] = []
        self.reused = 0
        self.seconds: dict[str, float] = {}

    def warn(self, message):
        self.warnings.append(message)

    def cell_finished(self, record, *, reused):
        self.reused += reused

    def workers_done(self, seconds):
        self.seconds = dict(seconds)


def swept(out: Path, executor: str = "local", *, listener=None, threads=1, options=None, **request) -> list[Record]:
    """The records of a sweep over a `grid.Request`. options: fields of `SweepOptions`."""
    given = {"operators": ["sumpool:4"], "metrics": ["psnr"], "floor": False, "images": "0:2"} | request
    plan = grid.plan(grid.Request(**given), installed())
    made = SweepOptions(Results(out), "cpu", **(options or {}))
    return list(run([plan], made, parse_executor(executor), listener or Listener(), Hooks(pytest.fail),
                    threads=threads, hook_options={}))  # fmt: skip


def numbers(records: list[Record]) -> dict[str, object]:
    """The results of each cell without its costs, by hash."""
    return {r.hash: (r.status, r.reason, {k: np.array(v).tobytes() for k, v in r.values.items()}) for r in records}
