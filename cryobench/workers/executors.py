"""Workers: `local`, `processes`, `dask`, `slurm`. Each is an executor of `concurrent.futures`.

Each worker runs one job at a time and has its own executor, so that a failing worker affects one job only.
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
from concurrent.futures import BrokenExecutor, Executor, Future, InvalidStateError
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cryobench.errors import DependencyError, ExecutorError, ParameterError, described, reason_of
from cryobench.registry import did_you_mean
from cryobench.workers.guard import Child, child_process, finish, kill
from cryobench.workers.job import Job
from cryobench.workers.running import run
from cryobench.workers.slurm import slurm_jobs

KINDS = ("local", "processes", "dask", "slurm")
CONNECT_SECONDS = 5
SILENT_SECONDS = 300
"""A worker of a busy machine that does not answer for so long is lost: it may be importing, which blocks it."""
LISTED_FOR = 1.0
"""Seconds for which a scheduler's list of workers is cached."""


@dataclass(frozen=True)
class ExecutorSpec:
    """A parsed `--executor`: `local`, `processes[:N]`, `dask[:N]`, `dask://HOST:PORT` or `slurm:FILE`.

    address: of the dask scheduler, or the path of the SLURM file.
    """

    kind: str
    workers: int | None = None
    address: str = ""


def parse_executor(text: str) -> ExecutorSpec:
    """Parse `--executor`. Raises `ParameterError` for an invalid one."""
    if text.startswith("dask://"):
        return ExecutorSpec("dask", address="tcp" + text.removeprefix("dask"))
    kind, colon, rest = text.partition(":")
    if kind not in KINDS:
        raise ParameterError(f"--executor {text!r}: {did_you_mean(kind, KINDS)}; see docs/sweeps.md")
    if kind == "slurm":
        if not Path(rest).is_file():
            raise ParameterError(f"--executor {text!r}: slurm needs a file that describes its jobs, slurm:FILE.yaml")
        return ExecutorSpec(kind, address=rest)
    if colon and (kind == "local" or not re.fullmatch("[1-9][0-9]*", rest)):
        raise ParameterError(
            f"--executor {text!r}: {kind} takes {'no value' if kind == 'local' else 'a number of workers'}"
        )
    return ExecutorSpec(kind, int(rest) if colon else None)


def check_reachable(spec: ExecutorSpec) -> None:
    """Raise `ExecutorError` if the dask scheduler does not answer."""
    if not spec.address.startswith("tcp:"):
        return
    host, _, port = spec.address.removeprefix("tcp://").rpartition(":")
    try:
        with socket.create_connection((host, int(port)), CONNECT_SECONDS) as connection:
            if not connection.recv(1):  # a scheduler sends first; dask's client would wait forever
                raise OSError("the connection was closed")
    except (OSError, ValueError) as error:
        raise ExecutorError(f"no dask scheduler answers at {spec.address}: {reason_of(error)}; start one with "
                            "`dask scheduler`") from error  # fmt: skip


class Workers(ABC):
    """Workers with unique names. A context manager that ends them on exit."""

    threads: int | None = None
    """Threads of torch in each worker."""

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *raised: object) -> None:  # noqa: B027 - nothing to end for `Local`
        """End the workers, at once if an exception was raised."""

    @abstractmethod
    def names(self) -> Sequence[Hashable]:
        """The workers at this moment. Raises `ExecutorError` if the connection to them is lost for good."""

    @abstractmethod
    def submit(self, name: Hashable, job: Job) -> Future[Any]:
        """Submit a job to a worker. The future raises `BrokenExecutor` if the worker dies, and is cancelled if the
        connection to it is lost."""

    def replace(self, name: Hashable) -> None:  # noqa: B027 - dask replaces its workers itself
        """Replace a worker that died. Raises `ExecutorError` if a new worker would die too."""


class Local(Workers):
    """This process. run_here: runs a job in it."""

    def __init__(self, run_here: Callable[[Job], Any], threads: int | None = None):
        self._executor, self._run_here, self.threads = _SerialExecutor(), run_here, threads

    def names(self) -> Sequence[Hashable]:
        return ("local",)

    def submit(self, name: Hashable, job: Job) -> Future[Any]:
        return self._executor.submit(self._run_here, job)


class _SerialExecutor(Executor):
    """Runs a function at once, in this thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            future.set_exception(error)
        return future


class Processes(Workers):
    """Processes of this machine. devices: the CUDA device of each, or ''."""

    def __init__(self, threads: int, devices: Sequence[str]):
        self.threads, self._devices = threads, devices
        self._children: dict[Hashable, Child] = {}

    def names(self) -> Sequence[Hashable]:
        return range(len(self._devices))

    def submit(self, name: Hashable, job: Job) -> Future[Any]:
        if name not in self._children:
            device = self._devices[int(str(name))]
            self._children[name] = child_process(self.threads, {"CUDA_VISIBLE_DEVICES": device} if device else {})
        try:
            return self._children[name].executor.submit(run, job)
        except BrokenExecutor:  # it died while idle
            self.replace(name)
            return self.submit(name, job)

    def replace(self, name: Hashable) -> None:
        child = self._children.pop(name)
        child.executor.shutdown()
        if child.started.exception() is not None:
            raise ExecutorError("a worker process ended while starting: out of memory, or see above")

    def __exit__(self, *raised: object) -> None:
        if any(raised):
            for child in self._children.values():  # all before the first is waited for: a second Ctrl-C may end that
                child.process.kill()
        end = kill if any(raised) else finish
        for child in self._children.values():
            end(child)


class Dask(Workers):
    """The workers of a dask scheduler, whose number may change."""

    def __init__(self, client: Any, stack: ExitStack, threads: int | None = None):
        self._client, self._stack, self.threads = client, stack, threads
        self._executors: dict[Hashable, Executor] = {}
        self._jobs: dict[Future[Any], tuple[Hashable, Future[Any]]] = {}
        self._names: list[str] = []
        self._listed_at = -LISTED_FOR

    def names(self) -> Sequence[Hashable]:
        if self._client.status == "connecting":  # the connection was lost and is retried for `CONNECT_SECONDS`
            return []
        if self._client.status != "running":
            raise ExecutorError("the dask scheduler is gone")
        if time.monotonic() - self._listed_at > LISTED_FOR:
            try:
                self._names = list(self._client.scheduler_info()["workers"])
            except OSError:  # just lost; `status` shows it at the next call
                return []
            self._listed_at = time.monotonic()
            self._fail_lost_jobs()
        return self._names

    def _fail_lost_jobs(self) -> None:
        """Fail the jobs of workers that are gone. dask would keep such a job forever, for a worker of the same address;
        with any worker allowed, it loses the job if there is none at that moment (dask/distributed#7346)."""
        self._jobs = {future: job for future, job in self._jobs.items() if not future.done()}
        for future, (name, at_dask) in self._jobs.items():
            if name not in self._names:
                with contextlib.suppress(InvalidStateError):  # it just finished
                    future.set_exception(BrokenExecutor("the worker is gone"))
                at_dask.cancel()

    def submit(self, name: Hashable, job: Job) -> Future[Any]:
        if name not in self._executors:
            self._executors[name] = self._client.get_executor(workers=[name], pure=False)
        future: Future[Any] = Future()
        at_dask = self._executors[name].submit(run, job)
        at_dask.add_done_callback(partial(_pass_on, future))
        self._jobs[future] = name, at_dask
        return future

    def __exit__(self, *raised: object) -> None:
        self._stack.close()


def _pass_on(future: Future[Any], at_dask: Future[Any]) -> None:
    """Copy the result of dask's future."""
    with contextlib.suppress(InvalidStateError):  # already failed by `_fail_lost_jobs`
        if at_dask.cancelled():
            if future.cancel():  # not if it is already failed
                future.set_running_or_notify_cancel()
        elif (error := at_dask.exception()) is not None:
            killed = type(error).__name__ == "KilledWorker"  # raised if the scheduler allows no failures
            future.set_exception(BrokenExecutor(str(error)) if killed else error)
        else:
            future.set_result(at_dask.result())


@contextlib.contextmanager
def workers(
    spec: ExecutorSpec, *, device: str, threads: int | None, run_here: Callable[[Job], Any]
) -> Iterator[Workers]:
    """The workers of an executor spec. run_here: runs a job in this process, for `local`."""
    if spec.kind == "local":
        yield Local(run_here, threads)
        return
    if spec.kind == "processes":
        with Processes(*_shares(spec.workers, threads, device)) as found:
            yield found
        return
    with ExitStack() as stack:
        yield Dask(*_connected(spec, stack, device, threads))


def _shares(n_workers: int | None, threads: int | None, device: str) -> tuple[int, list[str]]:
    """Threads of each worker, and its CUDA device: one worker per device, or the cores divided among the workers. A
    numbered device, such as cuda:1, is shared by all workers."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        known = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
        devices = [known[place % len(known)] for place in range(n_workers or len(known))]
    else:
        devices = [""] * (n_workers or max(1, cores // (threads or 1)))
    return threads or max(1, cores // len(devices)), devices


def _connected(
    spec: ExecutorSpec, stack: ExitStack, device: str, threads: int | None
) -> tuple[Any, ExitStack, int | None]:
    """A client of the scheduler, which the stack closes; the stack; and the threads of each worker."""
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise DependencyError(f"--executor {spec.kind} needs dask: pip install 'cryobench[{spec.kind}]'") from error
    stack.enter_context(dask.config.set({
        "distributed.worker.daemon": False,  # limits need child processes
        "distributed.comm.timeouts.tcp": SILENT_SECONDS,
        # those that glibc reaches by itself; dask's default returns each freed array to the system, so that every new
        # one is mapped again: 2.6 times the processor time
        "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 2**26,
        "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 2**25,
    }))  # fmt: skip
    if spec.address.startswith("tcp:"):
        try:
            client = Client(spec.address, timeout=CONNECT_SECONDS)
        except (OSError, TimeoutError, ValueError) as error:
            raise ExecutorError(f"no dask scheduler answers at {spec.address}: {described(error)}; start one with "
                                "`dask scheduler`") from error  # fmt: skip
        return stack.enter_context(client), stack, threads
    if spec.kind == "slurm":
        return stack.enter_context(Client(stack.enter_context(slurm_jobs(spec.address)))), stack, threads
    threads, devices = _shares(spec.workers, threads, device)
    cluster = LocalCluster(
        n_workers=len(devices),
        threads_per_worker=1,
        dashboard_address=":0",
        silence_logs=logging.CRITICAL,
        env=dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)),
    )
    return stack.enter_context(Client(stack.enter_context(cluster))), stack, threads
