"""Runs jobs with limits in a child process, which can be killed."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, wait
from functools import cache
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.util import Finalize
from typing import Any

import psutil

from cryobench.errors import ExecutorError
from cryobench.workers.job import Job, Limits, Stopped

FINISH_SECONDS = 10.0
"""Seconds in which an idle worker must end."""
POLL = 0.05
"""Seconds between two checks of the limits."""


@dataclasses.dataclass(frozen=True)
class Child:
    """An executor with one process. started: its result is the id of the process, once that is ready for work."""

    executor: ProcessPoolExecutor
    process: SpawnProcess
    started: Future[int]


def child_process(threads: int | None = None, environment: dict[str, str] | None = None) -> Child:
    """A new process, which ends with this process and ignores Ctrl-C, also while it starts."""
    context = _Spawning()
    executor = ProcessPoolExecutor(1, mp_context=context, initializer=_prepare, initargs=(threads, environment or {}))
    try:
        with _without_interrupts():  # Ctrl-C in a terminal reaches every process, and this one before `_prepare`
            started = executor.submit(os.getpid)  # creates the process, which inherits what is blocked
    except KeyboardInterrupt:  # nobody else knows the process
        for process in context.spawned:
            if process.pid is not None:
                process.kill()
        raise
    return Child(executor, context.spawned[0], started)


class _Spawning(SpawnContext):
    """Keeps the processes that it makes: an executor does not show them."""

    def __init__(self) -> None:
        super().__init__()
        self.spawned: list[SpawnProcess] = []

    def Process(self, *args: Any, **kwargs: Any) -> SpawnProcess:  # pyright: ignore[reportIncompatibleVariableOverride]
        self.spawned.append(SpawnProcess(*args, **kwargs))
        return self.spawned[-1]


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Block SIGINT; one that comes meanwhile is delivered at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare(threads: int | None, environment: dict[str, str]) -> None:
    """Initialize a new process: its device and threads, before a library that reads them is imported."""
    os.environ.update(environment)
    if threads is not None:
        os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def kill(child: Child) -> None:
    """Kill a child process and shut down its executor."""
    child.process.kill()
    child.executor.shutdown(cancel_futures=True)


def finish(child: Child) -> None:
    """Shut down the executor of a child process, which is killed if threads of a plugin keep it alive for long."""
    # the timer only kills: two threads that shut down an executor close its pipe twice
    timer = threading.Timer(FINISH_SECONDS, child.process.kill)
    timer.daemon = True
    timer.start()
    child.executor.shutdown()
    timer.cancel()


@cache
def guard() -> Guard:
    """The guard of this process."""
    made = Guard()
    # multiprocessing waits for the children of a process before executors shut down; this finalizer runs earlier
    Finalize(made, made.end, exitpriority=100)
    return made


class Guard:
    """Runs jobs in a child process, which is replaced when a job exceeds its limits."""

    def __init__(self) -> None:
        self._child: Child | None = None

    def run(self, job: Job, prepare: Callable[[Job], None], run: Callable[[Job], Any]) -> Any:
        """The result of `run(job)` in the child process, after `prepare(job)`, to which the limits do not apply.

        Raises `Stopped` for a job that exceeds its limits, and `BrokenExecutor` if the child process dies.
        """
        if self._child is None:
            try:
                self._child = child_process(job.threads)
            except AssertionError as error:  # "daemonic processes are not allowed to have children"
                raise ExecutorError(
                    f"limits need a child process, and this worker may not start one ({error}); start dask workers "
                    "with DASK_DISTRIBUTED__WORKER__DAEMON=False, or run without limits"
                ) from error
        try:
            executor = self._child.executor
            executor.submit(prepare, job).result()
            future = executor.submit(run, dataclasses.replace(job, limits=Limits()))
            self._watch(future, job.limits, self._child.process)
            return future.result()
        except (Stopped, BrokenExecutor, KeyboardInterrupt):
            self.end()
            raise

    def _watch(self, future: Future[Any], limits: Limits, process: SpawnProcess) -> None:
        start = time.monotonic()
        while not wait([future], timeout=POLL).done:
            if limits.seconds is not None and time.monotonic() - start > limits.seconds:
                raise Stopped(f"stopped after {limits.seconds:g} s, the limit (--time-limit)")
            if limits.mib is not None and (used := _resident_mib(process)) > limits.mib:
                raise Stopped(f"stopped at {used:.0f} MiB of memory; the limit is {limits.mib:.0f} (--memory-limit)")

    def end(self) -> None:
        """Kill the child process."""
        child, self._child = self._child, None
        if child is not None:
            kill(child)


def _resident_mib(process: SpawnProcess) -> float:
    try:
        return psutil.Process(process.pid).memory_info().rss / 2**20
    except psutil.NoSuchProcess:  # it just died; its future raises the error
        return 0.0
