"""A small run on a small stack, in this process, in a child process or in two processes."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from cryobench.sources.stacks import File
from cryobench.training import loop
from cryobench.training.checkpoint import State
from cryobench.training.settings import Settings

CPU = torch.device("cpu")
TINY = "ddpm:tiny,turns=true,target=images,levels=uniform"


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of 8 steps with a checkpoint every 3, by default."""

    data: Path
    validation: Path | None = None

    def settings(self, **changed: Any) -> Settings:
        small = {"objective": TINY, "steps": 8, "batch": 4, "warmup": 2, "lr": 1e-3, "checkpoint_every": 3}
        validation = () if self.validation is None else (str(self.validation),)
        return Settings(data=(str(self.data),), validation=validation, **small | changed)

    def training(self, out: Path, observer: loop.TrainingObserver | None = None, **changed: Any) -> loop.Training:
        others = [] if self.validation is None else [File(str(self.validation)).open()]
        return loop.Training(
            self.settings(**changed), [File(str(self.data)).open()], others, out, device=CPU, observer=observer
        )

    def __call__(self, out: Path, stop: Callable[[], bool] = lambda: False, **changed: Any) -> State:
        """Train, and return the checkpoint."""
        self.training(out, **changed).run(stop)
        state = State.load(out)
        assert state is not None
        return state


def assert_same(one: State, other: State) -> None:
    """Assert bit-identical weights, averages, optimizer states and steps."""
    assert (one.step, one.best, one.best_step) == (other.step, other.best, other.best_step)
    for name in ("network", "averaged"):
        ours, theirs = getattr(one, name), getattr(other, name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    ours, theirs = one.optimizer["state"], other.optimizer["state"]
    assert all(torch.equal(ours[k][name], theirs[k][name]) for k in ours for name in ("step", "exp_avg", "exp_avg_sq"))


def forked(call: Callable[[], object], output: Path) -> BaseProcess:
    """A child process that runs `call` and prints to a file. A fork, because importing torch again is slow.

    The traceback of an error that ends it is in a file of the same name with the suffix .error.
    """

    def start() -> None:
        with output.open("w", buffering=1) as file:
            sys.stdout = sys.stderr = file
            os.dup2(file.fileno(), 2)
            torch.set_num_threads(torch.get_num_threads())  # replaces torch's pool: two threads would do it at once
            try:
                call()
            except Exception:
                output.with_suffix(".error").write_text(traceback.format_exc())
                raise

    child = multiprocessing.get_context("fork").Process(target=start)
    child.start()
    return child


def printed(output: Path) -> str:
    """What a forked process printed, and the error that ended it."""
    error = output.with_suffix(".error")
    return output.read_text() + (error.read_text() if error.exists() else "")


def two_processes(call: Callable[[int], object], folder: Path) -> list[tuple[int | None, str]]:
    """Run `call` in two processes set up as by `accelerate launch`: (exit code, output) of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def start(rank: int) -> None:
        from accelerate.state import AcceleratorState, GradientState, PartialState

        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()  # set by an earlier test in this process
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in place.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        call(rank)

    children = [forked(lambda rank=rank: start(rank), folder / f"rank{rank}.txt") for rank in range(2)]
    for child in children:
        child.join(60)
        if child.is_alive():
            child.kill()
            child.join()
    return [(child.exitcode, (folder / f"rank{rank}.txt").read_text()) for rank, child in enumerate(children)]
