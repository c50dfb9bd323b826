"""The workers of a sweep: `local`, `processes`, `dask`, `slurm`. Each is an executor of `concurrent.futures`.

A worker does one cell at a time, and has an executor of its own: what happens to it is told of that cell alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, InvalidStateError, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cryobench.errors import DependencyError, ExecutorError, ParameterError, said, told
from cryobench.registry import did_you_mean
from cryobench.sweep.guard import child_process, kill
from cryobench.sweep.job import Done, Job
from cryobench.sweep.worker import run

KINDS = ("local", "processes", "dask", "slurm")
CONNECT_SECONDS = 5
LISTED_FOR = 1.0
"""Seconds for which a scheduler's list of workers is good."""


@dataclass(frozen=True)
class ExecutorSpec:
    """`--executor` as it was read: `local`, `processes[:N]`, `dask[:N]`, `dask://HOST:PORT`, `slurm:FILE`."""

    kind: str
    workers: int | None = None
    address: str = ""


def parse_executor(text: str) -> ExecutorSpec:
    """Read `--executor`. Raises `ParameterError` for what is none."""
    if text.startswith("dask://"):
        return ExecutorSpec("dask", address="tcp" + text.removeprefix("dask"))
    kind, colon, rest = text.partition(":")
    if kind not in KINDS:
        raise ParameterError(f"--executor {text!r}: {did_you_mean(kind, KINDS)}; see docs/sweeps.md")
    if kind == "slurm":
        if not Path(rest).is_file():
            raise ParameterError(f"--executor {text!r}: slurm wants the file that describes its jobs, slurm:FILE.yaml")
        return ExecutorSpec(kind, address=rest)
    if colon and (kind == "local" or not re.fullmatch("[1-9][0-9]*", rest)):
        raise ParameterError(
            f"--executor {text!r}: {kind} takes {'nothing' if kind == 'local' else 'a number of workers'}"
        )
    return ExecutorSpec(kind, int(rest) if colon else None)


def check_reachable(wanted: ExecutorSpec) -> None:
    """Refuse, before any work, a scheduler that does not answer. Raises `ExecutorError`."""
    if not wanted.address.startswith("tcp:"):
        return
    host, _, port = wanted.address.removeprefix("tcp://").rpartition(":")
    try:
        with socket.create_connection((host, int(port)), CONNECT_SECONDS) as connection:
            if not connection.recv(1):  # a scheduler speaks first; dask's client waits for one that is silent for ever
                raise OSError("the connection was closed")
    except (OSError, ValueError) as error:
        raise ExecutorError(f"no dask scheduler answers at {wanted.address}: {said(error)}; start one with "
                            "`dask scheduler`") from error  # fmt: skip


class Workers(ABC):
    """Workers, each with a name that stays its own. To be used as a context, which ends them."""

    threads: int | None = None
    """What each worker gives torch."""

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *raised: object) -> None:  # noqa: B027 - this process needs no ending
        """Let go of the workers, at once where something was raised."""

    @abstractmethod
    def names(self) -> Sequence[Hashable]:
        """Those there are at the moment. Raises `ExecutorError` where there can be none any more."""

    @abstractmethod
    def submit(self, name: Hashable, job: Job) -> Future[Done]:
        """Give a worker a job. Its future raises `BrokenExecutor` where the worker dies, and is cancelled where the
        connection to it is lost."""

    def replace(self, name: Hashable) -> None:  # noqa: B027 - dask sees to its workers itself
        """A worker died. Raises `ExecutorError` where another one would be no better off."""


class Local(Workers):
    """This process. do: what runs a job here."""

    def __init__(self, do: Callable[[Job], Done], threads: int | None = None):
        self._executor, self._do, self.threads = _Here(), do, threads

    def names(self) -> Sequence[Hashable]:
        return ("local",)

    def submit(self, name: Hashable, job: Job) -> Future[Done]:
        return self._executor.submit(self._do, job)


class _Here(Executor):
    """Runs what it is given before it answers."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Processes(Workers):
    """Processes of this machine. devices: a CUDA device for each, or '' for none of its own."""

    def __init__(self, threads: int, devices: Sequence[str]):
        self.threads, self._devices = threads, devices
        self._executors: dict[Hashable, tuple[ProcessPoolExecutor, Future[int]]] = {}

    def names(self) -> Sequence[Hashable]:
        return range(len(self._devices))

    def submit(self, name: Hashable, job: Job) -> Future[Done]:
        if name not in self._executors:
            device = self._devices[int(str(name))]
            executor = child_process(self.threads, {"CUDA_VISIBLE_DEVICES": device} if device else {})
            self._executors[name] = executor, executor.submit(os.getpid)
        try:
            return self._executors[name][0].submit(run, job)
        except BrokenExecutor:  # it died while it had nothing to do
            self.replace(name)
            return self.submit(name, job)

    def replace(self, name: Hashable) -> None:
        executor, pid = self._executors.pop(name)
        executor.shutdown()
        if pid.exception() is not None:
            raise ExecutorError("a worker process ended before it could do anything: out of memory, or see above")

    def __exit__(self, *raised: object) -> None:
        for executor, pid in self._executors.values():
            if any(raised):
                kill(executor, pid.result() if pid.done() and pid.exception() is None else None)
            else:
                executor.shutdown()


class Dask(Workers):
    """The workers of a dask scheduler, as they come and go."""

    def __init__(self, client: Any, stack: ExitStack, threads: int | None = None):
        self._client, self._stack, self.threads = client, stack, threads
        self._executors: dict[Hashable, Executor] = {}
        self._jobs: dict[Future[Done], tuple[Hashable, Future[Done]]] = {}
        self._names: list[str] = []
        self._asked = -LISTED_FOR

    def names(self) -> Sequence[Hashable]:
        if self._client.status == "connecting":  # the connection was lost, and is tried again for `CONNECT_SECONDS`
            return []
        if self._client.status != "running":
            raise ExecutorError("the dask scheduler is gone")
        if time.monotonic() - self._asked > LISTED_FOR:
            try:
                self._names = list(self._client.scheduler_info()["workers"])
            except OSError:  # lost at this very moment: `status` tells the next time
                return []
            self._asked = time.monotonic()
            self._fail_lost_jobs()
        return self._names

    def _fail_lost_jobs(self) -> None:
        """Give up the jobs of workers that are gone. dask would keep a job for a worker of that address for ever; let
        it choose another, and it still forgets the job if there is none at that moment (dask/distributed#7346)."""
        self._jobs = {future: job for future, job in self._jobs.items() if not future.done()}
        for future, (name, at_dask) in self._jobs.items():
            if name not in self._names:
                with contextlib.suppress(InvalidStateError):  # it has just come to an end
                    future.set_exception(BrokenExecutor("the worker is gone"))
                at_dask.cancel()

    def submit(self, name: Hashable, job: Job) -> Future[Done]:
        if name not in self._executors:
            self._executors[name] = self._client.get_executor(workers=[name], pure=False)
        future: Future[Done] = Future()
        at_dask = self._executors[name].submit(run, job)
        at_dask.add_done_callback(partial(_pass_on, future))
        self._jobs[future] = name, at_dask
        return future

    def __exit__(self, *raised: object) -> None:
        self._stack.close()


def _pass_on(future: Future[Done], at_dask: Future[Done]) -> None:
    """How a job came to its end."""
    with contextlib.suppress(InvalidStateError):  # its worker was given up a moment ago
        if at_dask.cancelled():
            future.cancel()
            future.set_running_or_notify_cancel()
        elif (error := at_dask.exception()) is not None:
            killed = type(error).__name__ == "KilledWorker"  # where the scheduler allows no failures
            future.set_exception(BrokenExecutor(str(error)) if killed else error)
        else:
            future.set_result(at_dask.result())


@contextlib.contextmanager
def workers(wanted: ExecutorSpec, *, device: str, threads: int | None, do: Callable[[Job], Done]) -> Iterator[Workers]:
    """The workers that `--executor` asks for. do: what runs a job in this process, for `local`."""
    if wanted.kind == "local":
        yield Local(do, threads)
        return
    if wanted.kind == "processes":
        with Processes(*_shares(wanted.workers, threads, device)) as found:
            yield found
        return
    with ExitStack() as stack:
        yield Dask(*_connected(wanted, stack, device, threads))


def _shares(n_workers: int | None, threads: int | None, device: str) -> tuple[int, list[str]]:
    """Threads of each worker, and its CUDA device: one worker a device, or the cores shared out. A device that is
    named, cuda:1, is all workers' own."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        known = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
        devices = [known[place % len(known)] for place in range(n_workers or len(known))]
    else:
        devices = [""] * (n_workers or max(1, cores // (threads or 1)))
    return threads or max(1, cores // len(devices)), devices


def _connected(wanted: ExecutorSpec, stack: ExitStack, device: str, threads: int | None) -> tuple[Any, ExitStack, int | None]:
    """A client of the scheduler that is asked for, which the stack closes."""
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise DependencyError(f"--executor {wanted.kind} needs dask: pip install 'cryobench[{wanted.kind}]'") from error
    stack.enter_context(dask.config.set({"distributed.worker.daemon": False}))  # a cell with limits starts a process
    if wanted.address.startswith("tcp:"):
        try:
            client = Client(wanted.address, timeout=CONNECT_SECONDS)
        except (OSError, TimeoutError, ValueError) as error:
            raise ExecutorError(f"no dask scheduler answers at {wanted.address}: {told(error)}; start one with "
                                "`dask scheduler`") from error  # fmt: skip
        return stack.enter_context(client), stack, threads
    if wanted.kind == "slurm":
        return stack.enter_context(Client(stack.enter_context(_slurm(wanted.address)))), stack, threads
    threads, devices = _shares(wanted.workers, threads, device)
    cluster = LocalCluster(
        n_workers=len(devices),
        threads_per_worker=1,
        dashboard_address=":0",
        silence_logs=logging.CRITICAL,
        env=dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)),
    )
    return stack.enter_context(Client(stack.enter_context(cluster))), stack, threads


def _slurm(file: str) -> Any:
    """The jobs that a YAML file describes: the options of `dask_jobqueue.SLURMCluster`, and `jobs`, how many."""
    import yaml

    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise DependencyError("--executor slurm needs dask-jobqueue: pip install 'cryobench[slurm]'") from error
    try:
        options = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ExecutorError(f"{file} cannot be read: {said(error)}") from error
    jobs = options.pop("jobs", None) if isinstance(options, dict) else None
    if not isinstance(jobs, int) or jobs < 1:
        raise ExecutorError(f"{file}: wanted `jobs`, a whole number, beside what dask_jobqueue.SLURMCluster takes, "
                            "such as cores, memory and walltime")  # fmt: skip
    try:
        cluster = SLURMCluster(**options)
        cluster.scale(jobs=jobs)
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        raise ExecutorError(f"{file}: {told(error)}") from error
    return cluster
