"""Runs jobs with limits in a child process, which can be killed."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, wait
from functools import cache
from multiprocessing.util import Finalize
from typing import Any

import psutil

from cryobench.errors import ExecutorError
from cryobench.workers.job import Job, Limits, Stopped

FINISH_SECONDS = 10.0
"""Seconds in which an idle worker must end."""
POLL = 0.05
"""Seconds between two checks of the limits."""


def child_process(threads: int | None = None, environment: dict[str, str] | None = None) -> ProcessPoolExecutor:
    """An executor with one new process, which ends with this process and ignores Ctrl-C."""
    return ProcessPoolExecutor(
        1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_prepare,
        initargs=(threads, environment or {}),
    )


def _prepare(threads: int | None, environment: dict[str, str]) -> None:
    """Initialize a new process: its device and threads, before a library that reads them is imported."""
    os.environ.update(environment)
    if threads is not None:
        os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def kill(executor: ProcessPoolExecutor, pid: int | None) -> None:
    """Shut down an executor with one process, killing the process if its pid is given."""
    _kill_process(pid)
    executor.shutdown(wait=pid is not None, cancel_futures=True)


def finish(executor: ProcessPoolExecutor, pid: int | None) -> None:
    """Shut down an executor with one process, which is killed if threads of a plugin keep it alive for long."""
    # the timer only kills: two threads that shut down an executor close its pipe twice
    timer = threading.Timer(FINISH_SECONDS, _kill_process, (pid,))
    timer.daemon = True
    timer.start()
    executor.shutdown()
    timer.cancel()


def _kill_process(pid: int | None) -> None:
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


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
        self._executor: ProcessPoolExecutor | None = None
        self._process: psutil.Process | None = None

    def run(self, job: Job, prepare: Callable[[Job], None], run: Callable[[Job], Any]) -> Any:
        """The result of `run(job)` in the child process, after `prepare(job)`, to which the limits do not apply.

        Raises `Stopped` for a job that exceeds its limits, and `BrokenExecutor` if the child process dies.
        """
        if self._executor is None or self._process is None:
            try:
                self._executor = child_process(job.threads)
                self._process = psutil.Process(self._executor.submit(os.getpid).result())
            except AssertionError as error:  # "daemonic processes are not allowed to have children"
                self._executor = None
                raise ExecutorError(
                    f"limits need a child process, and this worker may not start one ({error}); start dask workers "
                    "with DASK_DISTRIBUTED__WORKER__DAEMON=False, or run without limits"
                ) from error
        try:
            self._executor.submit(prepare, job).result()
            future = self._executor.submit(run, dataclasses.replace(job, limits=Limits()))
            self._watch(future, job.limits, self._process)
            return future.result()
        except (Stopped, BrokenExecutor, KeyboardInterrupt):
            self.end()
            raise

    def _watch(self, future: Future[Any], limits: Limits, process: psutil.Process) -> None:
        start = time.monotonic()
        while not wait([future], timeout=POLL).done:
            if limits.seconds is not None and time.monotonic() - start > limits.seconds:
                raise Stopped(f"stopped after {limits.seconds:g} s, the limit (--time-limit)")
            if limits.mib is not None and (used := _resident_mib(process)) > limits.mib:
                raise Stopped(f"stopped at {used:.0f} MiB of memory; the limit is {limits.mib:.0f} (--memory-limit)")

    def end(self) -> None:
        """Kill the child process."""
        executor, process, self._executor, self._process = self._executor, self._process, None, None
        if executor is not None:
            kill(executor, None if process is None else process.pid)


def _resident_mib(process: psutil.Process) -> float:
    try:
        return process.memory_info().rss / 2**20
    except psutil.NoSuchProcess:  # it just died; its future raises the error
        return 0.0
