"""Cells in a process of their own, which can be stopped without harm to anything else."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, wait
from functools import cache
from multiprocessing.util import Finalize

import psutil

from cryobench.errors import ExecutorError
from cryobench.sweep.job import Done, Job, Limits, Stopped

POLL = 0.05
"""Seconds between two looks at a cell that has limits."""


def child_process(threads: int | None = None, environment: dict[str, str] | None = None) -> ProcessPoolExecutor:
    """An executor of one fresh process, which ends when this one does and leaves Ctrl-C to it."""
    return ProcessPoolExecutor(
        1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_prepare,
        initargs=(threads, environment or {}),
    )


def _prepare(threads: int | None, environment: dict[str, str]) -> None:
    """Of a fresh process: its device and threads, before anything is imported that looks at them."""
    os.environ.update(environment)
    if threads is not None:
        os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def kill(executor: ProcessPoolExecutor, pid: int | None) -> None:
    """End an executor of one process and whatever it is doing."""
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    executor.shutdown(wait=pid is not None, cancel_futures=True)


@cache
def guard() -> Guard:
    """The guard of this process."""
    made = Guard()
    # a process that multiprocessing started waits for its own children before executors are told to let go of them
    Finalize(made, made.end, exitpriority=100)
    return made


class Guard:
    """Runs jobs in a child process, which it replaces when a job went beyond its limits."""

    def __init__(self) -> None:
        self._executor: ProcessPoolExecutor | None = None
        self._process: psutil.Process | None = None

    def run(self, job: Job) -> Done:
        """What `worker.run` gives for the job. Raises `Stopped` for one that went beyond its limits; a process that
        died of itself raises what its executor raises."""
        from cryobench.sweep.worker import prepare, run

        if self._executor is None or self._process is None:
            try:
                self._executor = child_process(job.threads)
                self._process = psutil.Process(self._executor.submit(os.getpid).result())
            except AssertionError as error:  # "daemonic processes are not allowed to have children"
                self._executor = None
                raise ExecutorError(
                    f"this worker may not start a process, which limits need ({error}); start dask workers with "
                    "DASK_DISTRIBUTED__WORKER__DAEMON=False, or without limits"
                ) from error
        try:
            self._executor.submit(prepare, job).result()
            future = self._executor.submit(run, dataclasses.replace(job, limits=Limits()))
            self._watch(future, job.limits, self._process)
            return future.result()
        except (Stopped, BrokenExecutor, KeyboardInterrupt):
            self.end()
            raise

    def _watch(self, future: Future[Done], limits: Limits, process: psutil.Process) -> None:
        start = time.monotonic()
        while not wait([future], timeout=POLL).done:
            if limits.seconds is not None and time.monotonic() - start > limits.seconds:
                raise Stopped(f"stopped after {limits.seconds:g} s, the limit; --time-limit sets another")
            if limits.mib is not None and (used := _resident_mib(process)) > limits.mib:
                raise Stopped(f"stopped at {used:.0f} MiB of memory, the limit being {limits.mib:.0f}; --memory-limit "
                              "sets another")  # fmt: skip

    def end(self) -> None:
        """End the child process, whatever it is doing."""
        executor, process, self._executor, self._process = self._executor, self._process, None, None
        if executor is not None:
            kill(executor, None if process is None else process.pid)


def _resident_mib(process: psutil.Process) -> float:
    try:
        return process.memory_info().rss / 2**20
    except psutil.NoSuchProcess:  # it has just died, which its future tells
        return 0.0
